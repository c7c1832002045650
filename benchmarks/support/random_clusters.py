"""Clusters of 2 to 64 nodes drawn at random, and the splits that rules of thumb give them, beside the planner's.

A node's speed at generating and at reading are drawn apart: Macs of one bandwidth differ several times in arithmetic. Equal
seeds give equal clusters.
"""

import itertools
import random
from bisect import bisect_left
from collections.abc import Callable, Mapping, Sequence

import msgspec

from strategy.optimal_split import OptimalSplit, optimal_split
from strategy.partition import ModelSizes
from strategy.split_costs import HopCosts, NodeSpeeds, Workload, cost_of, stage_bytes
from strategy.vocabulary import LayerRange

CHUNK_TOKENS = 512
WORKLOADS = {
    "decode-heavy": Workload(num_chunks=1, generated_tokens=512),
    "prefill-heavy": Workload(num_chunks=32, generated_tokens=16),
}
_LAYER_BYTES = 200_000_000
PAYLOAD_BYTES = 8192
# Seconds for nothing and bytes a second: Thunderbolt 5 and 4, Ethernet of 10 and of 1 Gbit/s.
_LINKS = ((0.2e-3, 5.3e9), (0.3e-3, 2.2e9), (0.3e-3, 1.1e9), (0.5e-3, 0.11e9))

Stages = tuple[tuple[str, LayerRange], ...]


class SimulatedCluster(msgspec.Struct, frozen=True, kw_only=True):
    """What the planner is told. links: by (from, to), seconds for nothing and bytes a second."""

    sizes: ModelSizes
    kv_bytes: tuple[int, ...]
    nodes: tuple[NodeSpeeds, ...]
    hops: HopCosts
    links: Mapping[tuple[str, str], tuple[float, float]]
    legal_cuts: tuple[int, ...]

    def planned(self, workload: Workload) -> OptimalSplit | None:
        return optimal_split(self.sizes, self.kv_bytes, self.nodes, self.hops, workload, self.legal_cuts)

    def cost_s(self, stages: Stages, workload: Workload) -> float:
        return cost_of(stages, self.nodes, self.hops, workload).cost_s

    def fits(self, stages: Stages) -> bool:
        room = {node.name: node.room_bytes for node in self.nodes}
        return all(stage_bytes(self.sizes, self.kv_bytes, layers) <= room[name] for name, layers in stages)

    @property
    def positions(self) -> tuple[int, ...]:
        return (0, *self.legal_cuts, len(self.sizes.layers))


def random_cluster(
    draw: random.Random, num_nodes: int, num_layers: int = 32, rooms: tuple[float, float] = (0.15, 1.3)
) -> SimulatedCluster:
    """Nodes of unlike speed and memory, each pair linked somehow; together they have room for the model. rooms: the least and the
    largest of a node, in models.
    """
    sizes = ModelSizes(
        layers=tuple(draw.choice((1, 1, 1, 2)) * _LAYER_BYTES for _ in range(num_layers)),
        embedding=_LAYER_BYTES,
        head=_LAYER_BYTES,
        tied=False,
    )
    kv_bytes = (8_000_000,) * num_layers
    nodes = tuple(_node(draw, f"node-{number}", sizes, rooms) for number in range(num_nodes))
    missing = 1.5 * (sizes.total + sum(kv_bytes)) / sum(node.room_bytes for node in nodes)
    if missing > 1:
        nodes = tuple(msgspec.structs.replace(node, room_bytes=int(missing * node.room_bytes)) for node in nodes)
    links = {}
    for one, other in itertools.combinations([node.name for node in nodes], 2):
        links[one, other] = links[other, one] = draw.choice(_LINKS)
    return SimulatedCluster(
        sizes=sizes, kv_bytes=kv_bytes, nodes=nodes, hops=_hops(links), links=links, legal_cuts=_cuts(draw, num_layers)
    )


def _node(draw: random.Random, name: str, sizes: ModelSizes, rooms: tuple[float, float]) -> NodeSpeeds:
    bandwidth, compute = 819e9 * 8 ** -draw.random(), 22e12 * 8 ** -draw.random()
    decode_s = tuple(0.09e-3 + size / bandwidth for size in sizes.layers)
    chunk_s = tuple(CHUNK_TOKENS * 2 * (size * 8 / 4.5) / compute for size in sizes.layers)
    return NodeSpeeds(
        name=name,
        decode_s=decode_s,
        chunk_s=chunk_s,
        embed_decode_s=0.02e-3,
        embed_chunk_s=0.1e-3,
        head_decode_s=sizes.head / bandwidth,
        head_chunk_s=sizes.head / bandwidth,
        room_bytes=int(sizes.total * draw.uniform(*rooms)),
    )


def _hops(links: Mapping[tuple[str, str], tuple[float, float]]) -> HopCosts:
    def seconds(num_bytes: int) -> dict[tuple[str, str], float]:
        return {pair: latency_s + num_bytes / bytes_per_s for pair, (latency_s, bytes_per_s) in links.items()}

    return HopCosts(
        default_decode_s=0.0,
        default_chunk_s=0.0,
        pair_decode_s=seconds(PAYLOAD_BYTES),
        pair_chunk_s=seconds(CHUNK_TOKENS * PAYLOAD_BYTES),
    )


def _cuts(draw: random.Random, num_layers: int) -> tuple[int, ...]:
    """Everywhere, or for one model of four not within each pair of layers."""
    return tuple(range(1, num_layers)) if draw.random() < 0.75 else tuple(range(2, num_layers, 2))


# --- rules of thumb


def _layer_s(node: NodeSpeeds, workload: Workload) -> float:
    """Seconds of all layers for the whole work, were the node alone."""
    return workload.num_chunks * sum(node.chunk_s) + workload.generated_tokens * sum(node.decode_s)


def _by_shares(cluster: SimulatedCluster, shares: Sequence[float]) -> Stages | None:
    """Layers to all nodes in the order given, by these shares and at the nearest cuts; None where a node would get none."""
    positions, num_layers = cluster.positions, len(cluster.sizes.layers)
    ends, so_far = [], 0.0
    for share in shares:
        so_far += share
        wanted = so_far / sum(shares) * num_layers
        index = bisect_left(positions, wanted)
        around = positions[max(index - 1, 0) : index + 1]
        ends.append(min(around, key=lambda position, wanted=wanted: abs(position - wanted)))
    ends[-1] = num_layers
    starts = [0, *ends[:-1]]
    if any(start >= end for start, end in zip(starts, ends, strict=True)):
        return None
    bounds = zip(cluster.nodes, starts, ends, strict=True)
    return tuple((node.name, LayerRange(start, end)) for node, start, end in bounds)


def equal(cluster: SimulatedCluster, _workload: Workload) -> Stages | None:
    """As many layers for each node."""
    return _by_shares(cluster, [1.0] * len(cluster.nodes))


def memory_proportional(cluster: SimulatedCluster, _workload: Workload) -> Stages | None:
    """Layers as the nodes have memory."""
    return _by_shares(cluster, [node.room_bytes for node in cluster.nodes])


def speed_proportional(cluster: SimulatedCluster, workload: Workload) -> Stages | None:
    """Layers as the nodes are fast at this work."""
    return _by_shares(cluster, [1 / _layer_s(node, workload) for node in cluster.nodes])


def fewest_and_fastest(cluster: SimulatedCluster, workload: Workload) -> Stages | None:
    """From the fastest node on each takes what it has room for, until all layers have a place."""
    stages: list[tuple[str, LayerRange]] = []
    start = 0
    for node in sorted(cluster.nodes, key=lambda node: _layer_s(node, workload)):
        ends = [
            end for end in cluster.positions if end > start and cluster.fits(((node.name, LayerRange(start, end)),))
        ]
        if ends:
            stages.append((node.name, LayerRange(start, ends[-1])))
            start = ends[-1]
        if start == len(cluster.sizes.layers):
            return tuple(stages)
    return None


RULES: dict[str, Callable[[SimulatedCluster, Workload], Stages | None]] = {
    "memory-proportional": memory_proportional,
    "fewest and fastest nodes": fewest_and_fastest,
    "equal widths": equal,
    "speed-proportional": speed_proportional,
}


def ratios(cluster: SimulatedCluster, workload: Workload) -> dict[str, float] | None:
    """What each rule's split costs, over what the planner's does; without rules that do not fit. None where nothing fits."""
    plan = cluster.planned(workload)
    if plan is None:
        return None
    found = {name: rule(cluster, workload) for name, rule in RULES.items()}
    return {
        name: cluster.cost_s(stages, workload) / plan.cost_s
        for name, stages in found.items()
        if stages is not None and cluster.fits(stages)
    }
