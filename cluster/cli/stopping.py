"""Ending a cluster's processes, whatever state it is in.

Who leads it is asked first: the supervisor, or a coordinator without one. The coordinator drains its requests and stops
its workers, and the supervisor ends with it. What they leave behind, because they were killed or hang, is ended here:
the supervisor before the coordinator, which it would start again. Only processes whose identity matches are ever
signalled; those on other hosts by `./launch.sh hosted` there.
"""

import contextlib

from cluster.cli.finding import found_guests, found_state
from cluster.cli.terminal import Terminal
from protocol.home import ClusterState, DamagedState, Home, ProcessIdentity, end_processes

DRAIN_LIMIT_S = 35.0
_WORKER_GRACE_S = 3.0
_GUEST_GRACE_S = 5.0
_KILL_WAIT_S = 5.0
_POLL_S = 0.5
_LOCK_WAIT_S = 5.0


def stop_cluster(home: Home, terminal: Terminal, drain_limit_s: float = DRAIN_LIMIT_S) -> str:
    """Stop what `start` started here; returns a sentence that says what was done."""
    if not home.root.is_dir():
        return "Nothing is running."
    num_guests = end_processes(found_guests(home), _GUEST_GRACE_S)
    left = f"{num_guests} worker{'s' if num_guests > 1 else ''} of a cluster elsewhere"
    state = read_state(home, terminal)
    if state is None:
        return f"Stopped {left}." if num_guests else "Nothing is running."
    if num_guests:
        terminal.note(f"tandem: stopped {left}.")
    done, is_orderly = _end_leaders(home, state, terminal, drain_limit_s)
    # A start that waited for this coordinator ends now and frees the lock; a new start must not lose its state.
    with contextlib.suppress(TimeoutError), home.lock(_LOCK_WAIT_S):
        num_workers = end_leftovers(home, state)
        if not is_orderly and home.read_state() is None:
            from cluster.cli.leftovers import end_on_other_hosts

            num_workers += end_on_other_hosts(home, terminal)
        return f"{done}{_leftovers(num_workers)}."
    return f"{done}; another start or stop is under way."


def end_cluster(home: Home, state: ClusterState, terminal: Terminal, drain_limit_s: float) -> None:
    """End the cluster of a start that failed; the caller holds the lock."""
    _end_leaders(home, state, terminal, drain_limit_s)
    end_leftovers(home, state)


def end_leftovers(home: Home, state: ClusterState) -> int:
    """End the workers of a cluster whose leaders are gone and forget it; returns how many still lived."""
    current = _written_state(home)
    if current is not None and current.started_at != state.started_at:
        return 0  # it is another cluster's by now
    num_workers = end_processes((current or state).workers.values(), _WORKER_GRACE_S)
    home.clear_state()
    return num_workers


def read_state(home: Home, terminal: Terminal | None) -> ClusterState | None:
    """The state; where the file is damaged or names nobody who lives, of what is found running, if anything is."""
    try:
        state = home.read_state()
    except DamagedState as error:
        state = None
        if terminal is not None:
            terminal.note(f"tandem: {error}")
        home.clear_state()
    if state is not None and (state.is_supervised or state.is_coordinated):
        return state
    found = found_state(home)
    if found is None or not (found.is_supervised or found.is_coordinated):
        return state
    if terminal is not None:
        terminal.note("tandem: the state file did not name the cluster that runs here; it does again.")
    home.write_state(found)
    return found


def _end_leaders(home: Home, state: ClusterState, terminal: Terminal, drain_limit_s: float) -> tuple[str, bool]:
    """Ask supervisor and coordinator to end, and kill them when they do not; says what it came to, and whether the
    coordinator ended its workers itself.
    """
    if not (state.is_supervised or state.is_coordinated):
        return "The coordinator had already ended", False
    if not (state.supervisor is not None and state.supervisor.terminate()) and state.coordinator is not None:
        state.coordinator.terminate()
    waited_s = 0.0
    while waited_s < drain_limit_s and not _have_ended(state, min(_POLL_S, drain_limit_s)):
        waited_s += _POLL_S
        state = _as_it_is_now(home, state)
        terminal.progress(f"waiting for running requests ({waited_s:.0f} of at most {drain_limit_s:.0f} s)")
    terminal.done()
    state = _as_it_is_now(home, state)
    if not (state.is_supervised or state.is_coordinated):
        return "Stopped the cluster", True
    _kill(state.supervisor)
    _kill(_as_it_is_now(home, state).coordinator)
    return f"The coordinator did not stop within {drain_limit_s:.0f} s and was killed", False


def _kill(leader: ProcessIdentity | None) -> None:
    if leader is not None and leader.kill():
        leader.wait_gone(_KILL_WAIT_S)


def _have_ended(state: ClusterState, timeout_s: float) -> bool:
    """Whether supervisor and coordinator end within `timeout_s` seconds."""
    leaders = [leader for leader in (state.supervisor, state.coordinator) if leader is not None]
    return all(leader.wait_gone(timeout_s) for leader in leaders)


def _as_it_is_now(home: Home, state: ClusterState) -> ClusterState:
    """The state with the coordinator that its supervisor started last."""
    current = _written_state(home)
    return current if current is not None and current.started_at == state.started_at else state


def _written_state(home: Home) -> ClusterState | None:
    """What the file says, with nothing looked for and nothing mended: who ends takes the file away before it is gone itself."""
    try:
        return home.read_state()
    except DamagedState:
        return None


def _leftovers(num_workers: int) -> str:
    if num_workers == 0:
        return ""
    return f"; {num_workers} of its workers still ran and were stopped"
