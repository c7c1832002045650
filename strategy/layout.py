"""Which layout is best for how many streams: seconds until all of several requests alike, begun at once, have their answers.

Workers that each answer some of them alone (replicas), all stages of a pipeline, or a group that computes every layer together: what
each takes of so many rows was measured, and none is best for all models. Where a batch reads the same weights for many rows, a
group is; where each row costs its own, replicas and pipelines are. With `f` a step of so many rows, on S stages, R workers or N ranks:

    pipeline(B)  B rows in S batches that follow each other, at the pace of the slowest stage
    replicas(B)  the most of f(B_r) over the workers, between which rows are shared such that all end at once
    group(B)     f(B) of the ranks, sums included

Pure arithmetic over `strategy.cost`.
"""

import heapq
import math
from collections.abc import Sequence
from enum import Enum

import msgspec

from strategy.cost import RequestWork, RouteCosts, RouteLoad, Times, cached_times, uncached_times
from strategy.vocabulary import Route


class StreamLayout(Enum):
    """How streams are shared between workers: each alone, one after the other in stages, or every layer by all."""

    REPLICAS = "replicas"
    PIPELINE = "pipeline"
    GROUP = "group"


def layout_of(route: Route | None) -> StreamLayout | None:
    """Of those who answer on a route."""
    if route is None:
        return None
    if route.is_shared:
        return StreamLayout.GROUP
    return StreamLayout.REPLICAS if route.is_single else StreamLayout.PIPELINE


def together_s(costs: RouteCosts, work: RequestWork, number: int, *, cached: bool = True) -> tuple[float, float]:
    """So many on one route: seconds until all prompts are read, and from then on until the last token."""
    if not cached:
        others = RouteLoad(uncached=number - 1, context=work.mean_context)
        return 0.0, work.generated_tokens * uncached_times(costs, work, others).step_s
    read_s = cached_times(costs, work, RouteLoad()).read_s
    return number * read_s, work.generated_tokens * _step_s(costs, work, number)


class Replica(msgspec.Struct, frozen=True):
    """A worker that answers alone. reading, step: by how much longer than measured they take there."""

    costs: RouteCosts
    reading: float = 1.0
    step: float = 1.0

    def ends(self, work: RequestWork, number: int) -> tuple[float, float]:
        """As `together_s`."""
        read_s, answer_s = together_s(self.costs, work, number)
        return self.reading * read_s, self.step * answer_s


def replicated_s(replicas: Sequence[Replica], work: RequestWork, number: int) -> tuple[float, float]:
    """As `together_s`, of so many that are shared between workers, each given to whom it ends first; of those who end last."""
    ends = [each.ends(work, 1) for each in replicas]
    waiting = [(sum(found), place, 1, found) for place, found in enumerate(ends)]
    heapq.heapify(waiting)
    last = (0.0, 0.0)
    for _ in range(number):
        _, place, count, found = waiting[0]
        last = max(last, found, key=sum)
        following = replicas[place].ends(work, count + 1)
        heapq.heapreplace(waiting, (sum(following), place, count + 1, following))
    return last


def beside(times: Times, costs: RouteCosts, work: RequestWork, number: int, mean: float) -> Times:
    """With steps as they are where so many like it decode in the mean. times: where it is one of `number`."""
    before_s = _step_s(costs, work, number)
    if not before_s:
        return times
    fewer = math.floor(mean)
    step_s = _step_s(costs, work, fewer)
    if mean > fewer:
        step_s += (mean - fewer) * (_step_s(costs, work, fewer + 1) - step_s)
    return msgspec.structs.replace(times, step_s=times.step_s * step_s / before_s)


def _step_s(costs: RouteCosts, work: RequestWork, number: int) -> float:
    """Of so many like it that decode."""
    others = RouteLoad(decoding=number - 1, context=work.mean_context)
    answered = RequestWork(
        prompt_tokens=work.prompt_tokens,
        cached_tokens=work.prompt_tokens - 1,
        generated_tokens=work.generated_tokens,
    )
    return cached_times(costs, answered, others).step_s
