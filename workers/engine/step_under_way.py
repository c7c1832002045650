"""The steps of a route that its head waits for, and which of them should have come back."""

from collections.abc import Iterator
from dataclasses import dataclass

from protocol.messages import Row, Step, StepOverdue
from protocol.values import Route
from strategy.step_plan import StepPlan
from workers.engine.actions import Report
from workers.engine.fitness import UnfitMessage
from workers.engine.step_kind import StepKind, kind_of
from workers.engine.usual_times import UsualTimes


@dataclass
class StepUnderWay:
    """A step that has not come back. limit_s: when it is overdue, those in front of it included."""

    plan: StepPlan
    kind: StepKind
    size: int
    launched_at: float
    limit_s: float
    is_reported: bool = False


class StepsUnderWay:
    """See the module. usual: how long they take, from the head and back."""

    def __init__(self, route: Route, usual: UsualTimes):
        self._route = route
        self._usual = usual
        self._steps: dict[int, StepUnderWay] = {}  # oldest first
        self._num_steps = 0

    def __repr__(self) -> str:
        return f"StepsUnderWay({self._route}, {list(self._steps)})"

    def __len__(self) -> int:
        return len(self._steps)

    def __iter__(self) -> Iterator[int]:
        """Their numbers."""
        return iter(self._steps)

    def begin(self, plan: StepPlan, now: float) -> Step:
        """The step that is planned, under way from now on."""
        self._num_steps += 1
        num_tokens = max(row.count for row in plan.rows)
        step = Step(
            number=self._num_steps,
            route=self._route,
            slot=plan.slot,
            cached=plan.cached,
            rows=tuple(Row(row.sequence, row.start, row.num_sampled, num_tokens - row.count) for row in plan.rows),
            num_tokens=num_tokens,
        )
        kind = kind_of(step)
        limit_s = self._usual.limit_s(kind, step.size)
        for ahead in self._steps.values():
            limit_s = max(limit_s, ahead.limit_s)
        self._steps[step.number] = StepUnderWay(plan, kind, step.size, now, limit_s)
        return step

    def __getitem__(self, number: int) -> StepUnderWay:
        """Raises UnfitMessage for one that is not under way."""
        if number not in self._steps:
            raise UnfitMessage(f"step {number} of {self._route} is not in flight")
        return self._steps[number]

    def end(self, number: int) -> StepUnderWay:
        """It came back, or failed. Raises as `[]`."""
        done = self[number]
        del self._steps[number]
        return done

    def took(self, step: StepUnderWay, now: float) -> None:
        """A step came back now."""
        self._usual.observe(step.kind, step.size, now - step.launched_at)

    def overdue(self, now: float) -> list[Report]:
        """Steps that should have come back; each is told once."""
        late = [
            (number, step)
            for number, step in self._steps.items()
            if now - step.launched_at > step.limit_s and not step.is_reported
        ]
        for _, step in late:
            step.is_reported = True
        return [
            Report(
                StepOverdue(worker=self._route.head, route=self._route, number=number, seconds=now - step.launched_at)
            )
            for number, step in late
        ]
