"""What the compute thread did when, kept while somebody looks.

Owns which request each sequence of a stage is for, and the latest steps that nobody took yet, a bounded number. Whoever looks says
so again and again: once that is missing nothing is kept any more, through all epochs. Sends nothing.
"""

import math
import time
from collections import deque
from collections.abc import Callable

from protocol.messages import CloseSequence, OpenSequence, Step
from protocol.step_reports import StepRecord
from protocol.values import Route
from workers.engine.step_kind import kind_of

# For so long after somebody was said to look.
WATCHED_FOR_S = 3.0
MOST_STEPS = 1024


class Timeline:
    """`watch`, `is_watched` and `take` are for any thread, the rest is the compute thread's. now: a clock that never goes back;
    clock: Unix seconds.
    """

    def __init__(self, now: Callable[[], float], clock: Callable[[], float] = time.time):
        self._now = now
        self._clock = clock
        self._watched_until = -math.inf
        self._epoch = 0
        self._requests: dict[Route, dict[int, str]] = {}
        self._steps: deque[StepRecord] = deque(maxlen=MOST_STEPS)

    def __repr__(self) -> str:
        return f"Timeline({len(self._steps)} steps, {'watched' if self.is_watched(self._now()) else 'not watched'})"

    def watch(self, now: float) -> None:
        """Somebody looks."""
        self._watched_until = now + WATCHED_FOR_S

    def is_watched(self, now: float) -> bool:
        """Whether somebody still does."""
        return now < self._watched_until

    def take(self) -> tuple[StepRecord, ...]:
        """The steps since the last time."""
        return tuple(self._steps.popleft() for _ in range(len(self._steps)))

    def renew(self, epoch: int) -> None:
        """A new epoch, in which steps count anew."""
        self._epoch = epoch
        self._requests.clear()

    def opened(self, message: OpenSequence) -> None:
        """A sequence is here."""
        self._requests.setdefault(message.route, {})[message.sequence] = str(message.request_id)

    def closed(self, message: CloseSequence) -> None:
        """It is here no more; a step of it may still be under way."""
        self._requests.get(message.route, {}).pop(message.sequence, None)

    def requests_of(self, step: Step) -> tuple[str, ...]:
        """Whom a step is for, row by row."""
        known = self._requests.get(step.route, {})
        return tuple(known[row.sequence] for row in step.rows if row.sequence in known)

    def ended(
        self, step: Step, requests: tuple[str, ...], began_at: float, seconds: float, passed_on: int | None
    ) -> None:
        """A step that began at `began_at`, by `now`, is done. passed_on: bytes that went to the next worker, where one follows."""
        record = StepRecord(
            n=step.number,
            epoch=self._epoch,
            route=str(step.route),
            kind=kind_of(step).value,
            at=round(self._clock() - (self._now() - began_at), 6),
            s=round(seconds, 6),
            tokens=step.size,
            requests=requests,
            bytes=passed_on,
        )
        self._steps.append(record)
