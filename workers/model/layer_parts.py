"""From measured ranges of layers to what each layer takes by itself: kinds of layers, and what a few ranges say of their parts.

Layers of one kind take the same, so that a few ranges of a worker's own layers tell of every layer of the model: of a kind that
it never ran nothing is said. Pure but for looking at a model's modules, whose weights are never read.
"""

from collections.abc import Hashable, Iterable, Mapping, Sequence

import numpy as np
from mlx import nn
from mlx.utils import tree_flatten

from protocol.values import LayerRange
from strategy.layer_speeds import LayerSpeeds, PartSpeed

_OVERHEAD, _EMBEDDING, _HEAD = "overhead", "embedding", "head"


class LayerUnits:
    """The smallest ranges that can run by themselves, and which of them are alike. cuts: where the model can be cut."""

    def __init__(self, layers: Sequence[nn.Module], cuts: Sequence[int]):
        bounds = (0, *cuts, len(layers))
        kinds = [_kind(layer) for layer in layers]
        self.num_layers = len(layers)
        self.all = tuple(LayerRange(*bounds[at : at + 2]) for at in range(len(bounds) - 1))
        self.kind_of: Mapping[LayerRange, Hashable] = {unit: tuple(kinds[slice(*unit)]) for unit in self.all}

    def __repr__(self) -> str:
        return f"LayerUnits({len(self.all)} units of {len(set(self.kind_of.values()))} kinds)"

    def within(self, layers: LayerRange) -> list[LayerRange]:
        return [unit for unit in self.all if layers.start <= unit.start and unit.end <= layers.end]

    def to_measure(self, held: Iterable[LayerRange]) -> list[LayerRange]:
        """Of ranges that are measured themselves one unit of each kind, inside the model where there is one, and those at its ends."""
        ranges = set(held)
        units = sorted({unit for layers in ranges for unit in self.within(layers)} - ranges)
        ends = [unit for unit in units if self._is_end(unit)]
        inside: dict[Hashable, LayerRange] = {}
        for unit in units:
            if not self._is_end(unit):
                inside.setdefault(self.kind_of[unit], unit)
        return [*inside.values(), *ends]

    def _is_end(self, unit: LayerRange) -> bool:
        return unit.start == 0 or unit.end == self.num_layers

    def speeds(self, measured: Sequence[tuple[LayerRange, PartSpeed]], chunk_tokens: int) -> LayerSpeeds:
        """What the layers take, from what ranges took."""
        ranges = [layers for layers, _ in measured]
        decode = self._parts(ranges, [speed.decode_s for _, speed in measured])
        chunk = self._parts(ranges, [speed.chunk_s for _, speed in measured])

        def part(name: str) -> PartSpeed | None:
            return PartSpeed(max(decode[name], 0.0), max(chunk[name], 0.0)) if name in decode else None

        return LayerSpeeds(
            decode_s=self._by_layer(decode),
            chunk_s=self._by_layer(chunk),
            chunk_tokens=chunk_tokens,
            overhead=PartSpeed(decode[_OVERHEAD], chunk[_OVERHEAD]),
            embedding=part(_EMBEDDING),
            head=part(_HEAD),
        )

    def _by_layer(self, found: Mapping[Hashable, float]) -> tuple[float | None, ...]:
        """Where the end of the model takes less than nothing, the last layers take that much less: of a chunk nobody asks for
        their output.
        """
        seconds: list[float | None] = []
        for unit in self.all:
            whole_s = found.get(self.kind_of[unit])
            if whole_s is not None and unit.end == self.num_layers:
                whole_s = max(whole_s + min(found.get(_HEAD, 0.0), 0.0), 0.0)
            width = unit.end - unit.start
            seconds += [None if whole_s is None else whole_s / width] * width
        return tuple(seconds)

    def _parts(self, ranges: Sequence[LayerRange], seconds: Sequence[float]) -> dict[Hashable, float]:
        """What each part takes, such that what makes up a range takes what the range did. Wide ranges count for more: they are
        what splits are made of, and one unit alone may run from a processor's cache.
        """
        made_of = [self._made_of(layers) for layers in ranges]
        names = list(dict.fromkeys(name for parts in made_of for name in parts))
        weights = np.array([(layers.end - layers.start) / taken for layers, taken in zip(ranges, seconds, strict=True)])
        matrix = np.array([[float(parts.get(name, 0)) for name in names] for parts in made_of])
        found = _least_squares(
            matrix * weights[:, None], np.array(seconds) * weights, [name == _HEAD for name in names]
        )
        return dict(zip(names, found, strict=True))

    def _made_of(self, layers: LayerRange) -> dict[Hashable, int]:
        parts: dict[Hashable, int] = {_OVERHEAD: 1}
        if layers.start == 0:
            parts[_EMBEDDING] = 1
        if layers.end == self.num_layers:
            parts[_HEAD] = 1
        for unit in self.within(layers):
            parts[self.kind_of[unit]] = parts.get(self.kind_of[unit], 0) + 1
        return parts


def _kind(layer: nn.Module) -> Hashable:
    """Equal for layers that compute alike: of the same classes, with weights of the same shapes and types."""
    classes = tuple((name, type(module).__name__) for name, module in layer.named_modules())
    weights = tuple((name, tuple(array.shape), str(array.dtype)) for name, array in tree_flatten(layer.parameters()))
    return classes, weights


def _least_squares(matrix: np.ndarray, wanted: np.ndarray, may_be_negative: Sequence[bool]) -> list[float]:
    """One number for each column, and none below 0 that may not be: whatever would be so the most is nothing."""
    active = list(range(matrix.shape[1]))
    result = [0.0] * matrix.shape[1]
    while active:
        found, *_ = np.linalg.lstsq(matrix[:, active], wanted, rcond=None)
        below = [0.0 if may_be_negative[column] else value for column, value in zip(active, found, strict=True)]
        worst = int(np.argmin(below))
        if below[worst] >= 0:
            for column, value in zip(active, found, strict=True):
                result[column] = float(value)
            break
        del active[worst]
    return result
