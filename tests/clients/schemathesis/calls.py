"""Schemathesis on /openapi.json: what each operation answers to what its schema allows, and to what it does not."""

from calls import PLAYED, TANDEM, call, make_all, run

COMMON = ["--checks=all", "--seed=1", "--request-timeout=60", "--generation-database=none", "--no-color"]


@call
def before_the_bundled_model():
    run("st", "run", *COMMON, "--max-examples=10", f"{TANDEM}/openapi.json", limit_s=800)


@call
def before_the_played_model():
    run("st", "run", *COMMON, "--max-examples=100", f"{PLAYED}/openapi.json", limit_s=800)


make_all()
