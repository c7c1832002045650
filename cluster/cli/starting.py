"""Starting a cluster: one coordinator process, detached, and the wait until it is ready.

The coordinator prints JSON lines on its stdout until it is ready: {"progress": text}, then {"ready": status} or
{"error": sentence, "exit_code": n}. Whatever goes wrong before that, nothing is left behind.
"""

import json
import os
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

import msgspec

from cluster.cli.stopping import end_cluster, end_leftovers, read_state
from cluster.cli.terminal import Terminal
from cluster.config import Resolved
from protocol.errors import TandemError
from protocol.home import ClusterState, Home, ProcessIdentity

COORDINATOR = (sys.executable, "-m", "cluster.coordinator")
_LOCK_PATIENCE_S = 0.2
_OTHER_START_LIMIT_S = 600.0
_FAILED_START_GRACE_S = 5.0


class Started(msgspec.Struct, frozen=True, kw_only=True):
    """A cluster that runs. status: its /status, None when it ran before this call."""

    state: ClusterState
    status: dict[str, Any] | None
    process: Any = None


class Starter:
    """Starts the cluster of `home` from the code in `checkout`. coordinator: the command, without its arguments."""

    def __init__(self, home: Home, checkout: Path, terminal: Terminal, coordinator: Sequence[str] = COORDINATOR):
        self._home = home
        self._checkout = checkout
        self._terminal = terminal
        self._coordinator = coordinator

    def __repr__(self) -> str:
        return f"Starter({self._home!r})"

    def start(self, load: Callable[[], Resolved]) -> Started:
        """Start a cluster with the settings that `load` gives, unless one runs already.

        Raises:
            TandemError: it cannot start; the message says why, and nothing is left running.
        """
        self._home.create()
        with self._lock():
            state = read_state(self._home, self._terminal)
            if state is not None and state.coordinator.alive():
                return Started(state=state, status=None)
            if state is not None:
                self._clean_up_after(state)
            resolved = load()
            api = resolved.settings.api
            check_port_free(api.host, api.port)
            self._home.write_private(self._home.settings_file, msgspec.json.encode(resolved.settings))
            return self._run(api.host, api.port)

    @contextmanager
    def _lock(self) -> Iterator[None]:
        """The home's lock; waits for another start, saying so."""
        with ExitStack() as held:
            try:
                held.enter_context(self._home.lock(_LOCK_PATIENCE_S))
            except TimeoutError:
                self._terminal.note("tandem: another start is under way; waiting for it.")
                try:
                    held.enter_context(self._home.lock(_OTHER_START_LIMIT_S))
                except TimeoutError:
                    raise TandemError("another start is still under way; stop it with `./launch.sh stop`") from None
            yield

    def _clean_up_after(self, state: ClusterState) -> None:
        num_workers = end_leftovers(self._home, state)
        left = f"; {num_workers} of its workers still ran and were stopped" if num_workers else ""
        self._terminal.note(f"tandem: the cluster that ran before had died{left}.")

    def _run(self, host: str, port: int) -> Started:
        with (self._home.logs / "coordinator.out").open("ab") as log:
            process = subprocess.Popen(
                [*self._coordinator, "--home", str(self._home.root)],
                cwd=self._checkout,
                stdin=subprocess.DEVNULL,
                stdout=subprocess.PIPE,
                stderr=log,
                start_new_session=True,
            )
        coordinator = ProcessIdentity.of(process.pid)
        state = ClusterState(coordinator=coordinator, api=f"http://{host}:{port}", port=port, started_at=time.time())
        try:
            self._home.write_state(state)
            status = self._await_ready(process)
        except BaseException as error:  # also Ctrl-C and SIGTERM: a start that does not end well leaves nothing behind
            end_cluster(self._home, coordinator, self._terminal, _FAILED_START_GRACE_S)
            process.wait()
            if not isinstance(error, Exception):
                self._terminal.note("tandem: interrupted; nothing was left running.")
            raise
        return Started(state=state, status=status, process=process)

    def _await_ready(self, process: subprocess.Popen[bytes]) -> dict[str, Any]:
        assert process.stdout is not None
        with process.stdout as lines:
            for line in lines:
                message = _message(line)
                if "progress" in message:
                    self._terminal.progress(str(message["progress"]))
                elif "ready" in message:
                    self._terminal.done()
                    status: dict[str, Any] = message["ready"]
                    return status
                elif "error" in message:
                    error = TandemError(str(message["error"]))
                    error.exit_code = int(message.get("exit_code", 1))
                    raise error
        raise TandemError(f"the coordinator ended before it was ready; {self._home.logs}/coordinator.out says why")


def check_port_free(host: str, port: int) -> None:
    """Raises TandemError when something listens on `host`:`port` already."""
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    with socket.socket(family, socket.SOCK_STREAM) as probe:
        # As servers do: a port that only waits for its last connections to time out is free.
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind((host, port))
        except OSError as error:
            reason = os.strerror(error.errno) if error.errno else str(error)
            raise TandemError(
                f"port {port} on {host} cannot be used ({reason}); stop what uses it or choose another with --port"
            ) from None


def _message(line: bytes) -> dict[str, Any]:
    """A JSON line of the coordinator; anything else on its stdout (a library's print) is nothing to us."""
    try:
        message = json.loads(line)
    except ValueError:
        return {}
    return message if isinstance(message, dict) else {}
