"""What calls in Python are written with: each a function under `@call`, then `make_all()`.

Runs in any client's environment: needs nothing but Python.
"""

import asyncio
import base64
import inspect
import json
import os
import subprocess
import sys
import traceback
from collections.abc import Callable
from pathlib import Path
from typing import Any

TANDEM = os.environ["TANDEM_URL"]
PLAYED = os.environ["PLAYED_URL"]
QUESTION = "What is a KV cache?"
# How the bundled model's answer to it begins.
ANSWER = "A KV cache"
ASKED = [{"role": "user", "content": QUESTION}]
_SHOWN_CHARACTERS = 1000

_calls: list[Callable[[], Any]] = []


def call(function: Callable[[], Any]) -> Callable[[], Any]:
    """A call of the client, which may be asynchronous: it passes when it returns."""
    _calls.append(function)
    return function


def script(*steps: str | list[dict[str, Any]]) -> str:
    """The words that make the played model say texts, or make calls: each {"call": name, "arguments": {...}}."""
    return "PLAY:" + base64.urlsafe_b64encode(json.dumps(steps).encode()).decode()


def run(*command: str, limit_s: float = 300, environment: dict[str, str] | None = None) -> str:
    """A program of the client's, from its environment's folder; what it printed. It must succeed."""
    done = subprocess.run(
        command,
        env=os.environ | (environment or {}),
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        timeout=limit_s,
        check=False,
    )
    print(done.args, done.returncode, done.stdout, done.stderr, sep="\n", flush=True)
    assert done.returncode == 0, f"it ended with {done.returncode}: {(done.stdout + done.stderr)[-_SHOWN_CHARACTERS:]}"
    return done.stdout


def refusal(kind: type[Exception], make: Callable[..., Any], **arguments: Any) -> Any:
    """The error of this kind that a call must end with."""
    try:
        make(**arguments)
    except kind as error:
        return error
    raise AssertionError("it was taken")


def make_all() -> None:
    """Make every call, in one event loop, and write what became of it."""
    with Path(os.environ["CALLS_RESULTS"]).open("a", encoding="utf-8") as results, asyncio.Runner() as runner:
        for function in _calls:
            failure = _failure(function, runner)
            name = function.__name__.replace("_", " ")
            print(name, failure or "passed", flush=True)
            results.write(json.dumps({"call": name, "failure": failure}) + "\n")
            results.flush()


def _failure(function: Callable[[], Any], runner: asyncio.Runner) -> str | None:
    """What went wrong, with the line of the call where it did."""
    try:
        if inspect.iscoroutine(made := function()):
            runner.run(made)
    except Exception as error:  # noqa: BLE001 - a call's boundary: whatever goes wrong is its failure
        traceback.print_exc(file=sys.stdout)
        frames = [frame for frame in traceback.extract_tb(error.__traceback__) if frame.name == function.__name__]
        return f"{type(error).__name__}: {error} ({frames[0].line if frames else ''})"[:_SHOWN_CHARACTERS]
    return None
