"""This machine as a worker of a cluster elsewhere: what its process is started with, in the foreground or behind it."""

import platform
import re
import subprocess
import sys
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import NamedTuple

from cluster.cli.session import Session
from cluster.config import parse_size
from cluster.membership.local import default_memory_limit, machine_options, worker_environment
from protocol.errors import TandemError, UsageError
from protocol.home import ProcessIdentity
from protocol.join_token import make_token, read_token
from protocol.joined import read_joined, way_back
from protocol.model_search import model_folders
from protocol.values import NAME_PATTERN

AUTO = "auto"
_ADDRESS = re.compile(r"(?:tcp://)?(\[[0-9a-fA-F:.]+\]|[A-Za-z0-9._-]+):([0-9]{1,5})")
_NAME = re.compile(NAME_PATTERN)
_BELONGS = "belongs to the cluster"
_JOIN_LIMIT_S = 60.0
_POLL_S = 0.1


class GuestProcess(NamedTuple):
    """Arguments and environment of `python -m workers`, and the name of the worker."""

    name: str
    arguments: list[str]
    environment: dict[str, str]


def guest_process(
    session: Session,
    *,
    address: str,
    token: str | None,
    name: str | None,
    memory_limit: str | None,
    environment: Mapping[str, str],
    find: Callable[[str], str],
) -> GuestProcess:
    """How to start the worker. token: None for one that was let in before; find: the endpoint of the cluster with that key, for the
    address `auto`.

    Raises:
        UsageError: the address, the token, the name or the size is none, or nothing is known of a cluster there.
        TandemError: `find` found nothing.
    """
    endpoint = None if address == AUTO else endpoint_in(address)
    if token is None:
        known = way_back(read_joined(session.home), endpoint, name)
        name, public_key, token = known.worker, known.public_key, make_token(known.public_key, "")
    else:
        name, public_key = name or own_name(), read_token(token)[0]
    if not _NAME.fullmatch(name):
        raise UsageError(f"--name {name!r} must be letters, digits, dots, dashes, underscores")
    session.home.create()
    arguments = ["--guest", "--name", name, "--home", str(session.home.root)]
    arguments += ["--memory-limit", str(bytes_of(memory_limit)), "--join", endpoint or find(public_key)]
    arguments += [
        *machine_options(session.settings().settings),
        *model_options(session.checkout, environment),
    ]
    return GuestProcess(name, arguments, worker_environment() | {"TANDEM_TOKEN": token})


def own_name() -> str:
    """A worker's name where none is given: this machine's."""
    return re.sub(r"[^A-Za-z0-9._-]", "-", platform.node().split(".")[0]).lstrip("._-")[:64] or "worker"


def model_options(checkout: Path, environment: Mapping[str, str]) -> list[str]:
    """Where a worker looks for models on this machine."""
    return [word for folder in model_folders(checkout, environment) for word in ("--models", str(folder))]


def endpoint_in(address: str) -> str:
    """The endpoint of an address as `token new` prints it. Raises UsageError."""
    match = _ADDRESS.fullmatch(address)
    if match is None or not 0 < int(match[2]) < 1 << 16:
        raise UsageError(f"--join {address!r} is no HOST:PORT; take it from what `./launch.sh token new` prints")
    return f"tcp://{match[1]}:{match[2]}"


def bytes_of(memory_limit: str | None) -> int:
    """The size that --memory-limit means. Raises UsageError."""
    if memory_limit is None:
        return default_memory_limit(1)
    try:
        size = parse_size(memory_limit)
    except ValueError:
        size = 0
    if size <= 0:
        raise UsageError(f'--memory-limit {memory_limit!r} is no size: give bytes or one such as "12GB"')
    return size


def start_behind(session: Session, guest: GuestProcess) -> int:
    """Start the worker behind the terminal; its pid, once it belongs to the cluster.

    Raises:
        TandemError: it ended, with what it said, or it was not let in for a minute.
    """
    said = session.home.logs / f"{guest.name}.out"
    with said.open("wb") as output:
        process = subprocess.Popen(
            [sys.executable, "-P", "-m", "workers", *guest.arguments],
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=output,
            cwd=session.checkout,
            env=guest.environment,
            start_new_session=True,
        )
    deadline = time.monotonic() + _JOIN_LIMIT_S
    while _BELONGS not in _text(said):
        if process.poll() is not None:
            raise TandemError(f"the worker ended: {_why_ended(said)}")
        if time.monotonic() >= deadline:
            ProcessIdentity.of(process.pid).kill()
            raise TandemError(
                f"the cluster did not answer for {_JOIN_LIMIT_S:.0f} s; check the address and the network"
            )
        session.terminal.progress("waiting to be let in")
        time.sleep(_POLL_S)
    session.terminal.done()
    return process.pid


def _text(file: Path) -> str:
    return file.read_text(encoding="utf-8", errors="replace")


def _why_ended(file: Path) -> str:
    """The last reason that it gave, or the last line."""
    lines = _text(file).strip().splitlines() or ["it said nothing"]
    reasons = [line.partition("ends: ")[2] for line in lines if "ends: " in line]
    return [*lines, *reasons][-1].removeprefix("tandem: ")
