"""Ending a cluster's processes, whatever state it is in.

The coordinator is asked first: it drains its requests and stops its workers. What it leaves behind, because it was
killed or hangs, is ended here. Only processes whose identity matches are ever signalled.
"""

import contextlib

from cluster.cli.terminal import Terminal
from protocol.home import ClusterState, DamagedState, Home, ProcessIdentity

DRAIN_LIMIT_S = 35.0
_WORKER_GRACE_S = 3.0
_KILL_WAIT_S = 5.0
_LOCK_WAIT_S = 5.0


def stop_cluster(home: Home, terminal: Terminal, drain_limit_s: float = DRAIN_LIMIT_S) -> str:
    """Stop what `start` started here; returns a sentence that says what was done."""
    if not home.root.is_dir():
        return "Nothing is running."
    state = read_state(home, terminal)
    if state is None:
        return "Nothing is running."
    coordinator = _end_coordinator(state.coordinator, terminal, drain_limit_s)
    # A start that waited for this coordinator ends now and frees the lock; a new start must not lose its state.
    with contextlib.suppress(TimeoutError), home.lock(_LOCK_WAIT_S):
        num_workers = end_leftovers(home, state)
        return f"{coordinator}{_leftovers(num_workers)}."
    return f"{coordinator}; another start or stop is under way."


def end_cluster(home: Home, coordinator: ProcessIdentity, terminal: Terminal, drain_limit_s: float) -> None:
    """End `coordinator` and its workers for a start that failed; the caller holds the lock."""
    _end_coordinator(coordinator, terminal, drain_limit_s)
    state = read_state(home, terminal)
    if state is not None:
        end_leftovers(home, state)


def end_leftovers(home: Home, state: ClusterState) -> int:
    """End the workers of a coordinator that is gone and forget it; returns how many still lived."""
    current = read_state(home, None)
    if current is not None and current.coordinator != state.coordinator:
        return 0
    workers = (current or state).workers.values()
    asked = [worker for worker in workers if worker.terminate()]
    for worker in asked:
        if not worker.wait_gone(_WORKER_GRACE_S):
            worker.kill()
            worker.wait_gone(_KILL_WAIT_S)
    home.clear_state()
    return len(asked)


def read_state(home: Home, terminal: Terminal | None) -> ClusterState | None:
    """The state; a damaged file counts as none, and is said so and removed."""
    try:
        return home.read_state()
    except DamagedState as error:
        if terminal is not None:
            terminal.note(f"tandem: {error}")
        home.clear_state()
        return None


def _end_coordinator(coordinator: ProcessIdentity, terminal: Terminal, drain_limit_s: float) -> str:
    if not coordinator.terminate():
        return "The coordinator had already ended"
    waited_s = 0.0
    while waited_s < drain_limit_s and not coordinator.wait_gone(0.5):
        waited_s += 0.5
        terminal.progress(f"waiting for running requests ({waited_s:.0f} of at most {drain_limit_s:.0f} s)")
    terminal.done()
    if not coordinator.alive():
        return "Stopped the cluster"
    coordinator.kill()
    coordinator.wait_gone(_KILL_WAIT_S)
    return f"The coordinator did not stop within {drain_limit_s:.0f} s and was killed"


def _leftovers(num_workers: int) -> str:
    if num_workers == 0:
        return ""
    return f"; {num_workers} of its workers still ran and were stopped"
