"""Which worker holds which layers: as even as possible by real bytes, within each worker's memory limit.

Pure functions. A partition never cuts where the architecture cannot be cut, and never gives a worker more weights than its
limit allows; a worker with room for it also holds the full model, sharing the weights of its stage. After a loss what the
survivors have in memory decides first, so that only what the lost worker alone held is read.
"""

import math
from collections.abc import Sequence

import msgspec

from strategy.vocabulary import LayerRange, Route

# What a worker needs with its weights, as a share of them, where the caches do not need more: activations and some caches.
HEADROOM = 1.1


class NoPlan(Exception):
    """No split of the model over these workers; the message says what to change.

    settings_at_fault: other settings could help; else the model itself does not allow it.
    """

    def __init__(self, message: str, *, settings_at_fault: bool = True):
        super().__init__(message)
        self.settings_at_fault = settings_at_fault


class GroupSizes(msgspec.Struct, frozen=True, kw_only=True):
    """Workers that compute the whole model together. layers: of each stage of their route; rank_bytes: of the weights that each worker
    has for that, in the order of the route.
    """

    route: Route
    layers: tuple[LayerRange, ...]
    rank_bytes: tuple[int, ...]

    def bytes_of(self, worker: str) -> int:
        """0 for one that is not of it."""
        return self.rank_bytes[self.route.workers.index(worker)] if worker in self.route.workers else 0

    def layers_of(self, worker: str) -> LayerRange:
        """Of which a worker has its part. Raises ValueError for one that is not of it."""
        return self.layers[self.route.stage_of(worker)]


class ModelSizes(msgspec.Struct, frozen=True, kw_only=True):
    """Bytes of weights: per decoder layer, of the embedding, and of all else (norms, head); `tied`: no own head.

    caches: what each layer's weights have to leave free, for the caches of what is to run; () where that is not known; caches_of: for
    what, in words. groups: of workers that are to compute it together, each in one at most; why_no_group: a clause where they cannot.
    """

    layers: tuple[int, ...]
    embedding: int
    head: int
    tied: bool
    caches: tuple[int, ...] = ()
    caches_of: str = ""
    groups: tuple[GroupSizes, ...] = ()
    why_no_group: str | None = None

    @property
    def total(self) -> int:
        return sum(self.layers) + self.embedding + self.head

    def stage(self, start: int, end: int) -> int:
        """Bytes that a stage of layers [start, end) reads."""
        size = sum(self.layers[start:end])
        if start == 0:
            size += self.embedding
        if end == len(self.layers):
            size += self.head + (self.embedding if self.tied and start > 0 else 0)
        return size

    def needed(self, start: int, end: int) -> int:
        """The memory limit that a stage of layers [start, end) takes: its weights, and what they have to leave free."""
        weights = self.stage(start, end)
        return max(math.ceil(weights * HEADROOM), weights + sum(self.caches[start:end]))

    def told(self, start: int, end: int) -> str:
        """The same sum in words."""
        weights, needed = self.stage(start, end), self.needed(start, end)
        caches = sum(self.caches[start:end])
        rest = f"{_gb(needed - weights)} for caches and activations" + (f" ({self.caches_of})" if caches else "")
        return f"{_gb(needed)}, {_gb(weights)} of weights and {rest}"

    def missing(self, start: int, end: int, held: Sequence[LayerRange]) -> int:
        """Bytes that a stage of layers [start, end) has to read where the ranges `held` are in memory already."""
        has = {layer for range_ in held for layer in range(*range_)}
        size = sum(self.layers[layer] for layer in range(start, end) if layer not in has)
        first, last = any(range_.start == 0 for range_ in held), any(range_.end == len(self.layers) for range_ in held)
        if start == 0 and not first:
            size += self.embedding
        if end == len(self.layers) and not last:
            size += self.head + (self.embedding if self.tied and start > 0 and not first else 0)
        return size


class Node(msgspec.Struct, frozen=True, kw_only=True):
    """A worker as the planner sees it.

    layers: a manual split, or None; held: layers whose weights it has in memory; copies: layers of others whose KV it has.
    """

    name: str
    memory_limit_bytes: int
    layers: LayerRange | None = None
    held: tuple[LayerRange, ...] = ()
    copies: tuple[LayerRange, ...] = ()


class Stage(msgspec.Struct, frozen=True, kw_only=True):
    """A worker's layers, the bytes of them, and whether it also holds the full model. NO_LAYERS: at most its part of a group's."""

    worker: str
    layers: LayerRange
    weights_bytes: int
    holds_full_model: bool


class Partition(msgspec.Struct, frozen=True, kw_only=True):
    """Every worker of a plan with what it holds. pipeline: the stages in order; None for the reason in `why_not`: the model cannot be cut,
    so that each worker holds all of it, or groups have room for their parts only. groups: which have their parts beside that, whoever of
    them is there; why_no_group: where there was no room for them.
    """

    stages: tuple[Stage, ...]
    pipeline: Route | None
    why_not: str | None = None
    groups: tuple[GroupSizes, ...] = ()
    why_no_group: str | None = None

    def part_bytes(self, worker: str) -> int:
        """Of weights that a worker has for groups."""
        return sum(group.bytes_of(worker) for group in self.groups)

    def weights_bytes(self, sizes: ModelSizes, stage: Stage) -> int:
        """Of all weights that a worker has: its stage's or the full model's, and its parts."""
        return (sizes.total if stage.holds_full_model else stage.weights_bytes) + self.part_bytes(stage.worker)


def partition(sizes: ModelSizes, nodes: Sequence[Node], legal_cuts: Sequence[int], *, why_not: str | None) -> Partition:
    """The stages in layer order, one for each node, as even as possible.

    why_not: why the architecture cannot be cut at all, or None; then each node with room holds the whole model.

    Raises:
        NoPlan: more nodes than layers, a manual split that does not cover the model, or no split that fits.
    """
    num_layers = len(sizes.layers)
    if why_not is not None:
        return _replicas(sizes, nodes, why_not)
    if len(nodes) > num_layers:
        raise NoPlan(
            f"{len(nodes)} workers are more than the model's {num_layers} layers; use at most {num_layers} workers"
        )
    if any(node.layers is not None for node in nodes):
        return _of(sizes, nodes, _manual_bounds(nodes, num_layers, legal_cuts))
    return _of(sizes, nodes, _best_bounds(sizes, nodes, legal_cuts, least_read=False))


def partition_of_survivors(
    sizes: ModelSizes, nodes: Sequence[Node], legal_cuts: Sequence[int], *, why_not: str | None
) -> Partition:
    """As `partition`, with as little as possible to read, then with as much as possible of KV copies, then even.

    A manual split is no wish of the survivors and does not count. Raises NoPlan.
    """
    if why_not is not None:
        return _replicas(sizes, nodes, why_not)
    return _of(sizes, nodes, _best_bounds(sizes, nodes, legal_cuts, least_read=True))


def even_bounds(sizes: ModelSizes, num_stages: int, legal_cuts: Sequence[int]) -> tuple[LayerRange, ...]:
    """The layers of so many stages, as even as possible whoever has them. Raises NoPlan where the model has no such cuts."""
    nodes = [Node(name="", memory_limit_bytes=sizes.needed(0, len(sizes.layers)))] * num_stages
    return _best_bounds(sizes, nodes, legal_cuts, least_read=False)


def fits(sizes: ModelSizes, node: Node) -> bool:
    """Whether the full model fits within the node's limit."""
    return sizes.needed(0, len(sizes.layers)) <= node.memory_limit_bytes


def full_model_shortage(sizes: ModelSizes, nodes: Sequence[Node]) -> str:
    """How much one worker needs for the full model and how much the largest has, in words."""
    largest = max(nodes, key=lambda node: node.memory_limit_bytes)
    return (
        f"the full model needs {sizes.told(0, len(sizes.layers))}, on one worker, and the largest, "
        f"{largest.name}, has {_gb(largest.memory_limit_bytes)}"
    )


def _of(sizes: ModelSizes, nodes: Sequence[Node], bounds: Sequence[LayerRange]) -> Partition:
    stages = tuple(_stage(sizes, node, layers) for node, layers in zip(nodes, bounds, strict=True))
    for node, stage in zip(nodes, stages, strict=True):
        if sizes.needed(*stage.layers) > node.memory_limit_bytes:
            raise NoPlan(
                f"what {node.name} is given needs {sizes.told(*stage.layers)}, but it has "
                f"{_gb(node.memory_limit_bytes)}; raise its memory_limit, plan for less or add a worker"
            )
    return Partition(stages=stages, pipeline=Route(tuple(node.name for node in nodes)))


def _stage(sizes: ModelSizes, node: Node, layers: LayerRange) -> Stage:
    return Stage(
        worker=node.name,
        layers=layers,
        weights_bytes=sizes.stage(*layers),
        holds_full_model=fits(sizes, node),
    )


def _replicas(sizes: ModelSizes, nodes: Sequence[Node], why_not: str) -> Partition:
    whole = LayerRange(0, len(sizes.layers))
    stages = tuple(_stage(sizes, node, whole) for node in nodes if fits(sizes, node))
    if not stages:
        shortage = full_model_shortage(sizes, nodes)
        raise NoPlan(f"the model cannot be split ({why_not}), and {shortage}", settings_at_fault=False)
    return Partition(stages=stages, pipeline=None, why_not=f"the model cannot be split: {why_not}")


def _manual_bounds(nodes: Sequence[Node], num_layers: int, legal_cuts: Sequence[int]) -> list[LayerRange]:
    bounds: list[LayerRange] = []
    expected = 0
    for node in nodes:
        if node.layers is None:
            raise NoPlan(f"workers.layers is set for some workers but not for {node.name}; set it for all or none")
        start, end = node.layers
        if start != expected or not start < end <= num_layers:
            raise NoPlan(
                f"workers.layers of {node.name} is [{start}, {end}] but must begin at {expected} and end within the "
                f"model's {num_layers} layers"
            )
        if end < num_layers and end not in legal_cuts:
            raise NoPlan(f"the model cannot be cut at layer {end}; it can at {_listed(legal_cuts)}")
        bounds.append(LayerRange(start, end))
        expected = end
    if expected != num_layers:
        raise NoPlan(f"workers.layers end at layer {expected} but the model has {num_layers}")
    return bounds


class _Split(msgspec.Struct, frozen=True):
    """The first stages of a split: what counts, in this order, and their bounds."""

    read_bytes: int
    layers_without_kv: int
    largest: int
    squares: int
    bounds: tuple[LayerRange, ...]

    @property
    def cost(self) -> tuple[int, int, int, int]:
        return self.read_bytes, self.layers_without_kv, self.largest, self.squares

    def and_then(self, size: int, read_bytes: int, layers_without_kv: int, layers: LayerRange) -> "_Split":
        return _Split(
            self.read_bytes + read_bytes,
            self.layers_without_kv + layers_without_kv,
            max(self.largest, size),
            self.squares + size * size,
            (*self.bounds, layers),
        )


def _best_bounds(
    sizes: ModelSizes, nodes: Sequence[Node], legal_cuts: Sequence[int], *, least_read: bool
) -> tuple[LayerRange, ...]:
    """The cheapest split, by dynamic programming over the legal cuts."""
    num_layers = len(sizes.layers)
    cuts = [0, *sorted(cut for cut in legal_cuts if 0 < cut < num_layers), num_layers]
    if len(cuts) - 1 < len(nodes):
        raise NoPlan(
            f"the model can be cut at {_listed(legal_cuts)} only, so at most {len(cuts) - 1} workers can share it"
        )
    best = {0: _Split(0, 0, 0, 0, ())}
    for node in nodes:
        following: dict[int, _Split] = {}
        for start, before in best.items():
            for end in (cut for cut in cuts if cut > start):
                size = sizes.stage(start, end)
                if sizes.needed(start, end) > node.memory_limit_bytes:
                    break
                read_bytes = sizes.missing(start, end, node.held) if least_read else 0
                split = before.and_then(size, read_bytes, _without_kv(node, start, end), LayerRange(start, end))
                if end not in following or split.cost < following[end].cost:
                    following[end] = split
        best = following
    if num_layers not in best:
        total = sum(node.memory_limit_bytes for node in nodes)
        raise NoPlan(
            f"the model's weights and caches do not fit the {len(nodes)} workers: it needs {sizes.told(0, num_layers)}, "
            f"and they have {_gb(total)} together; raise memory_limit, plan for less or add a worker"
        )
    return best[num_layers].bounds


def _without_kv(node: Node, start: int, end: int) -> int:
    """Layers of a stage whose KV would have to be computed anew, where copies are kept at all."""
    if not node.copies:
        return 0
    return sum(not any(there <= layer < stop for there, stop in node.copies) for layer in range(start, end))


def _listed(cuts: Sequence[int]) -> str:
    return ", ".join(map(str, cuts)) or "no layer"


def _gb(size: int) -> str:
    return f"{size / 1e9:.2f} GB" if size >= 10_000_000 else f"{size / 1e6:.1f} MB"
