"""By how much longer this worker's steps take than when it was measured, as its machine is used by others or becomes hot.

A running mean of what steps took beside what their stage's speed says. Where nothing runs for long it is forgotten, or a worker
that was slow once would never get another part to show otherwise. `now` is told.
"""

import math

from protocol.messages import Step
from strategy.stage_speed import StageSpeed
from workers.engine.step_kind import StepKind, kind_of

_WEIGHT = 0.02
# Of one step; a longer pause is no slowness.
_LARGEST = math.log(8.0)
_HALVED_AFTER_S = 300.0
# What takes less is the host's work around it.
_LEAST_S = 0.0005


class Slowness:
    """See the module."""

    def __init__(self) -> None:
        self._mean_log = 0.0
        self._stepped_at = 0.0

    def __repr__(self) -> str:
        return f"Slowness({math.exp(self._mean_log):.2f})"

    def observe(self, speed: StageSpeed, step: Step, seconds: float, now: float) -> None:
        """A step on a stage took so long."""
        expected_s = _expected_s(speed, step)
        if expected_s < _LEAST_S or seconds <= 0:
            return
        log = min(max(math.log(seconds / expected_s), -_LARGEST), _LARGEST)
        self._mean_log += _WEIGHT * (log - self._mean_log)
        self._stepped_at = now

    def value(self, now: float) -> float:
        """1 for as fast as measured, 2 for twice as long."""
        rested_s = max(now - self._stepped_at, 0.0)
        return math.exp(self._mean_log * 0.5 ** (rested_s / _HALVED_AFTER_S))


def _expected_s(speed: StageSpeed, step: Step) -> float:
    start = step.rows[0].position
    match kind_of(step):
        case StepKind.DECODE if step.num_tokens == 1:
            return speed.decode_s(len(step.rows), start)
        case StepKind.DECODE | StepKind.PREFILL:
            return speed.chunk_s(step.size, start)
        case _:
            return speed.chunk_s(step.num_tokens, 0)
