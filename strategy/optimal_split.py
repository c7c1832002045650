"""The split of a model with the least cost: which nodes, in which order, with which layers. Exact up to eight nodes.

A pure function over measured speeds and link costs; `strategy/split_costs.py` says what J is. For each node as the first one,
a dynamic programme over (the set of nodes used, the node that comes next, the layers done) gives the cheapest split under a
bound on the slowest stage, and a branch and bound over that bound the optimum of J (`strategy/cheapest_route.py`). So all
subsets and orders are in it, by (n - 1) 2^(n-2) states a first node instead of n! orders. The first node has a programme
of its own because the ids return to it.

Beyond `exact_up_to` nodes a bounded search does what it can (`strategy/bounded_split.py`).
"""

import itertools
from collections.abc import Sequence

import msgspec
import numpy as np

from strategy.bounded_split import bounded_split
from strategy.cheapest_route import RouteFound, RouteGraph, StageTables, Wave, least_cost
from strategy.partition import ModelSizes
from strategy.split_costs import HopCosts, NodeSpeeds, Workload, cost_of
from strategy.vocabulary import LayerRange


class OptimalSplit(msgspec.Struct, frozen=True, kw_only=True):
    """The stages in layer order, each a node's name and its layers, and what they cost as `SplitCost` has it, in seconds."""

    stages: tuple[tuple[str, LayerRange], ...]
    cost_s: float
    prefill_s: float
    decode_s: float
    bottleneck_s: float


def optimal_split(
    sizes: ModelSizes,
    kv_bytes: Sequence[int],
    nodes: Sequence[NodeSpeeds],
    hops: HopCosts,
    workload: Workload,
    legal_cuts: Sequence[int],
    *,
    exact_up_to: int = 8,
) -> OptimalSplit | None:
    """The split with the least J of all subsets and orders of the nodes and all legal cuts; None where nothing fits.

    Equal arguments give the same split every time. A difference in J below 1e-12 of it is rounding and counts as none.

    kv_bytes: of each layer, at the context wanted; legal_cuts: layers before which the model can be cut; exact_up_to: with
    more nodes the split is a good one, not always the best, and None can be wrong with more than ten.

    Raises:
        ValueError: speeds or KV are not given for each layer, two nodes have one name, or there is no chunk.
    """
    _check(sizes, kv_bytes, nodes, workload)
    if not nodes:
        return None
    tables = StageTables(sizes, kv_bytes, nodes, hops, workload, legal_cuts)
    exact = len(nodes) <= exact_up_to
    found = least_cost(tables, _graphs_of_subsets(len(nodes))) if exact else bounded_split(tables)
    return None if found is None else _split(tables, found, nodes, hops, workload)


def _graphs_of_subsets(num_nodes: int) -> list[RouteGraph]:
    """For each node as the first: states are (set of nodes used, node that comes next)."""
    states: dict[tuple[int, int], int] = {(0, 0): 0}
    waves = []
    others = range(1, num_nodes)
    for size in range(num_nodes - 1):
        begin, rows = len(states), []
        for used in itertools.combinations(others, size):
            members = sum(1 << node for node in used)
            rows += [
                [states[members & ~(1 << node), node] for node in used] or [0]
                for following in others
                if following not in used
            ]
            states |= {(members, node): len(states) + more for more, node in enumerate(sorted({*others} - {*used}))}
        waves.append(Wave(begin, np.array(rows, np.intp)))
    return [_begun_at(first, num_nodes, [node for _, node in states], tuple(waves)) for first in range(num_nodes)]


def _begun_at(first: int, num_nodes: int, nodes: Sequence[int], waves: tuple[Wave, ...]) -> RouteGraph:
    """The graph whose node 0 is `first` and whose other nodes are the others in order."""
    names = np.array([first, *(node for node in range(num_nodes) if node != first)], np.intp)
    return RouteGraph(names[nodes], waves)


def _split(
    tables: StageTables, found: RouteFound, nodes: Sequence[NodeSpeeds], hops: HopCosts, workload: Workload
) -> OptimalSplit:
    ends = [tables.positions[end] for end in found.ends]
    ranges = map(LayerRange, [0, *ends], ends)
    stages = tuple((nodes[node].name, layers) for node, layers in zip(found.nodes, ranges, strict=False))
    cost = cost_of(stages, nodes, hops, workload)
    return OptimalSplit(
        stages=stages,
        cost_s=cost.cost_s,
        prefill_s=cost.prefill_s,
        decode_s=cost.decode_s,
        bottleneck_s=cost.bottleneck_s,
    )


def _check(sizes: ModelSizes, kv_bytes: Sequence[int], nodes: Sequence[NodeSpeeds], workload: Workload) -> None:
    num_layers = len(sizes.layers)
    if workload.num_chunks < 1 or workload.generated_tokens < 0:
        raise ValueError("a workload must have at least one chunk and no fewer than 0 tokens")
    if len(kv_bytes) != num_layers:
        raise ValueError(f"kv_bytes must be given for each of the {num_layers} layers, not for {len(kv_bytes)}")
    for node in nodes:
        if not len(node.decode_s) == len(node.chunk_s) == num_layers:
            raise ValueError(f"{node.name}: decode_s and chunk_s must be given for each of the {num_layers} layers")
    if len({node.name for node in nodes}) < len(nodes):
        raise ValueError("nodes must have names of their own")
