"""What each worker is busy with on every route, as the load of routes changes: whoever goes through it has to wait for the others.

Keeps what a route does on each of its workers, so that asking costs no more than the route is long. Pure: told of loads, knows no
requests.
"""

from collections.abc import Iterable, Mapping

from strategy.alone import Alone
from strategy.cost import RequestWork, RouteCosts, RouteLoad, batches, chunk_tokens
from strategy.sharing import Busy, Elsewhere, Visits
from strategy.vocabulary import Route

_IDLE = RouteLoad()


class Occupation:
    """On one plan's routes. costs: of each; a route without costs occupies nobody. alone: workers on routes of their own."""

    def __init__(self, costs: Mapping[Route, RouteCosts]):
        self._costs = costs
        self.alone = Alone((route, found) for route, found in costs.items() if route.is_single)
        self._loads: dict[Route, RouteLoad] = {}
        self._of_worker: dict[str, dict[Route, Visits]] = {}
        self._held_up_s: dict[Route, float] = {}  # as asked for since the last change, like the next
        self._beside: dict[Route, Busy] = {}

    def __repr__(self) -> str:
        return f"Occupation({len(self._loads)} routes in use)"

    def load(self, route: Route) -> RouteLoad:
        """What runs there."""
        return self._loads.get(route, _IDLE)

    def num_there(self, route: Route) -> int:
        """How many sequences, whatever they do."""
        load = self.load(route)
        return load.decoding + load.reading + load.uncached

    @property
    def most_used(self) -> Route | None:
        """Where most sequences are; None where none are."""
        return max(self._loads, key=self.num_there, default=None)

    def changed(self, loads: Mapping[Route, RouteLoad]) -> None:
        """What runs now; routes that are not in `loads` are idle."""
        for route in [*self._loads, *loads]:
            load = loads.get(route, _IDLE)
            if load != self.load(route):
                self._replace(route, load)

    def _replace(self, route: Route, load: RouteLoad) -> None:
        self._beside.clear()
        self._held_up_s.clear()
        costs = self._costs.get(route)
        visits = {} if costs is None else visited(costs, load)
        for worker in route.workers:
            there = self._of_worker.setdefault(worker, {})
            there.pop(route, None)
            if worker in visits:
                there[route] = visits[worker]
            if not there:
                del self._of_worker[worker]
        if route in self.alone.places:
            self.alone.changed(route, load)
        self._loads[route] = load
        if load == _IDLE:
            del self._loads[route]

    def beside(self, route: Route) -> Busy:
        """What each worker of a route does on others."""
        if route not in self._beside:
            self._beside[route] = self._found_beside(route)
        return self._beside[route]

    def _found_beside(self, route: Route) -> Busy:
        found: dict[int, Elsewhere] = {}
        for place, worker in enumerate(route.workers):
            others = self._others(worker, route)
            if others:  # all ranks of a stage wait for the busiest
                stage, is_waited_for = place // route.ranks, not place or route.ranks > 1
                there = Elsewhere(tuple(self._as_it_is(worker, each, route) for each in others), is_waited_for)
                found[stage] = max(found.get(stage, there), there, key=_busyness)
        return Busy(found)

    def _others(self, worker: str, *but: Route) -> list[Route]:
        return [route for route in self._of_worker.get(worker, {}) if route not in but]

    def _as_it_is(self, worker: str, other: Route, route: Route) -> Visits:
        """What another route does on a worker, as far as others but this one hold it up."""
        visits = self._of_worker[worker][other]
        if other.num_stages == 1:
            return visits
        if other not in self._held_up_s:
            self._held_up_s[other] = sum(self._wait_s(each, other) for each in other.workers)
        shared = [each for each in other.workers if route in self._of_worker.get(each, {})]
        less_s = sum(self._wait_s(each, other) - self._wait_s(each, other, route) for each in shared)
        turn = self._of_worker[other.head][other]
        turn_s = turn.step_s + self._elsewhere(other.head, other, route).between_s(turn.step_s)
        return visits.every(max(visits.cycle_s + self._held_up_s[other] - less_s, visits.number * turn_s))

    def _wait_s(self, worker: str, *but: Route) -> float:
        return self._elsewhere(worker, *but).wait_s()

    def _elsewhere(self, worker: str, *but: Route) -> Elsewhere:
        return Elsewhere(tuple(self._of_worker[worker][each] for each in self._others(worker, *but)))


def _busyness(there: Elsewhere) -> float:
    return there.wait_s()


def visited(costs: RouteCosts, load: RouteLoad) -> dict[str, Visits]:
    """What a route does on each of its workers, as if it had them alone."""
    kinds = list(_kinds(costs, load))
    if not kinds:
        return {}
    number = sum(count for count, _, _ in kinds)
    cycle_s = sum(seconds for _, _, seconds in kinds)
    ranks = costs.route.ranks
    return {
        worker: Visits(
            sum(count * steps[place // ranks] for count, steps, _ in kinds) / number, number, cycle_s, place == 0
        )
        for place, worker in enumerate(costs.route.workers)
    }


def _kinds(costs: RouteCosts, load: RouteLoad) -> Iterable[tuple[float, list[float], float]]:
    """Of each kind of step: how many come round, what one takes of each stage, and the time of a round."""
    if load.decoding:
        num_slots, rows = batches(load.decoding, len(costs.stages))
        steps = [stage.decode_s(rows, load.padded) for stage in costs.stages]
        through_s = sum(steps) + costs.links.seconds(rows) + costs.back_s
        yield num_slots, steps, max(through_s, num_slots * max(steps))
    if load.uncached:
        passes = [stage.chunk_s(load.context, 0) for stage in costs.stages]
        through_s = sum(passes) + costs.links.seconds(load.context) + costs.back_s
        yield load.uncached, passes, max(through_s, load.uncached * max(passes))
    if load.reading_tokens:
        chunk = chunk_tokens(costs, RequestWork(prompt_tokens=load.reading_tokens, generated_tokens=0), load)
        chunks = [stage.chunk_s(min(chunk, load.reading_tokens), 0) for stage in costs.stages]
        yield 1, chunks, max(chunks)
