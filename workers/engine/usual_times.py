"""How long the steps of a route usually take, and from when on one counts as overdue.

Learned from the steps that ran: seconds for each decode step, seconds for each token of a prefill or a recompute. Knows
no clock; the seconds are told.
"""

from strategy.chunking import ChunkCost
from workers.engine.step_kind import StepKind

# A step is overdue after so many times what it usually takes, but never before SHORTEST_LIMIT_S: healthy processes on a
# crowded machine stand still for seconds.
OVERDUE_FACTOR = 10
SHORTEST_LIMIT_S = 5.0
# The limit of a kind of which nothing is known: it catches what hangs for ever and nothing that works.
LIMIT_OF_UNKNOWN_S = 60.0
_SMOOTHING = 0.2


class UsualTimes:
    """Of one route, on one stage or (`num_stages`) from its head and back. cost: of a chunk on one stage, as measured at load."""

    def __init__(self, cost: ChunkCost | None, *, num_stages: int = 1):
        self._cost = cost
        self._num_stages = num_stages
        self._learned_s: dict[StepKind, float] = {}  # a step or, where steps differ in length, a token

    def __repr__(self) -> str:
        learned = ", ".join(f"{kind.value} {seconds:.2g} s" for kind, seconds in self._learned_s.items())
        return f"UsualTimes({learned})"

    def observe(self, kind: StepKind, num_tokens: int, seconds: float) -> None:
        """A step of `num_tokens` tokens in all took this long."""
        unit_s = seconds if kind is StepKind.DECODE else seconds / num_tokens
        known_s = self._learned_s.get(kind, unit_s)
        self._learned_s[kind] = known_s + _SMOOTHING * (unit_s - known_s)

    def limit_s(self, kind: StepKind, num_tokens: int) -> float:
        """From how many seconds on a step of `num_tokens` tokens in all is overdue."""
        usual_s = self._usual_s(kind, num_tokens)
        return LIMIT_OF_UNKNOWN_S if usual_s is None else max(SHORTEST_LIMIT_S, OVERDUE_FACTOR * usual_s)

    def _usual_s(self, kind: StepKind, num_tokens: int) -> float | None:
        learned_s = self._learned_s.get(kind)
        if learned_s is not None:
            return learned_s if kind is StepKind.DECODE else learned_s * num_tokens
        if self._cost is not None:
            return self._num_stages * (self._cost.fixed_s + num_tokens * self._cost.token_s)
        return None
