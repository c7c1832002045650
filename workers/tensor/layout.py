"""Where one module is cut, from its shapes: the ranges of each of its parts that a rank keeps.

Owns the arithmetic between a plan's counts and a real module's widths. Reads shapes and attributes, changes nothing.
"""

from collections.abc import Iterable
from math import gcd, lcm
from typing import Any

import mlx.core as mx
from mlx import nn

from workers.tensor.leaves import in_unit, in_width, is_leaf, out_width, submodules
from workers.tensor.plan import ModuleCut, PartCut, pattern
from workers.tensor.spans import HeadSpans, Span, feature_spans, head_spans

_HEADS = ("queries", "keys", "groups")


class DoesNotFit(Exception):
    """The shapes of a module do not allow a cut: too few heads, or groups of a quantization that would be torn."""


class Piece:
    """A weight with the axis that is cut. owner: the leaf, or the module that holds the array `name`."""

    def __init__(self, path: str, owner: nn.Module, name: str | None, cut: PartCut):
        self.path = path
        self.owner = owner
        self.name = name
        self.cut = cut

    def __repr__(self) -> str:
        return f"Piece({self.path}, {self.cut})"

    @property
    def width(self) -> int:
        if self.name is not None:
            assert isinstance(self.cut.axis, int)
            shape: tuple[int, ...] = self.owner[self.name].shape
            return shape[self.cut.axis]
        return in_width(self.owner) if self.cut.axis == "in" else out_width(self.owner)

    @property
    def parent(self) -> str:
        return self.path.rpartition(".")[0]


class Layout:
    """One module under one cut. Raises DoesNotFit, from the start or when asked for a part that does not divide."""

    def __init__(self, module: nn.Module, cut: ModuleCut, size: int):
        self.cut = cut
        self.size = size
        self._modules = list(submodules(module))
        self.parts = list(self._find_parts())
        if cut.parts and not any(part.cut.axis == "in" for part in self.parts):
            raise DoesNotFit
        self.queries, self.keys = self._heads() if cut.kind == "heads" else (0, 0)

    def __repr__(self) -> str:
        return f"Layout({self.cut.kind}, {len(self.parts)} parts)"

    def matching(self, patterns: Iterable[str]) -> list[nn.Module]:
        """The leaves and norms at these paths."""
        wanted = set(patterns)
        return [
            module
            for path, module in self._modules
            if pattern(path) in wanted and (is_leaf(module) or isinstance(module, nn.RMSNorm))
        ]

    def attributes(self, patterns: Iterable[str]) -> Iterable[tuple[str, str, nn.Module, str]]:
        """Of these attributes those that are there: pattern, path of the owner, owner, name."""
        for found in patterns:
            place, _, name = found.rpartition(".")
            for path, module in self._modules:
                if pattern(path) == place and hasattr(module, name):
                    yield found, path, module, name

    def ranges(self, part: Piece, rank: int) -> list[Span]:
        """What a rank keeps of a part, block by block."""
        found, start = [], 0
        for name, width in zip(part.cut.blocks, self._block_widths(part), strict=True):
            first, last = self.spans(part, name)[rank]
            found.append((start + first * width, start + last * width))
            start += self._total(part, name) * width
        return found

    def spans(self, part: Piece, name: str) -> list[Span]:
        """By rank, of what a block is counted in."""
        if name == "groups" and self.keys < self.size:
            raise DoesNotFit
        if name in _HEADS:
            return [heads.queries if name == "queries" else heads.keys for heads in self.heads()]
        reading = [in_unit(other.owner) for other in self.parts if self._reads(other, part, name)]
        found = feature_spans(self._total(part, name), self.size, lcm(*reading))
        if found is None:
            raise DoesNotFit
        return found

    def heads(self) -> list[HeadSpans]:
        """By rank."""
        found = head_spans(self.queries, self.keys, self.size, self._unit_of_queries())
        if found is None:
            raise DoesNotFit
        return found

    def _find_parts(self) -> Iterable[Piece]:
        for place, cut in self.cut.parts.items():
            owner, _, name = place.rpartition(".")
            for path, module in self._modules:
                if not isinstance(cut.axis, int) and pattern(path) == place and is_leaf(module):
                    yield Piece(path, module, None, cut)
                elif isinstance(cut.axis, int) and pattern(path) == owner and isinstance(module.get(name), mx.array):
                    yield Piece(f"{path}.{name}" if path else name, module, name, cut)

    def _heads(self) -> tuple[int, int]:
        """Query and key heads, as attributes say or, of keys, as fused projections show."""
        said: dict[str, int] = {}
        for found, _, module, name in self.attributes(self.cut.counts):
            said[self.cut.counts[found]] = getattr(module, name)
        queries = said.get("queries", 0)
        if not queries:
            raise DoesNotFit
        return queries, said.get("keys") or self._keys_beside(queries)

    def _keys_beside(self, queries: int) -> int:
        value_width = self._value_width(queries)
        for part in self.parts:
            if part.cut.blocks == ("queries", "keys", "keys"):
                return max(1, (part.width // value_width - queries) // 2)
        return queries

    def _value_width(self, queries: int) -> int:
        return next((part.width // queries for part in self.parts if part.cut.axis == "in"), 1)

    def _unit_of_queries(self) -> int:
        units = [
            in_unit(part.owner) // gcd(in_unit(part.owner), part.width // self.queries)
            for part in self.parts
            if part.cut.axis == "in"
        ]
        return lcm(*units)

    def _reads(self, other: Piece, part: Piece, name: str) -> bool:
        return other.cut.axis == "in" and other.parent == part.parent and other.cut.blocks == (name,)

    def _total(self, part: Piece, name: str) -> int:
        if name in _HEADS:
            return self.queries if name == "queries" else self.keys
        sibling = f"{part.parent}.{name}" if part.parent else name
        return next((in_width(module) for path, module in self._modules if path == sibling), 1)

    def _block_widths(self, part: Piece) -> list[int]:
        names = part.cut.blocks
        totals = [self._total(part, name) for name in names]
        if len(set(names)) == 1:
            widths = [_divided(part.width, sum(totals))] * len(names)
        else:  # values may be of another width than queries and keys, and come last
            last = self._value_width(self.queries)
            rest = part.width - totals[-1] * last
            widths = [*[_divided(rest, sum(totals[:-1]))] * (len(names) - 1), last]
        return widths


def fits(module: nn.Module, cut: ModuleCut, size: int) -> bool:
    """Whether every part of the module divides."""
    try:
        layout = Layout(module, cut, size)
        for part in layout.parts:
            layout.ranges(part, 0)
    except DoesNotFit:
        return False
    return True


def _divided(width: int, count: int) -> int:
    if width <= 0 or width % count:
        raise DoesNotFit
    return width // count


def local_width(ranges: list[Span]) -> int:
    return sum(stop - start for start, stop in ranges)


def local_ends(ranges: list[Span]) -> list[int]:
    """Where the blocks end but the last, of what is kept."""
    ends: list[Any] = []
    for start, stop in ranges[:-1]:
        ends.append((ends[-1] if ends else 0) + stop - start)
    return ends
