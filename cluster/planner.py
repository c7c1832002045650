"""Which worker holds which layers: as even as possible by real bytes, within each worker's memory limit.

Pure functions. A plan never cuts where the architecture cannot be cut, and never gives a worker more weights than its
limit allows; a worker with room for it also holds the full model, sharing the weights of its stage.
"""

import math
from collections.abc import Sequence

import msgspec

from cluster.errors import ModelError, UsageError
from cluster.model_files import ModelSizes


class Node(msgspec.Struct, frozen=True, kw_only=True):
    """A worker as the planner sees it. layers: a manual split, half open, or None."""

    name: str
    memory_limit_bytes: int
    layers: tuple[int, int] | None = None


class Stage(msgspec.Struct, frozen=True, kw_only=True):
    """A worker's layers [start, end), their bytes, and whether it also holds the full model."""

    worker: str
    start: int
    end: int
    weights_bytes: int
    holds_full_model: bool


# What a worker needs beside weights, as a share of them: activations and the KV of its layers.
_HEADROOM = 1.1


def plan(sizes: ModelSizes, nodes: Sequence[Node], legal_cuts: Sequence[int], *, why_not: str | None) -> list[Stage]:
    """The stages in layer order, one for each node.

    why_not: why the architecture cannot be cut at all, or None.

    Raises:
        UsageError: more nodes than layers, a manual split that does not cover the model, or no split that fits.
        ModelError: the architecture cannot be cut and fits no node.
    """
    num_layers = len(sizes.layers)
    if why_not is not None:
        return [_whole_on_one(sizes, nodes, why_not)]
    if len(nodes) > num_layers:
        raise UsageError(
            f"{len(nodes)} workers are more than the model's {num_layers} layers; use at most {num_layers} workers"
        )
    manual = [node for node in nodes if node.layers is not None]
    bounds = _manual_bounds(nodes, num_layers, legal_cuts) if manual else _even_bounds(sizes, nodes, legal_cuts)
    stages = [_stage(sizes, node, start, end) for node, (start, end) in zip(nodes, bounds, strict=True)]
    for node, stage in zip(nodes, stages, strict=True):
        if stage.weights_bytes * _HEADROOM > node.memory_limit_bytes:
            raise UsageError(
                f"{node.name} is given {_gb(stage.weights_bytes)} of weights but has room for "
                f"{_gb(int(node.memory_limit_bytes / _HEADROOM))}; raise its memory_limit or add a worker"
            )
    return stages


def fits(sizes: ModelSizes, node: Node) -> bool:
    """Whether the full model fits within the node's limit."""
    return sizes.total * _HEADROOM <= node.memory_limit_bytes


def full_model_shortage(sizes: ModelSizes, nodes: Sequence[Node]) -> str:
    """How much one worker needs for the full model and how much the largest has, in words."""
    largest = max(nodes, key=lambda node: node.memory_limit_bytes)
    return (
        f"the full model needs {_gb(math.ceil(sizes.total * _HEADROOM))} on one worker, and the largest, "
        f"{largest.name}, has {_gb(largest.memory_limit_bytes)}"
    )


def _stage(sizes: ModelSizes, node: Node, start: int, end: int) -> Stage:
    return Stage(
        worker=node.name,
        start=start,
        end=end,
        weights_bytes=sizes.stage(start, end),
        holds_full_model=fits(sizes, node),
    )


def _whole_on_one(sizes: ModelSizes, nodes: Sequence[Node], why_not: str) -> Stage:
    largest = max(nodes, key=lambda node: node.memory_limit_bytes)
    if not fits(sizes, largest):
        raise ModelError(f"the model cannot be split ({why_not}), and {full_model_shortage(sizes, nodes)}")
    return _stage(sizes, largest, 0, len(sizes.layers))


def _manual_bounds(nodes: Sequence[Node], num_layers: int, legal_cuts: Sequence[int]) -> list[tuple[int, int]]:
    bounds: list[tuple[int, int]] = []
    expected = 0
    for node in nodes:
        if node.layers is None:
            raise UsageError(f"workers.layers is set for some workers but not for {node.name}; set it for all or none")
        start, end = node.layers
        if start != expected or not start < end <= num_layers:
            raise UsageError(
                f"workers.layers of {node.name} is [{start}, {end}] but must begin at {expected} and end within the "
                f"model's {num_layers} layers"
            )
        if end < num_layers and end not in legal_cuts:
            raise UsageError(f"the model cannot be cut at layer {end}; it can at {_listed(legal_cuts)}")
        bounds.append((start, end))
        expected = end
    if expected != num_layers:
        raise UsageError(f"workers.layers end at layer {expected} but the model has {num_layers}")
    return bounds


def _even_bounds(sizes: ModelSizes, nodes: Sequence[Node], legal_cuts: Sequence[int]) -> list[tuple[int, int]]:
    """Minimize the largest stage, then the sum of squares, by dynamic programming over the legal cuts."""
    num_layers = len(sizes.layers)
    cuts = [0, *sorted(cut for cut in legal_cuts if 0 < cut < num_layers), num_layers]
    if len(cuts) - 1 < len(nodes):
        raise UsageError(
            f"the model can be cut at {_listed(legal_cuts)} only, so at most {len(cuts) - 1} workers can share it"
        )
    # best[cut] = (largest stage, sum of squares, bounds) over the nodes placed so far
    best: dict[int, tuple[int, int, list[tuple[int, int]]]] = {0: (0, 0, [])}
    for node in nodes:
        room = int(node.memory_limit_bytes / _HEADROOM)
        following: dict[int, tuple[int, int, list[tuple[int, int]]]] = {}
        for start, (largest, squares, bounds) in best.items():
            for end in (cut for cut in cuts if cut > start):
                size = sizes.stage(start, end)
                if size > room:
                    break
                candidate = (max(largest, size), squares + size * size, [*bounds, (start, end)])
                if end not in following or candidate[:2] < following[end][:2]:
                    following[end] = candidate
        best = following
    if num_layers not in best:
        total = sum(int(node.memory_limit_bytes / _HEADROOM) for node in nodes)
        raise UsageError(
            f"the model's {_gb(sizes.total)} of weights do not fit the {len(nodes)} workers, which have room for "
            f"{_gb(total)} together; raise memory_limit or add a worker"
        )
    return best[num_layers][2]


def _listed(cuts: Sequence[int]) -> str:
    return ", ".join(map(str, cuts)) or "no layer"


def _gb(size: int) -> str:
    return f"{size / 1e9:.2f} GB" if size >= 10_000_000 else f"{size / 1e6:.1f} MB"
