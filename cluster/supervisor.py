"""The supervisor process that `start` leaves behind: `python -m cluster.supervisor --home HOME [--adopt]`.

Starts the coordinator, passes on what it tells of its start, and starts it again when it dies; one that does not answer
any more is ended first. `supervision` decides, this acts. With --adopt it watches the coordinator that the state names, which an earlier supervisor started.

Its standard input begins with a line, once the state names it: before that it does nothing. Until the coordinator is
ready for the first time the end of the input means that whoever asked for the start is gone, and it stops. When it is
killed itself, coordinator and workers go on, and a later `start` puts another supervisor in its place.
"""

import argparse
import contextlib
import json
import logging
import os
import selectors
import signal
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from pathlib import Path

import msgspec

from cluster import pulse
from cluster.started_logs import started_log_format
from cluster.supervision import Action, EndCluster, Phase, StartAgain, Supervision, Terminate
from protocol.home import ClusterState, DamagedState, Home, ProcessIdentity, end_processes
from protocol.logs import configure_logging

log = logging.getLogger(__name__)

COORDINATOR = (sys.executable, "-m", "cluster.coordinator")
_WORKER_GRACE_S = 3.0
_ADOPTED_POLL_S = 0.25
_INPUT = 0
_OUTPUT = 1


class CoordinatorProcess:
    """The coordinator's process: our child, or one that we adopted."""

    def __init__(self, identity: ProcessIdentity, child: "subprocess.Popen[bytes] | None" = None):
        self.identity = identity
        self._child = child
        self._unread = b""

    def __repr__(self) -> str:
        return f"CoordinatorProcess(pid {self.identity.pid}, {'adopted' if self._child is None else 'child'})"

    @property
    def is_child(self) -> bool:
        """Whether the system tells us when it ends."""
        return self._child is not None

    @property
    def report(self) -> int | None:
        """The descriptor of what it tells, while it may tell more."""
        if self._child is None or self._child.stdout is None or self._child.stdout.closed:
            return None
        return self._child.stdout.fileno()

    def read_report(self) -> list[bytes]:
        """The lines that it told since; never waits."""
        report = self.report
        if report is None:
            return []
        assert self._child is not None
        assert self._child.stdout is not None
        with contextlib.suppress(BlockingIOError):
            while piece := os.read(report, 1 << 16):
                self._unread += piece
            self._child.stdout.close()
        *lines, self._unread = self._unread.split(b"\n")
        return lines

    def has_ended(self) -> bool:
        return not self.identity.alive() if self._child is None else self._child.poll() is not None

    @property
    def status(self) -> int | None:
        """How it ended, as `subprocess` says it; None where it was not our child."""
        return None if self._child is None else self._child.returncode


class Supervisor:
    """See the module. command: what runs a coordinator, without its arguments."""

    def __init__(self, home: Home, command: Sequence[str] = COORDINATOR, *, adopt: bool = False):
        self._home = home
        self._command = command
        self._me = ProcessIdentity.of(os.getpid())
        self._supervision = Supervision(Phase.RUNNING if adopt else Phase.STARTING)
        self._coordinator: CoordinatorProcess | None = None
        self._pulse: pulse.Pulse | None = None
        self._is_watched = not adopt  # whether the end of our input means something
        self._exit_code: int | None = None

    def __repr__(self) -> str:
        return f"Supervisor({self._home}, {self._supervision})"

    def run(self) -> int:
        """Supervise until the cluster has ended; returns the exit code."""
        if not os.read(_INPUT, 16):
            return 1
        with _signals() as signals:
            if self._supervision.phase is Phase.STARTING:
                self._start(again=False)
            else:
                self._adopt()
            while self._exit_code is None:
                self._turn(signals)
        log.info("ended")
        return self._exit_code

    def _turn(self, signals: int) -> None:
        """Wait for something to happen, and do what follows from it."""
        happened = self._wait(signals)
        self._pass_on_report()
        if signals in happened and _asks_to_stop(os.read(signals, 256)):
            log.info("asked to stop")
            self._do(self._supervision.asked_to_stop())
        elif _INPUT in happened and self._is_watched:
            self._is_watched = False
            log.warning("whoever asked for the start is gone")
            self._do(self._supervision.asked_to_stop())
        if self._coordinator is not None and self._coordinator.has_ended():
            self._coordinator_ended(self._coordinator)
        self._do(self._supervision.handle_timer(time.monotonic()))

    def _wait(self, signals: int) -> set[int]:
        """The descriptors in which something arrived."""
        report = None if self._coordinator is None else self._coordinator.report
        with selectors.DefaultSelector() as selector:
            for descriptor in (signals, report, _INPUT if self._is_watched else None):
                if descriptor is not None:
                    selector.register(descriptor, selectors.EVENT_READ)
            return {key.fd for key, _ in selector.select(self._longest_wait_s())}

    def _longest_wait_s(self) -> float | None:
        due_at = self._supervision.next_timer
        if due_at is not None:
            return max(due_at - time.monotonic(), 0.0)
        return None if self._coordinator is None or self._coordinator.is_child else _ADOPTED_POLL_S

    def _pass_on_report(self) -> None:
        for line in [] if self._coordinator is None else self._coordinator.read_report():
            with contextlib.suppress(OSError):  # who asked for the start may be gone
                os.write(_OUTPUT, line + b"\n")
            if _tells_ready(line):
                self._do(self._supervision.ready(time.monotonic()))
                self._feel_pulse()
                self._is_watched = False
                _close_output()

    def _feel_pulse(self) -> None:
        assert self._coordinator is not None
        coordinator = self._coordinator.identity
        self._pulse = pulse.Pulse(self._answers, lambda: _end_silent(coordinator))

    def _answers(self) -> bool:
        """Whether the coordinator does; nothing can be said of one whose state cannot be read. On the pulse's thread."""
        state = self._state()
        return state is None or pulse.answers(state.api)

    def _coordinator_ended(self, coordinator: CoordinatorProcess) -> None:
        self._pass_on_report()
        self._coordinator = None
        if self._pulse is not None:
            self._pulse.end()
        log.warning("coordinator (pid %d) ended with status %s", coordinator.identity.pid, coordinator.status)
        status = coordinator.status
        if status is None and not self._is_named(coordinator.identity):
            status = 0  # one that stops takes its name off
        self._do(self._supervision.ended(status, time.monotonic()))

    def _is_named(self, coordinator: ProcessIdentity) -> bool:
        state = self._state()
        return state is not None and state.coordinator == coordinator

    def _state(self) -> ClusterState | None:
        try:
            return self._home.read_state()
        except DamagedState as error:
            log.error("%s", error)
            return None

    # --- what follows

    def _do(self, actions: tuple[Action, ...]) -> None:
        for action in actions:
            match action:
                case StartAgain():
                    self._start(again=True)
                case Terminate():
                    if self._coordinator is not None:
                        self._coordinator.identity.terminate()
                case EndCluster(exit_code=code, gave_up=gave_up):
                    self._end(code, gave_up=gave_up)

    def _start(self, *, again: bool) -> None:
        try:
            child = subprocess.Popen(
                [*self._command, "--home", str(self._home.root), *(["--again"] if again else [])],
                stdin=subprocess.DEVNULL,
                stdout=subprocess.PIPE,
                start_new_session=True,
            )
        except OSError as error:
            log.error("the coordinator cannot be started: %s", error)
            self._do(self._supervision.ended(1, time.monotonic()))
            return
        assert child.stdout is not None
        os.set_blocking(child.stdout.fileno(), False)
        self._coordinator = CoordinatorProcess(ProcessIdentity.of(child.pid), child)
        self._name(self._coordinator.identity)
        log.info("started coordinator (pid %d)%s", child.pid, " again" if again else "")

    def _name(self, coordinator: ProcessIdentity) -> None:
        """The coordinator names itself too, later; a disk that is full now is no reason to leave it alone."""
        try:
            self._home.update_state(lambda state: msgspec.structs.replace(state, coordinator=coordinator))
        except (OSError, DamagedState) as error:
            log.error("the state cannot be written: %s", error)

    def _adopt(self) -> None:
        state = self._state()
        if state is None or state.coordinator is None:
            self._do(self._supervision.ended(0, time.monotonic()))
            return
        self._coordinator = CoordinatorProcess(state.coordinator)
        log.info("adopted coordinator (pid %d)", state.coordinator.pid)
        self._feel_pulse()

    def _end(self, exit_code: int, *, gave_up: bool) -> None:
        state = self._state()
        num_left = end_processes(() if state is None else state.workers.values(), _WORKER_GRACE_S)
        if gave_up:  # the state stays, so that `status` can say what happened
            log.error("the coordinator died too often and is not started again; %d workers were ended", num_left)
        else:
            self._home.clear_state(self._me)
        self._exit_code = exit_code


def _end_silent(coordinator: ProcessIdentity) -> None:
    """Its death is noticed like any other."""
    log.error("coordinator (pid %d) does not answer any more and is ended", coordinator.pid)
    coordinator.kill()


@contextlib.contextmanager
def _signals() -> Iterator[int]:
    """The descriptor from which the numbers of signals can be read, as bytes."""
    arriving, sending = os.pipe()
    os.set_blocking(arriving, False)
    os.set_blocking(sending, False)
    for number in (signal.SIGCHLD, signal.SIGTERM, signal.SIGINT):
        signal.signal(number, lambda *_: None)
    signal.set_wakeup_fd(sending, warn_on_full_buffer=False)
    yield arriving
    signal.set_wakeup_fd(-1)
    os.close(arriving)
    os.close(sending)


def _asks_to_stop(numbers: bytes) -> bool:
    return signal.SIGTERM in numbers or signal.SIGINT in numbers


def _tells_ready(line: bytes) -> bool:
    """A line of the coordinator's report; anything else on its output (a library's print) is nothing to us."""
    try:
        message = json.loads(line)
    except ValueError:
        return False
    return isinstance(message, dict) and "ready" in message


def _close_output() -> None:
    with Path(os.devnull).open("wb") as nowhere:
        os.dup2(nowhere.fileno(), _OUTPUT)


def main(command: Sequence[str] = COORDINATOR) -> int:
    """Run the supervisor of one home."""
    parser = argparse.ArgumentParser(prog="supervisor", description="The supervisor of a Tandem cluster.")
    parser.add_argument("--home", required=True)
    parser.add_argument("--adopt", action="store_true", help="watch the coordinator that runs already")
    arguments = parser.parse_args()
    home = Home(Path(arguments.home))
    configure_logging(home, "supervisor", started_log_format(home))
    try:
        return Supervisor(home, command, adopt=arguments.adopt).run()
    except Exception:
        log.exception("the supervisor failed")
        return 1


if __name__ == "__main__":
    sys.exit(main())
