"""What a request would take by each strategy on each route, by what was measured and what was learned since.

The bridge between one decision and `strategy.cost`: knows what runs where, what a route's caches have of the prompt, and what is
wished for. Pure; the snapshot of one decision.
"""

from collections.abc import Iterable, Mapping
from enum import StrEnum

import msgspec

from strategy.cost import Hop, RequestWork, RouteCosts, Times, cached_times, handed_over_times, uncached_times
from strategy.learning import Learning
from strategy.occupation import Occupation
from strategy.vocabulary import Route

# Of routes alike, so many are looked at closely.
_LOOKED_AT = 4


class Objective(StrEnum):
    """What is to be least: the time of the whole answer, that to its first token, or what devices are busy with it."""

    TOTAL = "total"
    TTFT = "ttft"
    THROUGHPUT = "throughput"


class Conditions(msgspec.Struct, frozen=True, kw_only=True):
    """costs: of each route that was measured; handed: how a route's KV gets to a worker, in tokens. num_decided: how many
    requests were sent on their way so far.
    """

    costs: Mapping[Route, RouteCosts]
    occupation: Occupation
    learning: Learning
    objective: Objective
    num_decided: int
    handed: Mapping[tuple[Route, str], Hop] = {}


class Forecast(msgspec.Struct, frozen=True, kw_only=True):
    """Seconds from arrival to the first token and to the end, and of all devices. times: of `work`, as they were measured; num_seen:
    of how many answers was learned.
    """

    strategy: str
    work: RequestWork
    ttft_s: float
    total_s: float
    busy_s: float
    step_s: float
    times: Times
    num_seen: int

    def of(self, objective: Objective) -> float:
        """What is to be least."""
        match objective:
            case Objective.TOTAL:
                return self.total_s
            case Objective.TTFT:
                return self.ttft_s
            case Objective.THROUGHPUT:
                return self.busy_s


def forecast(
    strategy: str, route: Route, work: RequestWork, conditions: Conditions, *, cached: bool
) -> Forecast | None:
    """Of one route; None where it was not measured."""
    costs = conditions.costs.get(route)
    if costs is None:
        return None
    load, busy = conditions.occupation.load(route), conditions.occupation.beside(route)
    times = cached_times(costs, work, load, busy) if cached else uncached_times(costs, work, load, busy)
    return _forecast(strategy, route, work, times, conditions)


def handover_forecast(
    strategy: str, reading: Route, holder: Route, work: RequestWork, conditions: Conditions
) -> Forecast | None:
    """Of reading on one route and generating on another; None where one of them was not measured."""
    handed = conditions.handed.get((reading, holder.head))
    if reading not in conditions.costs or holder not in conditions.costs or handed is None:
        return None
    occupation = conditions.occupation
    read, hold = (
        (conditions.costs[route], occupation.load(route), occupation.beside(route)) for route in (reading, holder)
    )
    return _forecast(strategy, holder, work, handed_over_times(read, hold, work, handed), conditions)


def _forecast(strategy: str, route: Route, work: RequestWork, times: Times, conditions: Conditions) -> Forecast:
    factors = conditions.learning.factors(strategy, route)
    ttft_s = conditions.learning.ttft_s(times, factors)
    step_s = factors.step * times.step_s
    return Forecast(
        strategy=strategy,
        work=work,
        ttft_s=ttft_s,
        total_s=ttft_s + max(work.generated_tokens - 1, 0) * step_s,
        busy_s=times.busy_s,
        step_s=step_s,
        times=times,
        num_seen=factors.num_seen,
    )


def likeliest(
    workers: Iterable[str], work: Mapping[str, RequestWork], strategy: str, conditions: Conditions
) -> list[str]:
    """Of workers with the full model those that a rough figure favours, the best first; all of them where nothing is known."""
    rough: list[tuple[float, str]] = []
    for worker in workers:
        route = Route((worker,))
        costs = conditions.costs.get(route)
        if costs is None:
            return list(workers)
        (stage,), mine = costs.stages, work[worker]
        rows = conditions.occupation.load(route).decoding + 1
        factors = conditions.learning.factors(strategy, route)
        read_s = factors.reading * mine.read_tokens * stage.chunk.token_s
        steps_s = factors.step * mine.generated_tokens * stage.decode_s(rows, mine.mean_context)
        rough.append((read_s if conditions.objective is Objective.TTFT else read_s + steps_s, worker))
    return [worker for _, worker in sorted(rough)[:_LOOKED_AT]]
