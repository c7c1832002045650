"""The modules that hold weights: how wide they are, and how parts of their weights are taken.

Owns the layouts of mlx's and mlx-lm's linear layers, quantized or not. Nothing is evaluated: a part is a lazy copy, so that the
whole weight is in memory only while its part is made. Knows no ranks.
"""

from collections.abc import Iterable, Iterator

import mlx.core as mx
from mlx import nn
from mlx_lm.models.mla import MultiLinear, QuantizedMultiLinear
from mlx_lm.models.switch_layers import QuantizedSwitchLinear, SwitchLinear

from workers.tensor.spans import Span

# An output is at the last axis but one of the weight, an input at the last; so it is in packed layers of an architecture's own.
_LINEARS = (nn.Linear, nn.QuantizedLinear, SwitchLinear, QuantizedSwitchLinear)
# Heads are at the first axis.
MULTI_LINEARS = (MultiLinear, QuantizedMultiLinear)
EMBEDDINGS = (nn.Embedding, nn.QuantizedEmbedding)
_WEIGHTS = ("weight", "scales", "biases", "bias")
_BITS = 32  # of the integers that quantized weights are packed into


def is_linear(module: nn.Module) -> bool:
    if isinstance(module, EMBEDDINGS + MULTI_LINEARS) or "weight" not in module:
        return False
    return isinstance(module, _LINEARS) or ("scales" in module and module.weight.ndim == 2)


def is_depthwise(module: nn.Module) -> bool:
    """Whether it is a convolution of each channel by itself."""
    return isinstance(module, nn.Conv1d) and "weight" in module and module.weight.shape[0] == module.groups


def is_leaf(module: nn.Module) -> bool:
    is_multi = isinstance(module, MULTI_LINEARS) and "weight" in module
    return is_linear(module) or is_multi or is_depthwise(module)


def leaves(module: nn.Module, path: str = "") -> Iterator[tuple[str, nn.Module]]:
    """The leaves below a module, by their path from it on, in the order in which they were made."""
    return ((name, found) for name, found in submodules(module, path) if is_leaf(found))


def submodules(module: nn.Module, path: str = "") -> Iterator[tuple[str, nn.Module]]:
    """The module itself and everything below it, by path."""
    yield path, module
    for name, child in module.children().items():
        for place, item in modules_in(child, name):
            yield from submodules(item, f"{path}.{place}" if path else place)


def out_width(leaf: nn.Module) -> int:
    """Features that it returns; of a layer of heads, the heads."""
    axis = 0 if isinstance(leaf, MULTI_LINEARS) or is_depthwise(leaf) else -2
    width: int = leaf["weight"].shape[axis]
    return width


def in_width(leaf: nn.Module) -> int:
    """Features that it is given."""
    width: int = leaf["weight"].shape[-1]
    return width * _BITS // leaf.bits if "scales" in leaf else width


def in_unit(leaf: nn.Module) -> int:
    """Where its inputs may be cut: at multiples of this."""
    return int(leaf.group_size) if "scales" in leaf else 1


def keep_outputs(leaf: nn.Module, ranges: Iterable[Span]) -> None:
    """Keep the weights of these outputs (of a layer of heads, of these heads)."""
    kept = list(ranges)
    first = isinstance(leaf, MULTI_LINEARS) or is_depthwise(leaf)
    for name, array in _arrays(leaf):
        is_bias = name == "bias"
        axis = 0 if first else array.ndim - (1 if is_bias else 2)
        leaf[name] = taken(array, axis, kept)
    if isinstance(leaf, nn.Conv1d):
        leaf.groups = leaf["weight"].shape[0]


def keep_inputs(leaf: nn.Module, ranges: Iterable[Span], *, with_bias: bool) -> None:
    """Keep the weights of these inputs. with_bias: one rank alone adds it."""
    kept, width = list(ranges), in_width(leaf)
    for name, array in _arrays(leaf):
        if name != "bias":
            size = array.shape[-1]
            scaled = [(start * size // width, stop * size // width) for start, stop in kept]
            leaf[name] = taken(array, array.ndim - 1, scaled)
        elif not with_bias:
            leaf[name] = mx.zeros_like(array)


def taken(array: mx.array, axis: int, ranges: list[Span]) -> mx.array:
    """These ranges of an axis, one behind the other, as an array of its own."""
    before = (slice(None),) * axis
    parts = [array[(*before, slice(start, stop))] for start, stop in ranges]
    return mx.contiguous(parts[0]) if len(parts) == 1 else mx.concatenate(parts, axis=axis)


def _arrays(leaf: nn.Module) -> list[tuple[str, mx.array]]:
    return [(name, leaf[name]) for name in _WEIGHTS if isinstance(leaf.get(name), mx.array)]


def modules_in(value: object, path: str) -> Iterator[tuple[str, nn.Module]]:
    """The modules of an attribute: itself, or those in its lists and dicts."""
    if isinstance(value, nn.Module):
        yield path, value
    elif isinstance(value, dict):
        for key, item in value.items():
            yield from modules_in(item, f"{path}.{key}")
    elif isinstance(value, list | tuple):
        for index, item in enumerate(value):
            yield from modules_in(item, f"{path}.{index}")
