"""The workers of a cluster as the coordinator knows them: one lifecycle each, and who is lost when.

Events in, facts out; `now` (seconds of a monotonic clock) is an argument. An illegal event raises `IllegalEvent` and
changes nothing.
"""

from enum import StrEnum

import msgspec

from protocol.messages import Heartbeat, Join
from protocol.values import LayerRange

LOST_AFTER_S = 3.0


class WorkerState(StrEnum):
    """Where a worker is in its life."""

    STARTING = "starting"
    JOINED = "joined"
    LOADING = "loading"
    READY = "ready"
    LOST = "lost"
    STOPPED = "stopped"


class WorkerEvent(StrEnum):
    """What can happen to a worker."""

    JOIN = "join"
    LOAD = "load"
    LOADED = "loaded"
    LOSE = "lose"
    STOP = "stop"


class IllegalEvent(Exception):
    """The event does not belong to the worker's state."""


_S, _E = WorkerState, WorkerEvent
TRANSITIONS: dict[tuple[WorkerState, WorkerEvent], WorkerState] = {
    (_S.STARTING, _E.JOIN): _S.JOINED,
    (_S.STARTING, _E.LOSE): _S.LOST,
    (_S.STARTING, _E.STOP): _S.STOPPED,
    (_S.JOINED, _E.LOAD): _S.LOADING,
    (_S.JOINED, _E.LOSE): _S.LOST,
    (_S.JOINED, _E.STOP): _S.STOPPED,
    (_S.LOADING, _E.LOADED): _S.READY,
    (_S.LOADING, _E.LOSE): _S.LOST,
    (_S.LOADING, _E.STOP): _S.STOPPED,
    (_S.READY, _E.LOSE): _S.LOST,
    (_S.READY, _E.STOP): _S.STOPPED,
    (_S.LOST, _E.LOSE): _S.LOST,
    (_S.LOST, _E.STOP): _S.STOPPED,
    (_S.STOPPED, _E.LOSE): _S.STOPPED,
    (_S.STOPPED, _E.STOP): _S.STOPPED,
}


class Load(msgspec.Struct, frozen=True, kw_only=True):
    """How busy a worker was between two heartbeats. batch_size: sequences in a step on average."""

    busy_share: float
    steps_per_s: float
    batch_size: float
    queue: int

    @classmethod
    def between(cls, earlier: Heartbeat, later: Heartbeat, seconds: float) -> "Load":
        """From the counts of two heartbeats `seconds` apart."""
        steps = later.steps - earlier.steps
        return cls(
            busy_share=round(min((later.busy_s - earlier.busy_s) / seconds, 1.0), 3),
            steps_per_s=round(steps / seconds, 1),
            batch_size=round((later.rows - earlier.rows) / steps, 2) if steps else 0.0,
            queue=later.queued,
        )


class Member:
    """One worker: its state, how to reach it, its stage, and what its last heartbeat said."""

    def __init__(self, name: str, *, memory_limit_bytes: int, manual_layers: LayerRange | None = None):
        self.name = name
        self.memory_limit_bytes = memory_limit_bytes
        self.manual_layers = manual_layers
        self.state = WorkerState.STARTING
        self.pid: int | None = None
        self.join: Join | None = None
        self.layers: LayerRange | None = None
        self.holds_full_model = False
        self.heartbeat: Heartbeat | None = None
        self.load = Load(busy_share=0.0, steps_per_s=0.0, batch_size=0.0, queue=0)
        self.loaded_bytes = 0
        self._last_seen = 0.0

    def __repr__(self) -> str:
        return f"Member({self.name}, {self.state})"

    def apply(self, event: WorkerEvent) -> None:
        """Move on. Raises IllegalEvent."""
        following = TRANSITIONS.get((self.state, event))
        if following is None:
            raise IllegalEvent(f"{self.name} is {self.state} and cannot {event}")
        self.state = following

    def admit(self, join: Join, now: float) -> None:
        """The worker joined. Raises IllegalEvent when it is not expected."""
        self.apply(WorkerEvent.JOIN)
        self.join = join
        self.pid = join.pid
        self._last_seen = now

    def beat(self, heartbeat: Heartbeat, now: float) -> None:
        """A heartbeat arrived."""
        if self.heartbeat is not None and now > self._last_seen:
            self.load = Load.between(self.heartbeat, heartbeat, now - self._last_seen)
        self.heartbeat = heartbeat
        self._last_seen = now

    def excuse(self, seconds: float, now: float) -> None:
        """The last `seconds` do not count as silence, because nobody listened."""
        self._last_seen = min(self._last_seen + seconds, now)

    def is_overdue(self, now: float) -> bool:
        """Whether a joined worker has been silent for too long."""
        connected = self.state in (WorkerState.JOINED, WorkerState.LOADING, WorkerState.READY)
        return connected and now - self._last_seen > LOST_AFTER_S

    @property
    def is_ready(self) -> bool:
        return self.state is WorkerState.READY
