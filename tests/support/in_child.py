"""Cases that run in a child process, one for all of a module, since one that ran MLX on several threads may abort when it ends."""

import json
import os
import subprocess
import sys
import traceback
from collections.abc import Callable
from functools import cache
from typing import NoReturn

# Against hanging for ever, on a machine that may be busy with other things.
_LIMIT_S = 600


def run_in_child(module: str, case: str) -> None:
    """A case of a module that ends with `run_cases`. Raises AssertionError with what it said where it failed."""
    outcomes = _outcomes(module)
    assert outcomes.get(case, outcomes["ended"]) == "ok"


@cache
def _outcomes(module: str) -> dict[str, str]:
    """What became of each case; ended: of the child, and so of what it did not come to."""
    child = subprocess.Popen([sys.executable, "-m", module], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    try:
        out, err = child.communicate(timeout=_LIMIT_S)
    except subprocess.TimeoutExpired:
        child.kill()
        out, err = child.communicate()
    told = [json.loads(line) for line in out.splitlines() if line.startswith("{")]  # mlx-lm prints as well
    return {line["case"]: line["outcome"] for line in told} | {"ended": f"{child.returncode}: {err[-300:]}"}


def run_cases(cases: dict[str, Callable[[], None]]) -> NoReturn:
    """In the child: every case, and a line for each."""
    for name, case in cases.items():
        print(json.dumps({"case": name, "outcome": _outcome(case)}), flush=True)
    os._exit(0)


def _outcome(case: Callable[[], None]) -> str:
    try:
        case()
    except Exception:  # noqa: BLE001  reported to the test
        return traceback.format_exc()
    return "ok"
