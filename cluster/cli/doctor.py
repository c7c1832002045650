"""Checks of this machine and of the cluster that runs: what Tandem needs, what is missing, what that costs, and what to do next."""

import importlib.metadata
import os
import platform
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Literal

from cluster.cli.session import Session
from cluster.cli.showing import size_text
from cluster.planning.hub import cached
from cluster.planning.model_files import check_weights, read_config, weight_files
from cluster.serving.examining import running
from cluster.serving.findings import Finding
from cluster.serving.machine import machine
from protocol.errors import TandemError
from protocol.host_memory import read_host_memory
from protocol.interfaces.names import unknown_sentence
from protocol.model_search import model_name
from protocol.transport.addressing import own_networks

_IMPORT_LIMIT_S = 60.0


def examine(session: Session) -> Iterator[Finding]:
    """Every check, in order, as it is done; what to do next is the last."""
    yield _python()
    yield _mlx()
    yield from machine()
    yield from _model(session)
    yield from _link_names(session)
    yield _home(session)
    status = session.status()
    yield from _cluster(status)
    yield _next(session, status)


def _python() -> Finding:
    found = f"Python {platform.python_version()} on {platform.system()} {platform.machine()}"
    if sys.version_info < (3, 11):  # noqa: UP036 - the check is the point
        return Finding(verdict="problem", text=f"{found}; Tandem needs 3.11 or newer")
    return Finding(verdict="ok", text=f"{found}, {os.cpu_count()} cores")


def _mlx() -> Finding:
    """MLX in a process of its own: a broken installation may end the process that imports it."""
    code = "import mlx.core as mx; mx.eval(mx.ones(8) + 1); print(mx.default_device())"
    try:
        done = subprocess.run(
            [sys.executable, "-c", code], capture_output=True, text=True, timeout=_IMPORT_LIMIT_S, check=False
        )
    except subprocess.TimeoutExpired:
        return Finding(verdict="problem", text=f"MLX did not load within {_IMPORT_LIMIT_S:.0f} s")
    if done.returncode != 0:
        reason = (done.stderr.strip().splitlines() or [f"exit status {done.returncode}"])[-1]
        return Finding(verdict="problem", text=f"MLX cannot be used: {reason}; remove .venv and start again")
    versions = ", ".join(f"{name} {importlib.metadata.version(name)}" for name in ("mlx", "mlx-lm"))
    return Finding(verdict="ok", text=f"{versions} on {done.stdout.strip()}")


def _model(session: Session) -> Iterator[Finding]:
    runs = session.running_state() is not None
    try:
        settings = (session.running_settings() if runs else None) or session.settings().settings
    except TandemError as error:
        yield Finding(verdict="problem", text=str(error))
        return
    location = settings.model.path
    found = Path(location) if Path(location).is_absolute() else cached(location)
    if found is None:
        yield Finding(
            verdict="ok",
            text=f"model {location}: of the hub, downloaded at a start; `doctor {location}` asks for it now",
        )
        return
    path = found
    try:
        architecture = read_config(path)["model_type"]
        check_weights(path)
    except TandemError as error:
        yield Finding(verdict="problem", text=str(error))
        return
    weights = sum(file.stat().st_size for file in weight_files(path))
    yield Finding(verdict="ok", text=f"model {model_name(path)}: {architecture}, {size_text(weights)} of weights")
    yield _memory(0 if runs else weights)


def _memory(weights_bytes: int) -> Finding:
    """weights_bytes: what has still to be read."""
    memory = read_host_memory()
    text = f"memory: {size_text(memory.free)} of {size_text(memory.total)} available"
    if memory.working_set is not None:
        text += f", {size_text(memory.working_set)} for the GPU at once"
    if memory.free < weights_bytes:
        return Finding(verdict="warning", text=f"{text}, less than the model's weights")
    return Finding(verdict="ok", text=text)


def _link_names(session: Session) -> Iterator[Finding]:
    try:
        names = session.settings().settings.links.names
    except TandemError:
        return  # the check of the model said so
    for name in names.unknown(own_networks().values()):
        yield Finding(verdict="warning", text=unknown_sentence(name))


def _home(session: Session) -> Finding:
    try:
        session.home.create()
    except TandemError as error:
        return Finding(verdict="problem", text=str(error))
    if not os.access(session.home.root, os.W_OK):
        return Finding(verdict="problem", text=f"{session.home.root} cannot be written; set TANDEM_HOME elsewhere")
    return Finding(verdict="ok", text=f"state and logs in {session.home.root}")


def _cluster(status: dict[str, Any]) -> Iterator[Finding]:
    if status["state"] == "stopped" and not status.get("note"):
        yield Finding(verdict="ok", text="no cluster runs")
    elif status.get("note"):
        verdict: Literal["ok", "warning"] = "ok" if status["state"] == "starting" else "warning"
        yield Finding(verdict=verdict, text=f"cluster {status['state']}: {status['note']}")
    elif not status["workers"]:
        yield Finding(verdict="ok", text=f"cluster {status['state']} at {status['api']}")
    else:
        yield from running(status)


def _next(session: Session, status: dict[str, Any]) -> Finding:
    """The command that gets somebody further from here."""
    if status["state"] == "stopped":
        text = "`./launch.sh start`, or `./launch.sh doctor MODEL` to see first whether another model fits"
    elif status["state"] == "degraded":
        text = "`./launch.sh start` brings back what is missing; `./launch.sh logs` says what happened"
    elif status["state"] == "starting":
        text = "`./launch.sh wait --for ready`"
    else:
        text = f"ask with `./launch.sh chat` or at {status['api']}/v1; `./launch.sh status --watch` shows the work"
        found = session.running_settings()
        if found is not None and not found.hosts and len(status["hosts"]) == 1:
            text += "; `./launch.sh token new` lets another machine help"
    return Finding(verdict="next", text=text)
