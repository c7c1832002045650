"""Finds a cluster whose state file is damaged, gone or wrong: by its processes' own words.

Every process of a cluster has its home in its command line. What they say there, and the settings that the cluster was
started with, is what the state file said.
"""

import os
import time
from collections.abc import Iterator
from pathlib import Path

import msgspec
import psutil

from cluster.settings import Settings
from protocol.home import ClusterState, Home, ProcessIdentity

_SUPERVISOR, _COORDINATOR, _WORKER = "cluster.supervisor", "cluster.coordinator", "workers"


class _Api(msgspec.Struct):
    host: str
    port: int


class _Settings(msgspec.Struct):
    api: _Api


def found_state(home: Home) -> ClusterState | None:
    """The state of the cluster that runs in this home, None where no process leads one."""
    leaders: dict[str, ProcessIdentity] = {}
    workers: dict[str, ProcessIdentity] = {}
    for module, arguments, identity in _processes(home):
        if module == _WORKER and "--guest" in arguments:
            continue
        if module == _WORKER:
            workers[_after("--name", arguments)] = identity
        else:
            leaders[module] = identity
    try:
        api = msgspec.json.decode(home.settings_file.read_bytes(), type=_Settings).api
    except (OSError, ValueError):
        return None
    if not leaders and not workers:
        return None
    return ClusterState(
        supervisor=leaders.get(_SUPERVISOR),
        coordinator=leaders.get(_COORDINATOR),
        api=f"http://{api.host}:{api.port}",
        port=api.port,
        workers=workers,
        started_at=time.time(),
    )


def started_settings(home: Home) -> Settings | None:
    """What the last cluster of this home was started with; None when that cannot be read."""
    try:
        return msgspec.json.decode(home.settings_file.read_bytes(), type=Settings)
    except (OSError, ValueError):
        return None


def found_guests(home: Home, name: str | None = None) -> list[ProcessIdentity]:
    """Workers of this home that belong to clusters elsewhere; with `name`, the one of that name."""
    return [
        identity
        for module, arguments, identity in _processes(home)
        if module == _WORKER and "--guest" in arguments and name in (None, _after("--name", arguments))
    ]


def found_homes() -> list[Home]:
    """Every home that a process of this user works for."""
    return [Home(Path(root)) for root in sorted({_after("--home", arguments) for _, arguments, _ in _processes(None)})]


def _processes(home: Home | None) -> Iterator[tuple[str, list[str], ProcessIdentity]]:
    """Module, arguments and identity of every living process of this user that works for the home; for any without one."""
    for process in psutil.process_iter(["cmdline", "uids", "status"]):
        arguments, uids = process.info["cmdline"] or [], process.info["uids"]
        module = _after("-m", arguments)
        root = _after("--home", arguments)
        is_wanted = bool(root) if home is None else root == str(home.root)
        is_ours = module in (_SUPERVISOR, _COORDINATOR, _WORKER) and is_wanted
        if not is_ours or uids is None or uids.real != os.getuid() or process.info["status"] == psutil.STATUS_ZOMBIE:
            continue
        try:
            yield module, arguments, ProcessIdentity.of(process.pid)
        except ProcessLookupError:
            continue


def _after(word: str, arguments: list[str]) -> str:
    """What follows a word; empty where nothing does."""
    places = [place for place, argument in enumerate(arguments[:-1]) if argument == word]
    return arguments[places[-1] + 1] if places else ""
