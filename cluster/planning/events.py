"""What happened to the cluster, for people: the last hundred events as sentences with their time."""

import time
from collections import deque
from collections.abc import Callable

import msgspec

_KEPT = 100


class ClusterEvent(msgspec.Struct, frozen=True):
    """at: Unix seconds; what: a clause such as "lost worker-1: ..."."""

    at: float
    what: str


class EventLog:
    """clock: Unix seconds, since people compare them with other logs."""

    def __init__(self, clock: Callable[[], float] = time.time):
        self._clock = clock
        self._events: deque[ClusterEvent] = deque(maxlen=_KEPT)

    def __repr__(self) -> str:
        return f"EventLog({len(self._events)})"

    def add(self, *happened: str) -> None:
        """Now, in this order."""
        self._events.extend(ClusterEvent(round(self._clock(), 3), what) for what in happened)

    @property
    def latest(self) -> tuple[ClusterEvent, ...]:
        """The oldest first."""
        return tuple(self._events)
