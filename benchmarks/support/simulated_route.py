"""A route whose stages and links take the time that their costs say, under the real schedule of a head: a simulation by events.

Runs `strategy.scheduling` and `strategy.chunking` as a head does; what a step takes on a stage and a link comes from
`strategy.cost`'s own values. So it shows what the closed form of the cost model leaves out: steps that wait for each other.
"""

import heapq
import itertools
from collections.abc import Sequence

import msgspec

from strategy.chunking import ChunkSize
from strategy.cost import RouteCosts, StageSpeed
from strategy.scheduling import Schedule, StepPlan

_MAX_ROWS = 32
_ID_BYTES = 200


class Request(msgspec.Struct, frozen=True, kw_only=True):
    """arrives_s: when; cached_tokens: of its prompt, already in the caches."""

    arrives_s: float
    prompt_tokens: int
    generated_tokens: int
    cached_tokens: int = 0


class SimulatedRoute:
    """See the module. Serves one list of requests."""

    def __init__(self, costs: RouteCosts, requests: Sequence[Request]):
        self._costs = costs
        self._requests = requests
        self._chunk_size = ChunkSize(
            num_stages=len(costs.stages), cost=costs.stages[0].chunk, fixed_tokens=costs.fixed_chunk_tokens
        )
        self._schedule = Schedule(
            num_stages=len(costs.stages),
            chunk_tokens=lambda prompt, done, left, decoding: self._chunk_size.tokens(
                prompt, done, num_decoding=decoding, num_left=left
            ),
            max_rows=_MAX_ROWS,
        )
        self._stage_free_s = [0.0] * len(costs.stages)
        self._link_free_s = [0.0] * len(costs.stages)
        self._events: list[tuple[float, int, int | StepPlan]] = []
        self._order = itertools.count()
        self._tokens_at: list[list[float]] = [[] for _ in requests]
        for number, request in enumerate(requests):
            self._happens(request.arrives_s, number)

    def __repr__(self) -> str:
        return f"SimulatedRoute({self._costs.route}, {len(self._requests)} requests)"

    def tokens_at(self, number: int) -> list[float]:
        """When each token of one request comes to the head; the others go on until then."""
        wanted = self._requests[number].generated_tokens
        while self._events and len(self._tokens_at[number]) < wanted:
            now, _, event = heapq.heappop(self._events)
            if isinstance(event, StepPlan):
                self._done(event, now)
            else:
                self._arrived(event)
            while step := self._schedule.next():
                self._happens(self._through(step, now), step)
        return self._tokens_at[number]

    def _happens(self, at_s: float, event: int | StepPlan) -> None:
        heapq.heappush(self._events, (at_s, next(self._order), event))

    def _arrived(self, number: int) -> None:
        request = self._requests[number]
        self._schedule.add(
            number,
            prompt_tokens=request.prompt_tokens,
            cached=True,
            computed_tokens=request.cached_tokens,
            runs_ahead=True,
        )

    def _done(self, step: StepPlan, now: float) -> None:
        self._schedule.done(step)
        for row in step.rows:
            arrived = self._tokens_at[row.sequence]
            if row.sample and len(arrived) < self._requests[row.sequence].generated_tokens:
                arrived.append(now)
                if len(arrived) == self._requests[row.sequence].generated_tokens:
                    self._schedule.remove(row.sequence)

    def _through(self, step: StepPlan, at_s: float) -> float:
        """When a step that is issued now is back at the head. Stages and links take steps in the order of issue."""
        costs, num_tokens = self._costs, sum(row.count for row in step.rows)
        for place, stage in enumerate(costs.stages):
            own_s = _seconds(stage, step)
            if not place:
                self._observe(step, own_s)
            at_s = self._stage_free_s[place] = max(at_s, self._stage_free_s[place]) + own_s
            if place < len(costs.stages) - 1:
                sent_s = num_tokens * stage.payload_bytes / costs.hops[place].bytes_per_s
                at_s = self._link_free_s[place] = max(at_s, self._link_free_s[place]) + sent_s
                at_s += costs.hops[place].latency_s
        return at_s if costs.route.is_single else at_s + costs.hops[-1].seconds(_ID_BYTES)

    def _observe(self, step: StepPlan, seconds: float) -> None:
        if step.slot is not None:
            self._chunk_size.observe_decode(seconds)
        else:
            self._chunk_size.observe_chunk(step.rows[0].start, step.rows[0].count, seconds)


def _seconds(stage: StageSpeed, step: StepPlan) -> float:
    if step.slot is None:
        return stage.chunk_s(step.rows[0].count, step.rows[0].start)
    return stage.decode_s(len(step.rows), sum(row.start for row in step.rows) / len(step.rows))
