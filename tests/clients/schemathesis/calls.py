"""Schemathesis on /openapi.json: what each operation answers to what its schema allows, and to what it does not."""

import os
from pathlib import Path

from calls import TANDEM, call, make_all, run

OPTIONS = ["--checks=all", "--seed=1", "--request-timeout=60", "--generation-database=none", "--no-color"]
HOOKS = {
    "SCHEMATHESIS_HOOKS": "hooks",
    "PYTHONPATH": os.pathsep.join([os.environ["PYTHONPATH"], str(Path(__file__).parent)]),
}


@call
def every_operation():
    run("st", "run", *OPTIONS, "--max-examples=120", f"{TANDEM}/openapi.json", limit_s=1500, environment=HOOKS)


make_all()
