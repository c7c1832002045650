"""Which weights of a lazily loaded model are in memory: reading some, counting them, giving others back.

Owns the knowledge of what is read, taken from MLX's own graph: an array that still has an operation to run is not in
memory. Knows nothing of plans or passes. A weight is given back by putting a lazy array of a freshly opened model in its
place, so that the module tree, and whoever refers to it, stays.
"""

import io
import re
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from typing import Any

import mlx.core as mx
from mlx import nn
from mlx.utils import tree_unflatten

_MADE = re.compile(r'^\d+ -> "w(\d+)"$', re.MULTILINE)
# MLX takes no more than 1,024 names in a call.
_MOST_NAMES = 1000
_USED = re.compile(r'^"w(\d+)" -> \d+$', re.MULTILINE)


class Weights:
    """Of one model. layers: its decoder layers, in order."""

    def __init__(self, model: nn.Module, layers: Sequence[nn.Module]):
        self._model = model
        self._layers = layers

    def __repr__(self) -> str:
        return f"Weights({self.num_bytes} bytes in memory)"

    @property
    def num_bytes(self) -> int:
        """Bytes in memory; what two parts of the model share counts once."""
        found = _distinct(self._model)
        missing = _unread(found)
        return sum(array.nbytes for array in found if id(array) not in missing)

    def held_layers(self) -> list[int]:
        """The layers of which every weight is in memory."""
        missing = _unread(_distinct(self._model))
        return [
            index
            for index, layer in enumerate(self._layers)
            if (arrays := _distinct(layer)) and not any(id(array) in missing for array in arrays)
        ]

    def read_layer(self, index: int) -> int:
        """Read what is missing of a layer; returns the bytes of that."""
        num_bytes = _read(_distinct(self._layers[index]))
        mx.clear_cache()  # what parts of weights were taken from
        return num_bytes

    def read_named(self, names: Collection[str]) -> int:
        """Read what is missing of these weights; returns the bytes of that."""
        return _read([array for name, array in _named(self._model) if name in names])

    def used_by(self, outputs: Iterable[mx.array]) -> frozenset[str]:
        """Names of the weights outside the layers that an unevaluated computation needs."""
        in_layers = {id(array) for layer in self._layers for array in _distinct(layer)}
        named = [(name, array) for name, array in _named(self._model) if id(array) not in in_layers]
        used = _marked(_USED, [array for _, array in named], list(outputs))
        return frozenset(name for name, array in named if id(array) in used)

    @property
    def everything(self) -> list[mx.array]:
        """All weights, each once."""
        return _distinct(self._model)

    def of(self, layers: Iterable[int], names: Collection[str]) -> list[mx.array]:
        """The weights of these layers, and these others."""
        in_layers = [array for index in layers for array in _distinct(self._layers[index])]
        return in_layers + [array for name, array in _named(self._model) if name in names]

    @staticmethod
    def made_from(tensors: Mapping[str, mx.array], weights: Sequence[mx.array]) -> frozenset[str]:
        """Which of these tensors some weights that were not read yet are made from, or anything else that was not computed yet."""
        found = {id(array) for array in weights} | _marked(_USED, list(tensors.values()), weights)
        return frozenset(name for name, array in tensors.items() if id(array) in found)

    def release(self, fresh: nn.Module, *, layers: Collection[int], names: Collection[str]) -> None:
        """Give back all but the weights of these layers and these others. fresh: the same model, opened anew."""
        kept = {id(array) for index in layers for array in _distinct(self._layers[index])}
        named = _named(self._model)
        kept |= {id(array) for name, array in named if name in names}
        lazy = dict(_named(fresh))
        unwanted = [(name, lazy[name]) for name, array in named if id(array) not in kept]
        self._model.update(tree_unflatten(unwanted))
        del named
        mx.clear_cache()

    def excess(self, *, layers: Collection[int], names: Collection[str]) -> bool:
        """Whether anything but the weights of these layers and these others is in memory."""
        kept = {id(array) for index in layers for array in _distinct(self._layers[index])}
        kept |= {id(array) for name, array in _named(self._model) if name in names}
        found = _distinct(self._model)
        missing = _unread(found)
        return any(id(array) not in kept and id(array) not in missing for array in found)


def _named(module: nn.Module) -> list[tuple[str, mx.array]]:
    """As `tree_flatten(module.parameters())`, which takes several times as long."""
    found: list[tuple[str, mx.array]] = []
    _collect(module, "", found)
    return found


def _collect(tree: Any, name: str, found: list[tuple[str, mx.array]]) -> None:
    if isinstance(tree, mx.array):
        found.append((name[1:], tree))
    elif isinstance(tree, list):
        for index, part in enumerate(tree):
            _collect(part, f"{name}.{index}", found)
    elif isinstance(tree, dict):
        is_module = isinstance(tree, nn.Module)
        for key, part in tree.items():
            if not (is_module and key.startswith("_")):
                _collect(part, f"{name}.{key}", found)


def _distinct(module: nn.Module) -> list[mx.array]:
    return list({id(array): array for _, array in _named(module)}.values())


def _read(arrays: list[mx.array]) -> int:
    missing = _unread(arrays)
    wanted = [array for array in arrays if id(array) in missing]
    mx.eval(wanted)
    return sum(array.nbytes for array in {id(array): array for array in wanted}.values())


def _unread(arrays: list[mx.array]) -> set[int]:
    """`id` of the arrays that are not in memory."""
    return set().union(*(_marked(_MADE, some, some) for some in _in_calls(arrays)))


def _marked(pattern: re.Pattern[str], arrays: Sequence[mx.array], outputs: Sequence[mx.array]) -> set[int]:
    """`id` of the arrays that stand so in the graph which the outputs still have to run."""
    found: set[int] = set()
    for some in _in_calls(arrays):
        graph = io.StringIO()
        mx.export_to_dot(graph, *outputs, **{f"w{id(array)}": array for array in some})
        found.update(int(name) for name in pattern.findall(graph.getvalue()))
    return found


def _in_calls(arrays: Sequence[mx.array]) -> Iterator[Sequence[mx.array]]:
    return (arrays[start : start + _MOST_NAMES] for start in range(0, len(arrays), _MOST_NAMES))
