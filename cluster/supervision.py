"""What the supervisor of a coordinator does next: events in, actions out. Knows no processes, and no clock of its own.

Rules: the coordinator's first start is its user's business: when it fails, that is the end. A coordinator that was ready
once is started again when it dies: at once, unless its life was short (it ended before it was ready, or within a second
of that): then `Restarts` says when, and whether to give up. A coordinator that ends with status 0, or by SIGTERM before
it could take that as a wish, was stopped.
"""

import signal
from enum import StrEnum

import msgspec

from cluster.membership.restarts import Restarts
from protocol.errors import IllegalEvent

SHORT_LIFE_S = 1.0
_COORDINATOR = "coordinator"


class Phase(StrEnum):
    """Where a supervisor is in its life. STARTING: for the first time; RESTARTING: again, not ready yet."""

    STARTING = "starting"
    RUNNING = "running"
    WAITING = "waiting"
    RESTARTING = "restarting"
    STOPPING = "stopping"
    ENDED = "ended"


class Happening(StrEnum):
    """What can happen to it. STOPPED, DIED: the coordinator ended; DUE: the wait before a restart is over."""

    READY = "ready"
    STOPPED = "stopped"
    DIED = "died"
    DIED_TOO_OFTEN = "died too often"
    DUE = "due"
    ASKED_TO_STOP = "asked to stop"


_P, _H = Phase, Happening
TRANSITIONS: dict[tuple[Phase, Happening], Phase] = {
    (_P.STARTING, _H.READY): _P.RUNNING,
    (_P.STARTING, _H.STOPPED): _P.ENDED,
    (_P.STARTING, _H.DIED): _P.ENDED,
    (_P.STARTING, _H.ASKED_TO_STOP): _P.STOPPING,
    (_P.RUNNING, _H.STOPPED): _P.ENDED,
    (_P.RUNNING, _H.DIED): _P.WAITING,
    (_P.RUNNING, _H.DIED_TOO_OFTEN): _P.ENDED,
    (_P.RUNNING, _H.ASKED_TO_STOP): _P.STOPPING,
    (_P.WAITING, _H.DUE): _P.RESTARTING,
    (_P.WAITING, _H.ASKED_TO_STOP): _P.ENDED,
    (_P.RESTARTING, _H.READY): _P.RUNNING,
    (_P.RESTARTING, _H.STOPPED): _P.ENDED,
    (_P.RESTARTING, _H.DIED): _P.WAITING,
    (_P.RESTARTING, _H.DIED_TOO_OFTEN): _P.ENDED,
    (_P.RESTARTING, _H.ASKED_TO_STOP): _P.STOPPING,
    (_P.STOPPING, _H.READY): _P.STOPPING,
    (_P.STOPPING, _H.STOPPED): _P.ENDED,
    (_P.STOPPING, _H.DIED): _P.ENDED,
    (_P.STOPPING, _H.ASKED_TO_STOP): _P.STOPPING,
}


class StartAgain(msgspec.Struct, frozen=True):
    """Start a coordinator in place of the one that died."""


class Terminate(msgspec.Struct, frozen=True):
    """Ask the coordinator to stop."""


class EndCluster(msgspec.Struct, frozen=True):
    """End what is left of the cluster, then oneself with this exit code. gave_up: the coordinator died too often."""

    exit_code: int
    gave_up: bool = False


Action = StartAgain | Terminate | EndCluster


class Supervision:
    """One supervisor's life, from the start of a coordinator or, with `phase` RUNNING, from one that runs already."""

    def __init__(self, phase: Phase = Phase.STARTING):
        self.phase = phase
        self._restarts = Restarts()
        self._ready_at: float | None = None
        self._due_at: float | None = None

    def __repr__(self) -> str:
        return f"Supervision({self.phase})"

    @property
    def next_timer(self) -> float | None:
        """When to call `handle_timer`, or None."""
        return self._due_at

    def ready(self, now: float) -> tuple[Action, ...]:
        """The coordinator is ready. Raises IllegalEvent, as the other events do."""
        self._apply(Happening.READY)
        self._ready_at = now
        return ()

    def ended(self, status: int | None, now: float) -> tuple[Action, ...]:
        """The coordinator ended; status: as of `subprocess`, None where a death is all that is known."""
        starting, stopping = self.phase is Phase.STARTING, self.phase is Phase.STOPPING
        if status in (0, -signal.SIGTERM):
            self._apply(Happening.STOPPED)
            return (EndCluster(0),)
        if starting or stopping or self.phase in (Phase.WAITING, Phase.ENDED):
            self._apply(Happening.DIED)
            return (EndCluster(_exit_code(status) if starting else 0),)
        due_at = self._due_after_death(now)
        self._apply(Happening.DIED_TOO_OFTEN if due_at is None else Happening.DIED)
        self._ready_at = None
        self._due_at = due_at
        return (EndCluster(1, gave_up=True),) if due_at is None else ()

    def handle_timer(self, now: float) -> tuple[Action, ...]:
        """The time of `next_timer` may have come."""
        if self._due_at is None or now < self._due_at:
            return ()
        self._apply(Happening.DUE)
        self._due_at = None
        return (StartAgain(),)

    def asked_to_stop(self) -> tuple[Action, ...]:
        """Somebody wants the cluster to end."""
        self._apply(Happening.ASKED_TO_STOP)
        self._due_at = None
        return (EndCluster(0),) if self.phase is Phase.ENDED else (Terminate(),)

    def _due_after_death(self, now: float) -> float | None:
        is_short = self.phase is Phase.RESTARTING or (
            self._ready_at is not None and now - self._ready_at < SHORT_LIFE_S
        )
        return self._restarts.died(_COORDINATOR, now) if is_short else now

    def _apply(self, happening: Happening) -> None:
        following = TRANSITIONS.get((self.phase, happening))
        if following is None:
            raise IllegalEvent(f"the supervisor is {self.phase} and cannot take {happening!r}")
        self.phase = following


def _exit_code(status: int | None) -> int:
    """What tells a failed start: the coordinator's own code, or 1 where a signal ended it."""
    return status if status is not None and status > 0 else 1
