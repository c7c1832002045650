"""What a split of the model costs a request: how fast each node is at each layer, what hops cost, how long the work is.

Values and their arithmetic; what the best split is, `strategy/optimal_split.py` finds. Knows nothing of how speeds were
measured. With S stages, stage i on node n_i, m chunks of a prompt and G generated tokens:

    J = sum_i (prefill_i + hop_i) + (m - 1) max_i (prefill_i + hop_i) + G (sum_i decode_i + decode hops)

which is the J(w) of the design's planning chapter (a pipeline of equal chunks: the first one passes every stage, each
further one costs what the slowest stage takes). Refined here:

- hops are those of ordered pairs of nodes, not one figure for all;
- a prefill hop lies between two stages, so the last stage has none: what it gives on is a token id;
- the S decode hops are the S - 1 between stages and the way of the ids from the last stage to the first; a single stage
  has none;
- the embedding's seconds belong to the stage with layer 0, the head's to the one with the last layer. The head projects
  every token in decode, and in prefill only the last position of a chunk;
- a stage computes and then passes on: the one does not hide the other, so both are in the maximum.
"""

import itertools
from collections.abc import Mapping, Sequence

import msgspec

from strategy.partition import ModelSizes
from strategy.vocabulary import LayerRange

# The stages of a split in layer order: the name of the node, its layers.
Stages = Sequence[tuple[str, LayerRange]]


class NodeSpeeds(msgspec.Struct, frozen=True, kw_only=True):
    """How fast a node is, in seconds, and how many bytes a stage on it may take.

    decode_s, chunk_s: of each layer, one decode step at batch 1 and one prefill chunk. embed_*: added where a stage has
    layer 0; head_*: where it has the last layer.
    """

    name: str
    decode_s: tuple[float, ...]
    chunk_s: tuple[float, ...]
    embed_decode_s: float
    embed_chunk_s: float
    head_decode_s: float
    head_chunk_s: float
    room_bytes: int

    def stage_decode_s(self, layers: LayerRange) -> float:
        """Seconds of one decode step of a stage."""
        return sum(self.decode_s[layers.start : layers.end]) + self._ends(
            layers, self.embed_decode_s, self.head_decode_s
        )

    def stage_chunk_s(self, layers: LayerRange) -> float:
        """Seconds of one prefill chunk of a stage."""
        return sum(self.chunk_s[layers.start : layers.end]) + self._ends(layers, self.embed_chunk_s, self.head_chunk_s)

    def _ends(self, layers: LayerRange, embed_s: float, head_s: float) -> float:
        return (embed_s if layers.start == 0 else 0.0) + (head_s if layers.end == len(self.chunk_s) else 0.0)


class HopCosts(msgspec.Struct, frozen=True, kw_only=True):
    """Seconds for passing on from one node to another: a decode step's hidden states (or its ids), a chunk's.

    Pairs are (from, to); what is not among them costs the default. math.inf: these two have no link.
    """

    default_decode_s: float
    default_chunk_s: float
    pair_decode_s: Mapping[tuple[str, str], float] = {}
    pair_chunk_s: Mapping[tuple[str, str], float] = {}

    def decode_s(self, sender: str, receiver: str) -> float:
        return self.pair_decode_s.get((sender, receiver), self.default_decode_s)

    def chunk_s(self, sender: str, receiver: str) -> float:
        return self.pair_chunk_s.get((sender, receiver), self.default_chunk_s)


class Workload(msgspec.Struct, frozen=True, kw_only=True):
    """A request as a split sees it: prefill chunks (at least 1) and generated tokens."""

    num_chunks: int
    generated_tokens: int


class SplitCost(msgspec.Struct, frozen=True, kw_only=True):
    """What a split costs. cost_s: J, of which prefill_s is all chunks; decode_s: each token; bottleneck_s: each further
    chunk, which is the slowest stage with its hop.
    """

    cost_s: float
    prefill_s: float
    decode_s: float
    bottleneck_s: float


def cost_of(stages: Stages, nodes: Sequence[NodeSpeeds], hops: HopCosts, workload: Workload) -> SplitCost:
    """J of a given split, and its parts. Memory is not looked at: `stage_bytes` says what a stage takes.

    Raises:
        ValueError: the stages do not cover the layers in order, or a node is unknown or has two of them.
    """
    speeds = {node.name: node for node in nodes}
    names = [name for name, _ in stages]
    _check(stages, speeds)
    computing = [speeds[name].stage_chunk_s(layers) for name, layers in stages]
    passing = [hops.chunk_s(*pair) for pair in itertools.pairwise(names)]
    each_s = [stage + hop for stage, hop in zip(computing, [*passing, 0.0], strict=True)]
    # The ids go from the last stage back to the first.
    round_s = [hops.decode_s(*pair) for pair in zip(names, [*names[1:], names[0]], strict=True)] if names[1:] else []
    decode_s = sum(speeds[name].stage_decode_s(layers) for name, layers in stages) + sum(round_s)
    prefill_s = sum(each_s) + (workload.num_chunks - 1) * max(each_s) if workload.num_chunks > 1 else sum(each_s)
    generating_s = workload.generated_tokens * decode_s if workload.generated_tokens else 0.0
    return SplitCost(cost_s=prefill_s + generating_s, prefill_s=prefill_s, decode_s=decode_s, bottleneck_s=max(each_s))


def stage_bytes(sizes: ModelSizes, kv_bytes: Sequence[int], layers: LayerRange) -> int:
    """What a stage takes of its node's room: its weights (tied embeddings as `ModelSizes.stage` counts them) and its KV.

    kv_bytes: for each layer, at the context that is wanted.
    """
    return sizes.stage(*layers) + sum(kv_bytes[layers.start : layers.end])


def _check(stages: Stages, speeds: Mapping[str, NodeSpeeds]) -> None:
    names = [name for name, _ in stages]
    if not names or len(set(names)) < len(names) or not set(names) <= set(speeds):
        raise ValueError(f"stages must name known nodes, each once; these are {names}")
    starts = [layers.start for _, layers in stages]
    ends = [layers.end for _, layers in stages]
    num_layers = len(speeds[names[0]].chunk_s)
    if [0, *ends] != [*starts, num_layers] or any(start >= end for start, end in zip(starts, ends, strict=True)):
        raise ValueError(f"stages must cover the {num_layers} layers in order; they begin at {starts}, end at {ends}")
