"""Which worker holds which layers, by how fast each is and what lies between them: the plan that replaces an even one.

Where some worker holds the full model, short prompts and long answers are its own to take, so the pipeline is made for long
prompts; where none does, for both. A worker that would only hold the others up has no stage; it still serves alone where it has
room for the full model. Pure.
"""

import math
from collections.abc import Mapping, Sequence

import msgspec

from strategy.layer_speeds import LayerSpeeds
from strategy.optimal_split import optimal_split
from strategy.partition import HEADROOM, ModelSizes, Node, Partition, Stage, fits
from strategy.split_costs import HopCosts, NodeSpeeds, Workload, cost_of
from strategy.stage_speed import Hop
from strategy.vocabulary import LayerRange, Route

# A prompt of some thousand tokens; and where every token goes through all stages, an answer to it.
READING = Workload(num_chunks=16, generated_tokens=0)
READING_AND_ANSWERING = Workload(num_chunks=16, generated_tokens=128)
# Another plan is made for no less: it costs an epoch and what newly has to be read.
WORTH_A_PLAN = 1.15
# What changes less is not looked at; of links, by the time of so many bytes.
_NOTICED = 1.1
_NOTICED_BYTES = 1 << 18


class Pace(msgspec.Struct, frozen=True, kw_only=True):
    """How fast a worker is. slowness: by how much longer its steps take now than `speeds` says; hops: to others, where they are
    known; payload_bytes: of one token, to the next stage.
    """

    speeds: LayerSpeeds
    slowness: float = 1.0
    hops: Mapping[str, Hop] = {}
    payload_bytes: int = 0


def measured_partition(
    sizes: ModelSizes, nodes: Sequence[Node], paces: Mapping[str, Pace], legal_cuts: Sequence[int]
) -> Partition | None:
    """The fastest pipeline of two stages or more; None where there is none, or a worker's pace is not known for every layer."""
    speeds = _node_speeds(sizes, nodes, paces)
    if speeds is None or len(nodes) < 2 or any(node.layers is not None for node in nodes):
        return None
    hops = _hop_costs(paces)
    found = optimal_split(sizes, _beyond_headroom(sizes), speeds, hops, _workload(sizes, nodes), legal_cuts)
    if found is None:
        return None
    by_name = {node.name: node for node in nodes}
    stages = [
        Stage(
            worker=name, layers=layers, weights_bytes=sizes.stage(*layers), holds_full_model=fits(sizes, by_name[name])
        )
        for name, layers in found.stages
    ]
    whole = LayerRange(0, len(sizes.layers))
    beside = [
        Stage(worker=node.name, layers=whole, weights_bytes=sizes.total, holds_full_model=True)
        for node in nodes
        if node.name not in dict(found.stages) and fits(sizes, node)
    ]
    return Partition(stages=(*stages, *beside), pipeline=Route(tuple(name for name, _ in found.stages)))


def _beyond_headroom(sizes: ModelSizes) -> list[int]:
    """What the caches of each layer take beyond the share of its weights that is left free anyway, in terms of weights."""
    caches = sizes.caches or (0,) * len(sizes.layers)
    over = (free - (HEADROOM - 1) * weights for free, weights in zip(caches, sizes.layers, strict=True))
    return [math.ceil(max(each, 0) / HEADROOM) for each in over]


def is_worth_it(
    sizes: ModelSizes, nodes: Sequence[Node], paces: Mapping[str, Pace], now: Partition, instead: Partition
) -> bool:
    """Whether another partition promises so much that the one in force should go."""
    if now.pipeline is None or instead.pipeline is None or not set(now.pipeline) <= {node.name for node in nodes}:
        return False
    speeds = _node_speeds(sizes, nodes, paces)
    if speeds is None:
        return False
    costs = [
        cost_of(_pipeline(each), speeds, _hop_costs(paces), _workload(sizes, nodes)).cost_s for each in (now, instead)
    ]
    return costs[0] >= WORTH_A_PLAN * costs[1]


def differ(before: Mapping[str, Pace], after: Mapping[str, Pace]) -> bool:
    """Whether anybody is clearly faster or slower than before, or clearly better or worse to reach."""
    return before.keys() != after.keys() or any(_differs(before[name], pace) for name, pace in after.items())


def _differs(before: Pace, after: Pace) -> bool:
    if before.speeds is not after.speeds and before.speeds != after.speeds:
        return True
    ratios = [after.slowness / before.slowness] if before.slowness else []
    ratios += [
        hop.seconds(_NOTICED_BYTES) / before.hops[name].seconds(_NOTICED_BYTES)
        for name, hop in after.hops.items()
        if name in before.hops
    ]
    moved = max((max(ratio, 1 / ratio) for ratio in ratios), default=1.0)
    return before.hops.keys() != after.hops.keys() or moved > _NOTICED


def _pipeline(found: Partition) -> list[tuple[str, LayerRange]]:
    assert found.pipeline is not None
    return [(stage.worker, stage.layers) for stage in found.stages if stage.worker in found.pipeline.workers]


def _workload(sizes: ModelSizes, nodes: Sequence[Node]) -> Workload:
    return READING if any(fits(sizes, node) for node in nodes) else READING_AND_ANSWERING


def _node_speeds(sizes: ModelSizes, nodes: Sequence[Node], paces: Mapping[str, Pace]) -> list[NodeSpeeds] | None:
    width = len(sizes.layers) / max(len(nodes), 1)
    found = [_speeds_of(sizes, node, paces.get(node.name), width) for node in nodes]
    known = [each for each in found if each is not None]
    return known if len(known) == len(found) else None


def _speeds_of(sizes: ModelSizes, node: Node, pace: Pace | None, width: float) -> NodeSpeeds | None:
    """width: layers of a stage on average, which share what every stage takes beside its layers."""
    if pace is None or pace.speeds.embedding is None or pace.speeds.head is None:
        return None
    decode_s = [each for each in pace.speeds.decode_s if each is not None]
    chunk_s = [each for each in pace.speeds.chunk_s if each is not None]
    if not len(decode_s) == len(chunk_s) == len(sizes.layers):
        return None
    shared, slowness = pace.speeds.overhead, pace.slowness
    return NodeSpeeds(
        name=node.name,
        decode_s=tuple((each + shared.decode_s / width) * slowness for each in decode_s),
        chunk_s=tuple((each + shared.chunk_s / width) * slowness for each in chunk_s),
        embed_decode_s=pace.speeds.embedding.decode_s * slowness,
        embed_chunk_s=pace.speeds.embedding.chunk_s * slowness,
        head_decode_s=pace.speeds.head.decode_s * slowness,
        head_chunk_s=pace.speeds.head.chunk_s * slowness,
        room_bytes=min(  # all on one is no pipeline
            int(node.memory_limit_bytes / HEADROOM), sizes.total + sum(_beyond_headroom(sizes)) - 1
        ),
    )


def _hop_costs(paces: Mapping[str, Pace]) -> HopCosts:
    decode: dict[tuple[str, str], float] = {}
    chunk: dict[tuple[str, str], float] = {}
    for sender, pace in paces.items():
        for receiver, hop in pace.hops.items():
            decode[sender, receiver] = hop.seconds(pace.payload_bytes)
            chunk[sender, receiver] = hop.seconds(pace.payload_bytes * pace.speeds.chunk_tokens)
    largest = max(decode.values(), default=0.0), max(chunk.values(), default=0.0)
    return HopCosts(default_decode_s=largest[0], default_chunk_s=largest[1], pair_decode_s=decode, pair_chunk_s=chunk)
