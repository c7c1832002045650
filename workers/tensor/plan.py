"""What is cut in a model and how, as a value: made by one process, obeyed by every rank.

Owns the form and the names by which modules are found again. A plan speaks of counts (heads, widths), never of numbers, so that
what was tried on a tiny model holds for the real one.
"""

import re
from collections.abc import Iterator
from typing import Literal

import msgspec
from mlx import nn

from workers.tensor.leaves import is_leaf, modules_in

_NUMBER = re.compile(r"(?<=\.)\d+(?=\.|$)|^\d+(?=\.|$)")


class PartCut(msgspec.Struct, frozen=True):
    """Of one weight.

    axis: "out" and "in" of a linear layer, or which axis of an array. blocks: what it consists of there, one behind the other: each
    is of as many features for each of "queries" (heads), "keys" (heads), "groups" (a key head with the queries that share it), or for
    each input of the sibling of that name. summed: what it returns is added up over the ranks at once.
    """

    axis: Literal["out", "in"] | int
    blocks: tuple[str, ...]
    summed: bool = False


class ModuleCut(msgspec.Struct, frozen=True, kw_only=True):
    """Of one class of module. Paths are from the module on, with `*` for numbers.

    counts: attributes that hold a number of heads: "queries", "keys", or "shared" queries of one key head. widths: attributes that
    hold the width of a part (of block N of it: `part/N`), or where its blocks end. norms: run over the features of a part.
    gathered: linear layers that may be cut by their outputs, which are gathered at once, see `CutPlan.most_whole`. summed: what the
    module returns is added up over the ranks.
    """

    kind: Literal["feed-forward", "heads", "gather"]
    parts: dict[str, PartCut] = {}
    counts: dict[str, Literal["queries", "keys", "shared"]] = {}
    widths: dict[str, str] = {}
    norms: tuple[str, ...] = ()
    gathered: tuple[str, ...] = ()
    summed: bool = False


class CutPlan(msgspec.Struct, frozen=True, kw_only=True):
    """Of one architecture and layer structure.

    modules: for each role, see `roles`, the cuts that came out right, best first; the first that the real shapes allow is taken.
    projection: the module outside the layers that makes logits, cut by the vocabulary; None leaves it whole. most_whole: what may
    stay whole of a layer, as a part of its weights: beyond it linear layers are gathered, the largest first.
    """

    architecture: str
    size: int
    modules: dict[str, tuple[ModuleCut, ...]]
    projection: str | None = None
    most_whole: float = 0.0


def roles(layer: nn.Module) -> Iterator[tuple[str, nn.Module]]:
    """The parts of a layer that are cut as one (attention, feed-forward and the like), by where they stand and their class. What
    holds no module but leaves, and the layer's own leaves, count too: the latter as the layer itself, the last one.
    """
    own = False
    for name, child in layer.children().items():
        for path, module in modules_in(child, name):
            if is_leaf(module):
                own = True
            else:
                yield f"{pattern(path)}:{type(module).__name__}", module
    if own:
        yield f":{type(layer).__name__}", layer


def place(role: str) -> str:
    """Where the modules of a role stand in their layers."""
    return role.partition(":")[0]


def pattern(path: str) -> str:
    """A path with `*` in place of its numbers."""
    return _NUMBER.sub("*", path)
