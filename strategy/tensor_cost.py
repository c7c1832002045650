"""What a request costs on a tensor group: workers that compute every layer together, each its part of it.

From the times of one of them with the whole model (`StageSpeed`), the share of its work that the ranks divide, and what a sum
over all ranks takes. What is not cut (norms, the projection to the vocabulary, what the host does for a layer) every rank does
whole, so a group of n takes

    step  = whole + cut / n + sums * (latency + bytes / bandwidth) + (n - 1) * what a further rank adds

for a step of decoding as for a chunk of a prompt; attention over what lies before is cut with the heads. A group schedules as
one worker does, so all else is `strategy.cost` of a route of one stage. Ranks wait for each other in every layer, so all are as
fast as the slowest, and the least idle. Pure arithmetic.
"""

from collections.abc import Sequence

import msgspec

from strategy.chunking import ChunkCost
from strategy.cost import RequestWork, RouteCosts, RouteLoad, Times, cached_times
from strategy.sharing import NOWHERE_BUSY, Busy
from strategy.stage_speed import StageSpeed
from strategy.vocabulary import Route


class SumCost(msgspec.Struct, frozen=True):
    """One sum over all ranks: seconds for nothing, and bytes in a second of what each rank adds to it. Links of its own between
    each two ranks are taken for granted: then neither depends on how many there are.
    """

    latency_s: float
    bytes_per_s: float

    def seconds(self, num_bytes: float) -> float:
        return self.latency_s + num_bytes / self.bytes_per_s


class TensorCosts(msgspec.Struct, frozen=True, kw_only=True):
    """A group. route: its ranks, the head first; single: one rank with the whole model, whose payload is what each sum adds up
    of a token; cut_decode, cut_chunk: the share of `single`'s time for a step, beside its context, and for a chunk that the ranks
    divide; rank_s: what each further rank adds to a step, as the message that tells it of it.
    """

    route: Route
    single: StageSpeed
    cut_decode: float
    cut_chunk: float
    num_layers: int
    sum_cost: SumCost
    rank_s: float = 0.0
    sums_per_layer: int = 2
    fixed_chunk_tokens: int | None = None

    @property
    def num_sums(self) -> int:
        return self.num_layers * self.sums_per_layer


def shared_speed(costs: TensorCosts) -> StageSpeed:
    """The group as if it were one worker."""
    single, ranks = costs.single, len(costs.route)
    if ranks == 1:
        return single
    row_s = costs.num_sums * single.payload_bytes / costs.sum_cost.bytes_per_s
    step_s = costs.num_sums * costs.sum_cost.latency_s + (ranks - 1) * costs.rank_s
    decode, chunk = _left(costs.cut_decode, ranks), _left(costs.cut_chunk, ranks)
    return StageSpeed(
        decode=_with_sums([(rows, decode * seconds) for rows, seconds in single.decode], step_s, row_s),
        decode_context_s=single.decode_context_s / ranks,
        chunk=ChunkCost(chunk * single.chunk.fixed_s + step_s, chunk * single.chunk.token_s + row_s),
        chunk_context_s=single.chunk_context_s / ranks,
        payload_bytes=single.payload_bytes,
    )


def tensor_times(costs: TensorCosts, work: RequestWork, load: RouteLoad, busy: Busy = NOWHERE_BUSY) -> Times:
    """With a KV cache on every rank. load: of the group; busy: by rank."""
    of_group = RouteCosts(
        route=Route(costs.route.workers[:1]),
        stages=(shared_speed(costs),),
        hops=(),
        fixed_chunk_tokens=costs.fixed_chunk_tokens,
    )
    return cached_times(of_group, work, load, _of_the_busiest(busy))


def _of_the_busiest(busy: Busy) -> Busy:
    found = busy.elsewhere.values()
    if not found:
        return NOWHERE_BUSY
    return Busy({0: max(found, key=lambda there: there.wait_s())})


def _left(cut: float, ranks: int) -> float:
    """Of one worker's time, what each rank still takes."""
    return 1 - cut + cut / ranks


def _with_sums(points: Sequence[tuple[int, float]], step_s: float, row_s: float) -> tuple[tuple[int, float], ...]:
    return tuple((rows, seconds + step_s + rows * row_s) for rows, seconds in points)
