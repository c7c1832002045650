"""What happened to the cluster lately, as `status` shows it: joined, lost, replanned, resumed, refused."""

import time
from collections import deque
from collections.abc import Callable

import msgspec

_MAX_EVENTS = 100


class Happening(msgspec.Struct, frozen=True):
    """at: Unix seconds; what: a clause for people."""

    at: float
    what: str


class EventLog:
    """The last 100. now: the time of day in Unix seconds."""

    def __init__(self, now: Callable[[], float] = time.time):
        self._now = now
        self._events: deque[Happening] = deque(maxlen=_MAX_EVENTS)

    def __repr__(self) -> str:
        return f"EventLog({len(self._events)} events)"

    def add(self, what: str) -> None:
        """It happened now."""
        self._events.append(Happening(self._now(), what))

    @property
    def last(self) -> tuple[Happening, ...]:
        """The oldest first."""
        return tuple(self._events)
