"""What a request would take by each strategy on each route, by what was measured and what was learned since.

The bridge between one decision and `strategy.cost`: knows what runs where, what a route's caches have of the prompt, and what is
wished for. Pure; the snapshot of one decision.
"""

from collections.abc import Collection, Mapping, Sequence

import msgspec

from strategy.cost import (
    RequestWork,
    RouteCosts,
    RouteLoad,
    Times,
    cached_times,
    handed_over_s,
    handed_over_times,
    uncached_times,
)
from strategy.drafting import may_guess
from strategy.layout import Replica, replicated_s, together_s
from strategy.learning import Learning
from strategy.occupation import Occupation
from strategy.stage_speed import Hop
from strategy.vocabulary import Route
from strategy.wishes import Objective

# Of routes alike, so many are looked at closely.
_LOOKED_AT = 2


class Conditions(msgspec.Struct, frozen=True, kw_only=True):
    """costs: of each route that was measured; handed: how a route's KV gets to a worker, in tokens. num_decided: how many
    requests were sent on their way so far; streams: how many run or are about to, the one to decide included. found, wholes: times
    that were calculated already, for one decision.
    """

    costs: Mapping[Route, RouteCosts]
    occupation: Occupation
    learning: Learning
    objective: Objective
    num_decided: int
    handed: Mapping[tuple[Route, str], Hop] = {}
    streams: int = 1
    found: dict[tuple[Route, RequestWork, bool], Times] = msgspec.field(default_factory=dict)
    wholes: dict[tuple[str, RequestWork], float] = msgspec.field(default_factory=dict)


class Forecast(msgspec.Struct, frozen=True, kw_only=True):
    """Seconds from arrival to the first token and to the end. times: of `work`, as they were measured; num_seen: of how many answers
    was learned; whole_s: until as many such as there are streams have all their answers, None where that is not wished for;
    tokens: of a step, None where none are guessed; num_there: how many sequences its route had then, with this one.
    """

    strategy: str
    work: RequestWork
    ttft_s: float
    total_s: float
    step_s: float
    times: Times
    num_seen: int
    whole_s: float | None = None
    tokens: float | None = None
    num_there: int = 1

    def of(self, objective: Objective) -> float:
        """What is to be least."""
        match objective:
            case Objective.TOTAL:
                return self.total_s
            case Objective.TTFT:
                return self.ttft_s
            case Objective.THROUGHPUT:
                return self.total_s if self.whole_s is None else self.whole_s


def forecast(
    strategy: str, route: Route, work: RequestWork, conditions: Conditions, *, cached: bool
) -> Forecast | None:
    """Of one route; None where it was not measured."""
    if route not in conditions.costs:
        return None
    may_be_guessed = not cached or may_guess(conditions.occupation.load(route).decoding + 1, route.num_stages)
    times = _times(route, work, conditions, cached=cached)
    whole_s = _whole_s(strategy, route, work, conditions, cached=cached)
    return _forecast(strategy, route, work, times, conditions, may_be_guessed=may_be_guessed, whole_s=whole_s)


def _times(route: Route, work: RequestWork, conditions: Conditions, *, cached: bool) -> Times:
    known = conditions.found.get((route, work, cached))
    if known is not None:
        return known
    calculate = cached_times if cached else uncached_times
    occupation = conditions.occupation
    times = calculate(conditions.costs[route], work, occupation.load(route), occupation.beside(route))
    conditions.found[route, work, cached] = times
    return times


def handover_forecast(
    strategy: str, reading: Route, holder: Route, work: RequestWork, conditions: Conditions
) -> Forecast | None:
    """Of reading on one route and generating on another; None where one of them was not measured."""
    handed = conditions.handed.get((reading, holder.head))
    if reading not in conditions.costs or holder not in conditions.costs or handed is None:
        return None
    read, alone = (_times(route, work, conditions, cached=True) for route in (reading, holder))
    times = handed_over_times(read, alone, work, handed)
    may_be_guessed = may_guess(conditions.occupation.load(holder).decoding + 1, holder.num_stages)
    whole_s = _whole_s(strategy, holder, work, conditions, reading=(conditions.costs[reading], handed))
    return _forecast(strategy, holder, work, times, conditions, may_be_guessed=may_be_guessed, whole_s=whole_s)


def _forecast(
    strategy: str,
    route: Route,
    work: RequestWork,
    times: Times,
    conditions: Conditions,
    *,
    may_be_guessed: bool,
    whole_s: float | None,
) -> Forecast:
    factors = conditions.learning.factors(strategy, route, work.read_tokens)
    guessed = conditions.learning.guessed(strategy, route) if may_be_guessed else None
    ttft_s = conditions.learning.ttft_s(times, factors)
    num_further = max(work.generated_tokens - 1, 0)
    answer_s = num_further * factors.step * times.step_s
    if guessed is not None and guessed.are_usual(num_further):
        answer_s = guessed.seconds(times, num_further)
    else:  # nobody guesses
        guessed = None
    return Forecast(
        strategy=strategy,
        work=work,
        ttft_s=ttft_s,
        total_s=ttft_s + answer_s,
        step_s=answer_s / num_further if num_further else factors.step * times.step_s,
        times=times,
        num_seen=factors.num_seen,
        whole_s=whole_s,
        tokens=None if guessed is None else guessed.tokens,
        num_there=1 + conditions.occupation.num_there(route),
    )


def _whole_s(
    strategy: str,
    route: Route,
    work: RequestWork,
    conditions: Conditions,
    *,
    cached: bool = True,
    reading: tuple[RouteCosts, Hop] | None = None,
) -> float | None:
    """Of all streams, as if each were like this one and all of them were answered like it; None where that is not wished for. reading:
    on a route whose KV is handed over.
    """
    if conditions.objective is not Objective.THROUGHPUT:
        return None
    key = (strategy, work)
    if key not in conditions.wholes:
        number = conditions.streams
        if route.is_single:
            read_s, answer_s = replicated_s(_replicas(strategy, work, conditions), work, number)
        else:
            read_s, answer_s = _together_s(strategy, route, work, conditions, cached=cached)
        if reading is not None:
            costs, handed = reading
            read = cached_times(costs, work, RouteLoad())
            read_s = handed_over_s(number * read.read_s, number * work.read_tokens, read.chunk_tokens, handed)
        conditions.wholes[key] = read_s + answer_s
    return conditions.wholes[key]


def _replicas(strategy: str, work: RequestWork, conditions: Conditions) -> list[Replica]:
    found = []
    for route, costs in conditions.occupation.alone.by_worker.values():
        factors = conditions.learning.factors(strategy, route, work.read_tokens)
        found.append(Replica(costs, factors.reading, factors.step))
    return found


def _together_s(
    strategy: str, route: Route, work: RequestWork, conditions: Conditions, *, cached: bool
) -> tuple[float, float]:
    factors = conditions.learning.factors(strategy, route, work.read_tokens)
    read_s, answer_s = together_s(conditions.costs[route], work, conditions.streams, cached=cached)
    return factors.reading * read_s, factors.step * answer_s


def likeliest(
    workers: Collection[str], work: RequestWork, reusable: Mapping[Route, int], strategy: str, conditions: Conditions
) -> Sequence[str]:
    """Of workers with the full model those that a rough figure favours, the best first; all of them where nothing is known.

    work: of the request, where nothing of it is known yet; reusable: tokens that routes have of its prompt.
    """
    alone = conditions.occupation.alone
    reading, step = conditions.learning.factors_of_all(strategy, alone.places, work.read_tokens)
    seconds = reading * alone.read_s(work, reusable)
    if conditions.objective is not Objective.TTFT:
        seconds += work.generated_tokens * step * alone.step_s(work.mean_context)
    return alone.least(seconds, workers, _LOOKED_AT)
