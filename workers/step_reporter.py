"""When a worker says what steps it ran: a few times a second while somebody looks, and once more behind that."""

import time
from collections.abc import Callable

from protocol.messages import StepsRecorded
from protocol.step_reports import StepReport, encode_report
from workers.engine.timeline import Timeline

REPORT_EVERY_S = 0.25


class StepReporter:
    """On the control thread. name: this worker's; clock: Unix seconds."""

    def __init__(self, name: str, timeline: Timeline, clock: Callable[[], float] = time.time):
        self._name = name
        self._timeline = timeline
        self._clock = clock
        self.due_at: float | None = None  # None while nobody looks

    def __repr__(self) -> str:
        return f"StepReporter({self._name}, due at {self.due_at})"

    def report(self, now: float) -> tuple[StepsRecorded, tuple[bytes]] | None:
        """What is to be said now with its buffer, if anything."""
        is_watched = self._timeline.is_watched(now)
        if self.due_at is None and not is_watched:
            return None
        if self.due_at is not None and now < self.due_at:
            return None
        self.due_at = now + REPORT_EVERY_S if is_watched else None
        steps = self._timeline.take()
        if not steps:
            return None
        said = StepsRecorded(worker=self._name, clock=self._clock())
        return said, (encode_report(StepReport(self._name, steps)),)
