"""Routes whose stages and links take the time that their costs say, under the real schedules of their heads: a simulation by events.

Runs `strategy.scheduling` and `strategy.chunking` as heads do, in turns as a worker's engine gives them: it handles what arrived, a
step at a time, and then lets each head that it has run one step, who had none for longest first. What a step takes on a stage and
a link comes from `strategy.cost`'s own values. So it shows what the closed form of the cost model leaves out: steps that wait for
each other, on one route and on several that share workers.
"""

import heapq
import itertools
from collections import deque
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import msgspec

from strategy.chunking import ChunkSize
from strategy.cost import RouteCosts
from strategy.scheduling import Schedule
from strategy.stage_speed import Hop, StageSpeed
from strategy.step_plan import StepPlan
from strategy.vocabulary import Route

_MAX_ROWS = 32
_ID_BYTES = 200


class Placed(msgspec.Struct, frozen=True, kw_only=True):
    """A request on a route. read_by: who reads its prompt, and how the caches get from there, in tokens."""

    route: Route
    arrives_s: float
    prompt_tokens: int
    generated_tokens: int
    cached: bool = True
    cached_tokens: int = 0
    read_by: tuple[Route, Hop] | None = None


class _Head:
    """Of one route."""

    def __init__(self, costs: RouteCosts):
        self.costs = costs
        self._chunk_size = ChunkSize(
            num_stages=len(costs.stages), cost=costs.stages[0].chunk, fixed_tokens=costs.fixed_chunk_tokens
        )
        self.schedule = Schedule(num_stages=len(costs.stages), chunks=self._chunk_size, max_rows=_MAX_ROWS)

    def observe(self, step: StepPlan, seconds: float) -> None:
        """A step took so long on its stage."""
        if step.slot is not None:
            self._chunk_size.observe_decode(seconds)
        elif step.cached:
            self._chunk_size.observe_chunk(step.rows[0].start, step.rows[0].count, seconds)


class _Worker:
    """heads: in the order of their next turn. arrived: steps for a stage of this worker, or for none: they are back."""

    def __init__(self) -> None:
        self.heads: list[_Head] = []
        self.arrived: deque[tuple[_Head, StepPlan, int | None]] = deque()
        self.turn: deque[_Head] = deque()
        self.is_busy = False


class SimulatedWorkers:
    """See the module. Serves one list of requests."""

    def __init__(self, costs: Mapping[Route, RouteCosts], requests: Sequence[Placed]):
        self._requests = requests
        self._heads = {route: _Head(found) for route, found in costs.items()}
        self._workers = {name: _Worker() for route in costs for name in route.workers}
        for route, head in self._heads.items():
            self._workers[route.head].heads.append(head)
        self._link_free_s: dict[tuple[str, str], float] = {}
        self._events: list[tuple[float, int, Callable[..., None], tuple[Any, ...]]] = []
        self._order = itertools.count()
        self._tokens_at: list[list[float]] = [[] for _ in requests]
        self._now = 0.0
        for number, request in enumerate(requests):
            self._happens(request.arrives_s, self._begin, number)

    def __repr__(self) -> str:
        return f"SimulatedWorkers({list(self._workers)}, {len(self._requests)} requests)"

    def tokens_at(self, number: int) -> list[float]:
        """When each token of one request comes to its head; the others go on until then."""
        wanted = self._requests[number].generated_tokens
        while self._events and len(self._tokens_at[number]) < wanted:
            self._now, _, event, about = heapq.heappop(self._events)
            event(*about)
        return self._tokens_at[number]

    def _happens(self, at_s: float, event: Callable[..., None], *about: Any) -> None:
        heapq.heappush(self._events, (at_s, next(self._order), event, about))

    # --- sequences

    def _begin(self, number: int) -> None:
        request = self._requests[number]
        if request.read_by is None:
            self._add(request.route, number, request.cached_tokens)
        else:
            self._add(request.read_by[0], number, request.cached_tokens, reads_only=request.prompt_tokens - 1)

    def _add(self, route: Route, number: int, computed_tokens: int, *, reads_only: int | None = None) -> None:
        request = self._requests[number]
        self._heads[route].schedule.add(
            number,
            prompt_tokens=request.prompt_tokens,
            cached=request.cached,
            computed_tokens=computed_tokens,
            reads_only=reads_only,
        )
        self._wake(route.head)

    def _done(self, head: _Head, step: StepPlan) -> None:
        head.schedule.done(step)
        for row in step.rows:
            request = self._requests[row.sequence]
            if request.read_by is not None and head.costs.route == request.read_by[0]:
                self._read(head, row.sequence, row.start + row.count, row.count)
                continue
            arrived = self._tokens_at[row.sequence]
            if row.num_sampled and len(arrived) < request.generated_tokens:
                arrived.append(self._now)
                if len(arrived) == request.generated_tokens:
                    head.schedule.remove(row.sequence)

    def _read(self, head: _Head, number: int, end: int, chunk: int) -> None:
        """The caches of the last chunk go to who answers, behind those of the others."""
        request = self._requests[number]
        assert request.read_by is not None
        if end == request.prompt_tokens - 1:
            head.schedule.remove(number)
            self._happens(self._now + request.read_by[1].seconds(chunk), self._add, request.route, number, end)

    # --- workers

    def _wake(self, name: str) -> None:
        if not self._workers[name].is_busy:
            self._go_on(name)

    def _go_on(self, name: str) -> None:
        """Begin what an engine does next: what arrived, then a step of each head; nothing once a whole turn was idle."""
        worker = self._workers[name]
        worker.is_busy = False
        if self._take_turns(name, worker) or self._take_arrived(name, worker):
            return
        worker.turn.extend(worker.heads)
        self._take_turns(name, worker)

    def _take_turns(self, name: str, worker: _Worker) -> bool:
        while worker.turn:
            head = worker.turn.popleft()
            if step := head.schedule.next():
                worker.heads.remove(head)
                worker.heads.append(head)
                self._run(name, head, step, 0)
                return True
        return False

    def _take_arrived(self, name: str, worker: _Worker) -> bool:
        while worker.arrived:
            head, step, place = worker.arrived.popleft()
            if place is not None:
                self._run(name, head, step, place)
                return True
            self._done(head, step)
        return False

    def _run(self, name: str, head: _Head, step: StepPlan, place: int) -> None:
        self._workers[name].is_busy = True
        own_s = _seconds(head.costs.stages[place], step)
        if not place:
            head.observe(step, own_s)
        self._happens(self._now + own_s, self._ran, name, head, step, place)

    def _ran(self, name: str, head: _Head, step: StepPlan, place: int) -> None:
        route, stages = head.costs.route, head.costs.stages
        if len(stages) == 1:
            self._done(head, step)
        elif place == len(stages) - 1:
            at_s = self._now + head.costs.hops[place].seconds(_ID_BYTES)
            self._happens(at_s, self._arrive, route.head, head, step, None)
        else:
            num_bytes = sum(row.count for row in step.rows) * stages[place].payload_bytes
            link, hop = (name, route.workers[place + 1]), head.costs.hops[place]
            sent_at_s = max(self._now, self._link_free_s.get(link, 0.0)) + num_bytes / hop.bytes_per_s
            self._link_free_s[link] = sent_at_s
            self._happens(sent_at_s + hop.latency_s, self._arrive, link[1], head, step, place + 1)
        self._go_on(name)

    def _arrive(self, name: str, head: _Head, step: StepPlan, place: int | None) -> None:
        self._workers[name].arrived.append((head, step, place))
        self._wake(name)


def _seconds(stage: StageSpeed, step: StepPlan) -> float:
    """A batch is as long for all of its rows as for the longest."""
    if step.slot is None:
        return stage.chunk_s(step.rows[0].count, step.rows[0].start)
    return stage.decode_s(len(step.rows), max(row.start for row in step.rows))
