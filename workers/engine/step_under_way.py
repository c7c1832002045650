"""A step as the head of its route waits for it."""

from dataclasses import dataclass

from strategy.scheduling import StepPlan
from workers.engine.step_kind import StepKind


@dataclass
class StepUnderWay:
    """A step that has not come back. limit_s: when it is overdue, those in front of it included."""

    plan: StepPlan
    kind: StepKind
    num_tokens: int
    launched_at: float
    limit_s: float
    is_reported: bool = False
