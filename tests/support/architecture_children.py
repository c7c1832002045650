"""Processes that run tiny models of every architecture, and say one line of JSON of each case.

MLX checks no bounds, so a wrong configuration can end the process or take all memory: never in the test process.
"""

import gc
import inspect
import json
import os
import resource
import subprocess
import sys
import tempfile
from concurrent.futures import ThreadPoolExecutor
from functools import cache
from pathlib import Path
from types import SimpleNamespace

import mlx_lm.models.base

NUM_PROCESSES = 2  # at a time, one on each core of a small machine
_MEMORY_BYTES = 8 << 30
_LIMIT_S = 900


def outcomes_in_children(module, cases):
    """By case, what a module that ends with `print_outcomes` says of it. Raises AssertionError where one ends its process."""
    with ThreadPoolExecutor(NUM_PROCESSES) as pool:
        parts = [cases[first::NUM_PROCESSES] for first in range(NUM_PROCESSES)]
        return {
            case: said for part in pool.map(lambda part: _in_child(module, part), parts) for case, said in part.items()
        }


def _in_child(module, cases):
    ended = subprocess.run(
        [sys.executable, "-m", module, *cases],
        env=os.environ | {"MLX_DISABLE_COMPILE": "1", "OPENBLAS_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        timeout=_LIMIT_S,
        check=False,
    )
    lines = [line for line in ended.stdout.splitlines() if line.startswith("{")]  # mlx-lm prints as well
    outcomes = {outcome.pop("case"): outcome for outcome in map(json.loads, lines)}
    assert len(outcomes) == len(cases), f"{cases[len(outcomes)]} ended the process: {ended.stderr[-300:]}"
    return outcomes


def print_outcomes(cases, outcome):
    """In the child. outcome: of a case and an empty folder."""
    resource.setrlimit(resource.RLIMIT_AS, (_MEMORY_BYTES, _MEMORY_BYTES))
    # mlx-lm asks for the signature of a configuration's class once for each field.
    mlx_lm.models.base.inspect = SimpleNamespace(signature=cache(inspect.signature))
    gc.freeze()
    for case in cases:
        with tempfile.TemporaryDirectory() as directory:
            print(json.dumps({"case": case} | outcome(case, Path(directory))), flush=True)
