"""The cost model's closed form beside the schedule that it stands for, on planned routes of 2 to 64 nodes and under load."""

import math
import random
from collections.abc import Iterator

import msgspec

from benchmarks.support.random_clusters import (
    CHUNK_TOKENS,
    PAYLOAD_BYTES,
    WORKLOADS,
    SimulatedCluster,
    random_cluster,
)
from benchmarks.support.simulated_workers import Placed, SimulatedWorkers
from strategy.chunking import ChunkCost
from strategy.cost import RequestWork, RouteCosts, RouteLoad, cached_times
from strategy.split_costs import NodeSpeeds
from strategy.stage_speed import Hop, StageSpeed
from strategy.vocabulary import LayerRange, Route

NODES = (2, 4, 8, 16, 32, 64)
STREAMS = (0, 4, 16)
LAYERS = 128
_GENERATED = 32
# Steps that the other streams have had when the request arrives.
_STEPS_BEFORE = 4
_ENDLESS = 1_000_000


class Compared(msgspec.Struct, frozen=True, kw_only=True):
    """One request on one route. Seconds; stages: of the plan; streams: that decode meanwhile."""

    nodes: int
    stages: int
    streams: int
    prompt_tokens: int
    predicted_ttft_s: float
    simulated_ttft_s: float
    predicted_itl_s: float
    simulated_itl_s: float

    @property
    def ttft_error(self) -> float:
        return abs(self.predicted_ttft_s / self.simulated_ttft_s - 1)

    @property
    def itl_error(self) -> float:
        return abs(self.predicted_itl_s / self.simulated_itl_s - 1)


def compared(seed: int, num_clusters: int) -> Iterator[Compared]:
    """Each load on so many clusters of each size."""
    draw = random.Random(seed)
    for num_nodes in NODES:
        for _ in range(num_clusters):
            cluster = random_cluster(draw, num_nodes, LAYERS, rooms=(1 / num_nodes, 3 / num_nodes))
            costs = planned_route(draw, cluster, draw.uniform(0.05, 0.6))
            for streams in STREAMS:
                yield compare(costs, num_nodes, streams, draw.choice((128, 1024, 4096)))


def planned_route(draw: random.Random, cluster: SimulatedCluster, row_share: float) -> RouteCosts:
    """The planner's split for one of the workloads, as the cost model is told of it. row_share: of a step, for each further row."""
    plan = cluster.planned(draw.choice(list(WORKLOADS.values())))
    assert plan is not None
    speeds = {node.name: node for node in cluster.nodes}
    names = [name for name, _ in plan.stages]
    hops = (Hop(*cluster.links[pair]) for pair in zip(names, [*names[1:], names[0]], strict=True) if names[1:])
    return RouteCosts(
        route=Route(tuple(names)),
        stages=tuple(_stage(speeds[name], layers, row_share) for name, layers in plan.stages),
        hops=tuple(hops),
    )


def whole_model(node: NodeSpeeds, name: str, row_share: float) -> RouteCosts:
    """A node as fast as this one, alone with all layers."""
    stage = _stage(node, LayerRange(0, len(node.decode_s)), row_share)
    return RouteCosts(route=Route((name,)), stages=(stage,), hops=(Hop(0.0, math.inf),))


def _stage(node: NodeSpeeds, layers: LayerRange, row_share: float) -> StageSpeed:
    step_s, chunk_s = node.stage_decode_s(layers), node.stage_chunk_s(layers)
    token_s = 0.9 * chunk_s / CHUNK_TOKENS
    return StageSpeed(
        decode=((1, step_s), (8, step_s * (1 + 7 * row_share))),
        decode_context_s=step_s / 50_000,
        chunk=ChunkCost(0.1 * chunk_s, token_s),
        chunk_context_s=token_s / 20_000,
        payload_bytes=PAYLOAD_BYTES,
    )


def compare(costs: RouteCosts, num_nodes: int, streams: int, prompt_tokens: int) -> Compared:
    """One request behind others that decode."""
    work = RequestWork(prompt_tokens=prompt_tokens, generated_tokens=_GENERATED)
    load = RouteLoad(decoding=streams, context=prompt_tokens)
    predicted = cached_times(costs, work, load)
    arrives_s = _STEPS_BEFORE * predicted.step_s
    own = Placed(route=costs.route, arrives_s=arrives_s, prompt_tokens=prompt_tokens, generated_tokens=_GENERATED)
    times = SimulatedWorkers({costs.route: costs}, [own, *running(costs.route, streams, prompt_tokens)]).tokens_at(0)
    return Compared(
        nodes=num_nodes,
        stages=len(costs.stages),
        streams=streams,
        prompt_tokens=prompt_tokens,
        predicted_ttft_s=predicted.read_s + predicted.first_s,
        simulated_ttft_s=times[0] - arrives_s,
        predicted_itl_s=predicted.step_s,
        simulated_itl_s=(times[-1] - times[0]) / (len(times) - 1),
    )


def running(route: Route, number: int, context: int) -> list[Placed]:
    """Streams with so many tokens that go on for ever."""
    stream = Placed(
        route=route, arrives_s=0.0, prompt_tokens=context, generated_tokens=_ENDLESS, cached_tokens=context - 1
    )
    return [stream] * number
