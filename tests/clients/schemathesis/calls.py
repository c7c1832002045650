"""Schemathesis on /openapi.json: what each operation answers to what its schema allows, and to what it does not."""

import os
from pathlib import Path

from calls import PLAYED, TANDEM, call, make_all, run

OPTIONS = ["--checks=all", "--seed=1", "--request-timeout=60", "--generation-database=none", "--no-color"]
HOOKS = {
    "SCHEMATHESIS_HOOKS": "hooks",
    "PYTHONPATH": os.pathsep.join([os.environ["PYTHONPATH"], str(Path(__file__).parent)]),
}


def tested(url, num_examples):
    command = ["st", "run", *OPTIONS, f"--max-examples={num_examples}", f"{url}/openapi.json"]
    run(*command, limit_s=800, environment=HOOKS)


@call
def before_the_bundled_model():
    tested(TANDEM, num_examples=10)


@call
def before_the_played_model():
    tested(PLAYED, num_examples=50)


make_all()
