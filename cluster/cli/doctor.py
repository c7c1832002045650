"""Checks of this machine: what Tandem needs, what is missing, and what that costs."""

import importlib.metadata
import os
import platform
import socket
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Literal

import msgspec

from cluster.cli.session import Session
from cluster.cli.showing import size_text
from cluster.membership.local import find_openblas
from cluster.planning.model_files import check_weights, read_config, weight_files
from protocol.errors import TandemError
from protocol.host_memory import read_host_memory
from protocol.interfaces.findings import findings
from protocol.interfaces.names import unknown_sentence
from protocol.interfaces.reading import read_host
from protocol.transport.addressing import own_networks

_IMPORT_LIMIT_S = 60.0


class Finding(msgspec.Struct, frozen=True, kw_only=True):
    """The result of one check."""

    verdict: Literal["ok", "warning", "problem"]
    text: str


def examine(session: Session) -> Iterator[Finding]:
    """Every check, in order, as it is done."""
    yield _python()
    yield _mlx()
    if sys.platform == "linux":
        yield _openblas(find_openblas())
    yield from _model(session)
    yield from _network()
    yield from _link_names(session)
    yield _home(session)
    yield _cluster(session)


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


def _openblas(library: str | None) -> Finding:
    if library is None:
        return Finding(
            verdict="warning",
            text="OpenBLAS is not installed: float32 prompts are read about ten times slower on this machine's CPU; "
            "install it with `apt-get install libopenblas0-pthread`",
        )
    return Finding(verdict="ok", text=f"OpenBLAS: {library}")


def _model(session: Session) -> Iterator[Finding]:
    try:
        settings = session.settings().settings
    except TandemError as error:
        yield Finding(verdict="problem", text=str(error))
        return
    path = Path(settings.model.path)
    if not path.is_absolute():
        yield Finding(verdict="ok", text=f"model {settings.model.path}: a hub id, looked up at start")
        return
    try:
        architecture = read_config(path)["model_type"]
        check_weights(path)
    except TandemError as error:
        yield Finding(verdict="problem", text=str(error))
        return
    weights = sum(file.stat().st_size for file in weight_files(path))
    yield Finding(verdict="ok", text=f"model {path.name}: {architecture}, {size_text(weights)} of weights")
    yield _memory(weights)


def _memory(weights_bytes: int) -> Finding:
    memory = read_host_memory()
    text = f"memory: {size_text(memory.free)} of {size_text(memory.total)} available"
    if memory.working_set is not None:
        text += f", {size_text(memory.working_set)} for the GPU at once"
    if memory.free < weights_bytes:
        return Finding(verdict="warning", text=f"{text}, less than the model's weights")
    return Finding(verdict="ok", text=text)


def _network() -> Iterator[Finding]:
    """What of this machine's cables and networks makes it a slower neighbour than it could be."""
    try:
        facts = read_host(socket.gethostname())
    except OSError as error:
        yield Finding(verdict="warning", text=f"the network interfaces cannot be read: {error.strerror}")
        return
    named = ", ".join(f"{each.name} ({each.kind})" for each in facts.interfaces) or "none that leads to other machines"
    yield Finding(verdict="ok", text=f"network: {named}")
    for clause in findings((facts,)):
        yield Finding(verdict="warning", text=clause)


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


def _cluster(session: Session) -> Finding:
    status = session.status()
    if status.get("note"):
        return Finding(verdict="warning", text=f"cluster {status['state']}: {status['note']}")
    if status["state"] == "stopped":
        return Finding(verdict="ok", text="no cluster runs")
    verdict: Literal["ok", "warning"] = "ok" if status["state"] in ("ready", "starting") else "warning"
    return Finding(verdict=verdict, text=f"cluster {status['state']} at {status['api']}")
