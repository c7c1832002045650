"""A `start` that may find a cluster running: is it the one that is asked for, is it whole, and if not, what to do.

Knows settings and states, nothing of options or of how a cluster is started or stopped.
"""

import json
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import msgspec

from cluster.cli.client import Client
from cluster.cli.pulling import pulled
from cluster.cli.session import ClusterDied, Session
from cluster.cli.starting import Started
from cluster.cli.stopping import stop_cluster
from cluster.config import Resolved, is_secret
from cluster.contradictions import API_KEYS
from cluster.serving.examining import absences
from cluster.settings import Settings
from protocol.errors import TandemError, UsageError
from protocol.home import ClusterState

# A cluster whose workers' states and loaded bytes stay the same for so long does not mend.
_STALLED_S = 120.0
_POLL_S = 0.1


def start_or_mend(session: Session, resolved: Resolved, *, replace: bool) -> tuple[Started, str | None]:
    """Start a cluster with these settings, or make the one that runs whole; also what was found where one ran.

    Raises:
        UsageError: one runs with other settings, and it is not to be replaced.
        TandemError: it cannot start or be mended.
    """
    if replace and session.running_state() is not None:
        _have_model(session, resolved)
        session.terminal.note(f"tandem: {stop_cluster(session.home, session.terminal)}")
    while True:
        started = session.starter.start(lambda: session.with_model(resolved))
        if started.status is not None:
            return started, None
        _refuse_other_settings(session, started.state, resolved.settings)
        try:
            return started, _make_whole(session, started.state)
        except ClusterDied:
            session.terminal.note("tandem: the cluster that ran ended; starting it anew.")


def _have_model(session: Session, resolved: Resolved) -> None:
    """Make sure of the model while the cluster that is to be replaced still serves. Raises TandemError."""
    location = session.with_model(resolved).settings.model.path
    if not Path(location).is_absolute():
        pulled(location, session.checkout, session.terminal)


def differences(running: Settings, asked: Settings) -> list[str]:
    """What is otherwise in `running`, a clause for each setting. Keys of the API are not shown."""
    if len(running.workers) != len(asked.workers):
        return [f"it has {len(running.workers)} workers, not {len(asked.workers)}"]
    if len(running.hosts) != len(asked.hosts):
        return [f"it has {len(running.hosts)} other hosts, not {len(asked.hosts)}"]
    if len(running.groups) != len(asked.groups):
        return [f"it has {len(running.groups)} groups, not {len(asked.groups)}"]
    if len(running.api.keys) != len(asked.api.keys):
        return [f"it has {len(running.api.keys)} [[{API_KEYS}]], not {len(asked.api.keys)}"]
    values, others = dict(_flat(msgspec.to_builtins(running))), dict(_flat(msgspec.to_builtins(asked)))
    return [
        f"{key} is another" if is_secret(key) else f"{key} is {_shown(values[key])}, not {_shown(others[key])}"
        for key in values
        if values[key] != others[key]
    ]


def _flat(value: Any, key: str = "") -> Iterator[tuple[str, Any]]:
    """Each setting with its key ("api.port", "workers[0].name")."""
    if isinstance(value, dict):
        for name, inner in value.items():
            # the values of a kind of cache stand in its section, as in the file
            yield from _flat(inner, key if name == "kv" else f"{key}.{name}" if key else name)
    elif key in ("workers", "hosts", "groups", API_KEYS):
        for index, inner in enumerate(value):
            yield from _flat(inner, f"{key}[{index}]")
    else:
        yield key, value


def _shown(value: Any) -> str:
    return "not set" if value is None else json.dumps(value)


def _refuse_other_settings(session: Session, state: ClusterState, asked: Settings) -> None:
    running = session.running_settings()
    found = [] if running is None else differences(running, asked)
    if found:
        raise UsageError(
            f"a cluster with other settings runs at {state.api}: {'; '.join(found)}. "
            "`./launch.sh start --replace` with these options puts a new one in its place"
        )


def _make_whole(session: Session, state: ClusterState) -> str:
    client = session.client(state)
    status = session.await_status(client)
    if status["state"] == "ready":
        return f"Already running at {state.api} (pid {status['coordinator']['pid']}); `./launch.sh stop` ends it."
    names = client.post("/v1/cluster/mend", {})["mending"]
    if not names:
        raise TandemError(
            f"the cluster at {state.api} is {status['state']} and nothing of it can be brought back; "
            "`./launch.sh start --replace` starts it anew"
        )
    _await_whole(session, client)
    return f"Mended the cluster at {state.api}: started {', '.join(names)} again."


def _await_whole(session: Session, client: Client) -> None:
    """Wait for as long as something changes. Raises TandemError."""
    last, changed_at = None, time.monotonic()
    while (status := session.await_status(client))["state"] != "ready":
        now = time.monotonic()
        seen = [(worker["name"], worker["state"], worker["memory"]["weights_bytes"]) for worker in status["workers"]]
        if seen != last:
            last, changed_at = seen, now
        elif now - changed_at > _STALLED_S:
            why = "; ".join(absences(status)) or "`./launch.sh logs` says why"
            raise TandemError(f"the cluster does not become whole; {why}")
        session.terminal.progress("waiting for the workers that are brought back")
        time.sleep(_POLL_S)
    session.terminal.done()
