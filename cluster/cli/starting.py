"""Starting a cluster: one supervisor process, detached, and the wait until its coordinator is ready.

The supervisor passes on what the coordinator tells until it is ready, JSON lines: {"progress": text}, with "done" and "total" where
bytes are counted, then {"ready": status} or {"error": sentence, "exit_code": n}. Whatever goes wrong before that, nothing is left
behind: also when this process is killed, for then the supervisor sees the end of its standard input.
"""

import json
import os
import select
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path
from typing import Any

import msgspec

from cluster.cli.last_start import remember_start
from cluster.cli.stopping import end_cluster, end_leftovers, read_state
from cluster.cli.terminal import Terminal
from cluster.cli.time_left import TimeLeft
from cluster.config import Resolved
from protocol.errors import TandemError
from protocol.home import ClusterState, Home, ProcessIdentity

SUPERVISOR = (sys.executable, "-m", "cluster.supervisor")
# A signal that arrives just before a wait is seen only at its end; so no wait is long.
_SIGNAL_POLL_S = 0.2
_LOCK_PATIENCE_S = 0.2
_OTHER_START_LIMIT_S = 600.0
_FAILED_START_GRACE_S = 5.0


class Started(msgspec.Struct, frozen=True, kw_only=True):
    """A cluster that runs. status: its /status, None when it ran before this call; process: the supervisor's."""

    state: ClusterState
    status: dict[str, Any] | None
    process: Any = None


class Starter:
    """Starts the cluster of `home` from the code in `checkout`. supervisor: the command, without its arguments."""

    def __init__(self, home: Home, checkout: Path, terminal: Terminal, supervisor: Sequence[str] = SUPERVISOR):
        self._home = home
        self._checkout = checkout
        self._terminal = terminal
        self._supervisor = supervisor
        self._said = ""

    def __repr__(self) -> str:
        return f"Starter({self._home!r})"

    def start(self, load: Callable[[], Resolved]) -> Started:
        """Start a cluster with the settings that `load` gives, unless one runs already.

        One whose supervisor died gets another.

        Raises:
            TandemError: it cannot start; the message says why, and nothing is left running.
        """
        self._home.create()
        with self._lock():
            state = read_state(self._home, self._terminal)
            if state is not None and (state.is_supervised or state.is_coordinated):
                if not state.is_supervised:
                    self._supervise_again()
                return Started(state=state, status=None)
            if state is not None:
                self._clean_up_after(state)
            resolved = load()
            api = resolved.settings.api
            check_port_free(api.host, api.port)
            self._home.write_private(self._home.settings_file, msgspec.json.encode(resolved.settings))
            started = self._run(api.host, api.port)
            remember_start(self._home, resolved)
            return started

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
            held.callback(self._home.start_file.unlink, missing_ok=True)
            yield

    def _clean_up_after(self, state: ClusterState) -> None:
        num_workers = end_leftovers(self._home, state)
        left = f"; {num_workers} of its workers still ran and were stopped" if num_workers else ""
        self._terminal.note(f"tandem: the cluster that ran before had died{left}.")

    def _supervise_again(self) -> None:
        process = self._spawn("--adopt", output=subprocess.DEVNULL)
        supervisor = ProcessIdentity.of(process.pid)
        self._home.update_state(lambda state: msgspec.structs.replace(state, supervisor=supervisor))
        _let_begin(process)
        _let_go(process)
        self._terminal.note("tandem: the cluster's supervisor had died; it has another now.")

    def _run(self, host: str, port: int) -> Started:
        process = self._spawn(output=subprocess.PIPE)
        supervisor = ProcessIdentity.of(process.pid)
        state = ClusterState(supervisor=supervisor, api=f"http://{host}:{port}", port=port, started_at=time.time())
        try:
            self._home.write_state(state)
            _let_begin(process)
            status = self._await_ready(process)
        except BaseException as error:  # also Ctrl-C and SIGTERM: a start that does not end well leaves nothing behind
            end_cluster(self._home, state, self._terminal, _FAILED_START_GRACE_S)
            _let_go(process)
            process.wait()
            if not isinstance(error, Exception):
                self._terminal.note("tandem: interrupted; nothing was left running.")
            raise
        _let_go(process)
        return Started(state=self._home.read_state() or state, status=status, process=process)

    def _spawn(self, *arguments: str, output: int) -> subprocess.Popen[bytes]:
        with (self._home.logs / "coordinator.out").open("ab") as log:
            return subprocess.Popen(
                [*self._supervisor, "--home", str(self._home.root), *arguments],
                cwd=self._checkout,
                stdin=subprocess.PIPE,
                stdout=output,
                stderr=log,
                start_new_session=True,
            )

    def _await_ready(self, process: subprocess.Popen[bytes]) -> dict[str, Any]:
        assert process.stdout is not None
        doing = TimeLeft("starting", time.monotonic())
        with process.stdout as output:
            for line in lines_of(output.fileno()):
                message, now = message_in(line), time.monotonic()
                if "progress" in message:
                    doing.tell(message["progress"], message.get("done"), message.get("total"), now)
                if "progress" in message or not line:
                    self._say(doing.said(now), now)
                elif "ready" in message:
                    self._terminal.done()
                    status: dict[str, Any] = message["ready"]
                    return status
                elif "error" in message:
                    error = TandemError(str(message["error"]))
                    error.exit_code = int(message.get("exit_code", 1))
                    raise error
        raise TandemError(f"the coordinator ended before it was ready; {self._home.logs}/coordinator.out says why")

    def _say(self, text: str, now: float) -> None:
        """Here, and to other commands that find this start under way."""
        self._terminal.progress(text, now)
        if text != self._said:
            self._said = text
            with suppress(OSError):
                self._home.start_file.write_text(text, encoding="utf-8")


def _let_begin(supervisor: subprocess.Popen[bytes]) -> None:
    """It is named in the state now. One that died already is noticed by the end of its output."""
    assert supervisor.stdin is not None
    with suppress(BrokenPipeError):
        os.write(supervisor.stdin.fileno(), b"begin\n")


def _let_go(supervisor: subprocess.Popen[bytes]) -> None:
    assert supervisor.stdin is not None
    supervisor.stdin.close()


def lines_of(descriptor: int) -> Iterator[bytes]:
    """What comes out of a pipe, line by line, until its end; an empty line for each moment in which nothing does."""
    unread = b""
    while True:
        if not select.select([descriptor], [], [], _SIGNAL_POLL_S)[0]:
            yield b""
            continue
        piece = os.read(descriptor, 1 << 16)
        if not piece:
            return
        *lines, unread = (unread + piece).split(b"\n")
        yield from lines


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


def message_in(line: bytes) -> dict[str, Any]:
    """What a JSON line of another process says; anything else on its output (a library's print) is nothing to us."""
    try:
        message = json.loads(line)
    except ValueError:
        return {}
    return message if isinstance(message, dict) else {}
