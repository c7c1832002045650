"""Workers that answer alone, of all of which is calculated at once: of many, most are not worth a closer look."""

from collections.abc import Collection, Iterable, Mapping, Sequence
from itertools import islice
from typing import TYPE_CHECKING

from strategy.cost import RequestWork, RouteCosts, RouteLoad
from strategy.stage_speed import StageArrays
from strategy.vocabulary import Route

if TYPE_CHECKING:  # see StageArrays
    from strategy.sharing import Floats


class Alone:
    """On one plan's routes. by_worker: its own route, and what that costs; places: of the routes in all arrays."""

    def __init__(self, routes: Iterable[tuple[Route, RouteCosts]]):
        self.by_worker = {route.head: (route, costs) for route, costs in routes}
        self.places = {route: place for place, (route, _) in enumerate(self.by_worker.values())}
        self._names = list(self.by_worker)
        self._speeds = [costs.stages[0] for _, costs in self.by_worker.values()]
        self._stages = StageArrays(self._speeds)
        # Of a step with one more sequence than decode there: without what lies before it, and for each token of that.
        self._step_s = self._stages.decode_s(1, 0.0).copy()
        self._context_s = self._stages.decode_s(1, 1.0) - self._step_s

    def __repr__(self) -> str:
        return f"Alone({self._names})"

    def changed(self, route: Route, load: RouteLoad) -> None:
        """What runs on one of the routes now."""
        place, rows = self.places[route], load.decoding + 1
        speed = self._speeds[place]
        self._step_s[place], self._context_s[place] = speed.decode_s(rows, 0), rows * speed.decode_context_s

    def read_s(self, work: RequestWork, reusable: Mapping[Route, int]) -> "Floats":
        """Of what is left of a prompt, as one chunk. work: where nothing of it is known; reusable: tokens that routes have of it."""
        seconds = self._stages.chunk_s(work.read_tokens, 0)
        for route, tokens in reusable.items():
            if (place := self.places.get(route)) is not None:
                seconds[place] = self._speeds[place].chunk_s(max(work.read_tokens - tokens, 0), tokens)
        return seconds

    def step_s(self, context: float) -> "Floats":
        """Of one more sequence of so many tokens, beside those that decode."""
        return self._step_s + context * self._context_s

    def least(self, seconds: "Floats", workers: Collection[str], number: int) -> Sequence[str]:
        """So many of these workers, the best first; all of them where one of them is not known here."""
        if any(worker not in self.by_worker for worker in workers):
            return list(workers)
        in_order = (self._names[place] for place in seconds.argsort(kind="stable").tolist())
        return list(islice((worker for worker in in_order if worker in workers), number))
