"""Whoever looks at what the workers do when, and what the workers say of it.

While somebody looks the Beats say so, and workers record their steps; nobody need do anything when workers come or plans change.
Passes on what they say as it is, with how far their clocks are ahead.
"""

import time
from collections import deque
from collections.abc import Callable, Iterator
from contextlib import contextmanager

import msgspec

from protocol.messages import StepsRecorded
from protocol.values import Buffer

# Of the last reports the one that took the least time on its way says best how far a clock is ahead.
_COMPARED = 64


class SaidSteps(msgspec.Struct, frozen=True):
    """What a worker said. clock_ahead_s: how far its clock is ahead of the coordinator's; report: a StepReport's JSON with that in it,
    one line.
    """

    worker: str
    report: bytes
    clock_ahead_s: float


Hear = Callable[[SaidSteps], None]


class WatchedSteps:
    """On the event loop. is_elsewhere: whether a worker may run on another host, with a clock of its own; clock: Unix seconds."""

    def __init__(self, is_elsewhere: Callable[[str], bool], clock: Callable[[], float] = time.time):
        self._is_elsewhere = is_elsewhere
        self._clock = clock
        self._hearers: list[Hear] = []
        self._ahead_s: dict[str, deque[float]] = {}

    def __repr__(self) -> str:
        return f"WatchedSteps({len(self._hearers)} look)"

    @property
    def are_watched(self) -> bool:
        """Whether anybody looks."""
        return bool(self._hearers)

    @contextmanager
    def watch(self, hear: Hear) -> Iterator[None]:
        """`hear` is told of every step while the block lasts, from the next Beat on; it neither waits nor raises."""
        self._hearers.append(hear)
        try:
            yield
        finally:
            self._hearers.remove(hear)
            if not self._hearers:
                self._ahead_s.clear()

    def recorded(self, message: StepsRecorded, report: Buffer) -> None:
        """A worker said what it did. What comes when nobody looks any more is dropped."""
        if not self._hearers:
            return
        ahead_s = self._ahead_s.setdefault(message.worker, deque(maxlen=_COMPARED))
        ahead_s.append(message.clock - self._clock() if self._is_elsewhere(message.worker) else 0.0)
        said = SaidSteps(message.worker, _with(bytes(report), max(ahead_s)), max(ahead_s))
        for hear in tuple(self._hearers):
            hear(said)


def _with(report: bytes, ahead_s: float) -> bytes:
    """In the object that a report is."""
    return b'%b,"clock_ahead_s":%.6f}' % (report.rstrip().removesuffix(b"}"), ahead_s)
