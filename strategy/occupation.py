"""What each worker is busy with on every route, as the load of routes changes: whoever goes through it has to wait for the others.

Keeps sums, so that asking costs no more than the route is long. Pure: told of loads, knows no requests.
"""

from collections.abc import Mapping

from strategy.cost import Busy, Elsewhere, RequestWork, RouteCosts, RouteLoad, batches, chunk_tokens
from strategy.vocabulary import Route

_LARGEST_SHARE = 0.95
_IDLE = RouteLoad()


class Occupation:
    """On one plan's routes. costs: of each; a route without costs occupies nobody. alone: by worker, its own route and costs."""

    def __init__(self, costs: Mapping[Route, RouteCosts]):
        self._costs = costs
        self.alone = {route.head: (route, found) for route, found in costs.items() if route.is_single}
        self._loads: dict[Route, RouteLoad] = {}
        self._of_route: dict[Route, dict[str, Elsewhere]] = {}
        self._of_worker: dict[str, Elsewhere] = {}
        self._beside: dict[Route, Busy] = {}  # as asked for since the last change

    def __repr__(self) -> str:
        return f"Occupation({len(self._loads)} routes in use)"

    def load(self, route: Route) -> RouteLoad:
        """What runs there."""
        return self._loads.get(route, _IDLE)

    def changed(self, loads: Mapping[Route, RouteLoad]) -> None:
        """What runs now; routes that are not in `loads` are idle."""
        for route in [*self._loads, *loads]:
            load = loads.get(route, _IDLE)
            if load != self.load(route):
                self._replace(route, load)

    def _replace(self, route: Route, load: RouteLoad) -> None:
        self._beside.clear()
        costs = self._costs.get(route)
        taken = {} if costs is None else occupied(costs, load)
        for worker, before in self._of_route.pop(route, {}).items():
            self._add(worker, -before.round_s, -before.share)
        for worker, now in taken.items():
            self._add(worker, now.round_s, now.share)
        self._of_route[route] = taken
        self._loads[route] = load
        if load == _IDLE:
            del self._loads[route], self._of_route[route]

    def _add(self, worker: str, round_s: float, share: float) -> None:
        there = self._of_worker.get(worker, Elsewhere())
        self._of_worker[worker] = Elsewhere(there.round_s + round_s, there.share + share)

    def beside(self, route: Route) -> Busy:
        """What each worker of a route does on others."""
        if route not in self._beside:
            self._beside[route] = self._found_beside(route)
        return self._beside[route]

    def _found_beside(self, route: Route) -> Busy:
        own = self._of_route.get(route, {})
        found: dict[int, Elsewhere] = {}
        for place, worker in enumerate(route.workers):
            there = self._of_worker.get(worker)
            if there is None:
                continue
            mine = own.get(worker, Elsewhere())
            round_s, share = there.round_s - mine.round_s, there.share - mine.share
            if round_s > 1e-9:
                found[place] = Elsewhere(round_s, min(max(share, 0.0), _LARGEST_SHARE))
        return Busy(found)


def occupied(costs: RouteCosts, load: RouteLoad) -> dict[str, Elsewhere]:
    """What a route takes of each of its workers, as if it had them alone."""
    rounds = [0.0] * len(costs.stages)
    period_s = 0.0
    if load.decoding:
        num_slots, rows = batches(load.decoding, len(costs.stages))
        steps = [stage.decode_s(rows, load.context) for stage in costs.stages]
        rounds = [num_slots * step for step in steps]
        period_s = max(sum(steps) + costs.links.seconds(rows) + costs.back_s, *rounds)
    if load.uncached:
        passes = [stage.chunk_s(load.context, 0) for stage in costs.stages]
        rounds = [each + more for each, more in zip(rounds, passes, strict=True)]
        period_s += max(sum(passes) + costs.links.seconds(load.context), load.uncached * max(passes))
    if load.reading_tokens:
        chunk = chunk_tokens(costs, RequestWork(prompt_tokens=load.reading_tokens, generated_tokens=0), load)
        chunks = [stage.chunk_s(min(chunk, load.reading_tokens), 0) for stage in costs.stages]
        rounds = [each + more for each, more in zip(rounds, chunks, strict=True)]
        period_s += max(chunks)
    workers = costs.route.workers if period_s else ()
    return {
        worker: Elsewhere(each, min(each / period_s, _LARGEST_SHARE))
        for worker, each in zip(workers, rounds, strict=False)
    }
