"""The ways in which a module might be cut, best first; which of them are right is found out by trying, see `trying`.

Owns the rules, which look at widths, at attributes that count heads and at the names of layers that make something small of their
input. A rule may be wrong about a module: then what it makes of it does not give the logits of the whole model.
"""

import re
from collections import Counter
from collections.abc import Iterable, Iterator
from itertools import product
from typing import Literal

import mlx.core as mx
import msgspec
from mlx import nn

from workers.tensor.layout import DoesNotFit, Layout, local_ends, local_width
from workers.tensor.leaves import MULTI_LINEARS, in_width, is_depthwise, is_linear, leaves, out_width, submodules
from workers.tensor.plan import ModuleCut, PartCut, pattern

_HEADS = re.compile(r"head")
_NOT_HEADS = re.compile(r"dim|size|_per_|index")
_SHARED = re.compile(r"group|repeat|rep$|per_kv")
_WIDTHS = re.compile(r"dim|size|width")
_NOT_WIDTHS = re.compile(r"head|kernel|rope|rank")
# Layers that make something small of their input, which all heads read; what chooses what is read, by all heads alike.
_LATENT = re.compile(r"_a_|(^|\.)index")
_OUTPUT = re.compile(r"(^|\.)(\w*o_proj|\w*out\w*|wo|o|dense|c_proj|proj)$")
# What wide projections, and convolutions over what they made, consist of; () is one query head behind the other.
_FUSED: tuple[tuple[str, ...], ...] = ((), ("queries", "keys", "keys"), ("keys", "keys", "queries"), ("groups",))

Counted = Literal["queries", "keys", "shared"]


def candidates(module: nn.Module, hidden: int) -> Iterator[ModuleCut]:
    """hidden: the width of what runs from layer to layer."""
    seen: set[bytes] = set()
    found = _by_heads(module, hidden) if _numbers_of_heads(module) else _by_features(module, hidden)
    for cut in found:
        said = msgspec.msgpack.encode(cut)
        if said not in seen:
            seen.add(said)
            yield cut


def hidden_width(layers: Iterable[nn.Module]) -> int:
    """The width that most linear layers are given."""
    widths = Counter(in_width(leaf) for layer in layers for _, leaf in leaves(layer) if is_linear(leaf))
    return widths.most_common(1)[0][0] if widths else 0


def gathering(module: nn.Module, *, only_own: bool) -> list[str]:
    """The layers that may be gathered. only_own: of the module itself, not of its parts."""
    return _unique(
        pattern(path)
        for path, leaf in leaves(module)
        if is_linear(leaf) and out_width(leaf) > 1 and not (only_own and "." in path)
    )


def _by_features(module: nn.Module, hidden: int) -> Iterator[ModuleCut]:
    """What is between two layers is cut: the first by its outputs, the second by its inputs."""
    for halves, chosen in product((True, False), (-1, 0)):
        parts: dict[str, PartCut] = {}
        for path, parent in submodules(module):
            parts |= _between(path, parent, hidden, chosen, halves=halves)
        if not parts:
            continue
        gathered = tuple(name for name in gathering(module, only_own=False) if name not in parts)
        whole = ModuleCut(kind="feed-forward", parts=parts, gathered=gathered, summed=True)
        for cut in (whole, _summed_in_place(whole)):
            yield cut
            widths = _widths(module, cut)
            if widths:
                yield msgspec.structs.replace(cut, widths=widths)


def _between(path: str, parent: nn.Module, hidden: int, chosen: int, *, halves: bool) -> dict[str, PartCut]:
    """The cuts of the leaves of one module. chosen: which of those that might be the second."""
    own = {
        name: leaf for name, leaf in leaves(parent) if "." not in name or (name.count(".") == 1 and is_depthwise(leaf))
    }
    linears = {name: leaf for name, leaf in own.items() if is_linear(leaf)}
    widths = {out_width(leaf) for leaf in linears.values() if in_width(leaf) == hidden}
    second = [
        name
        for name, leaf in linears.items()
        if out_width(leaf) == hidden and any(width % in_width(leaf) == 0 for width in widths)
    ]
    if len(linears) < 2 or not second:
        return {}
    inner = in_width(linears[second[chosen]])
    prefix = f"{pattern(path)}." if path else ""
    parts = {}
    for name, leaf in own.items():
        if name == second[chosen]:
            parts[name] = PartCut("in", (name,))
        elif not is_depthwise(leaf) and in_width(leaf) == inner != hidden:
            parts[name] = PartCut("in", (second[chosen],), summed=True)
        elif out_width(leaf) % inner == 0:
            times = out_width(leaf) // inner
            parts[name] = PartCut("out", (second[chosen],) * (times if halves else 1))
    for name, array in parent.items():
        if isinstance(array, mx.array) and array.shape[:1] == (inner,) and array.shape != (inner, hidden):
            parts[name] = PartCut(0, (second[chosen],))
    return {prefix + name: cut for name, cut in parts.items()} if len(parts) > 1 else {}


def _by_heads(module: nn.Module, hidden: int) -> Iterator[ModuleCut]:
    numbers = _numbers_of_heads(module)
    if not numbers:
        return
    queries, keys = max(numbers.values()), min(numbers.values())
    counts: dict[str, Counted] = {name: "queries" if number == queries else "keys" for name, number in numbers.items()}
    if set(numbers.values()) - {queries, keys} or queries % keys:
        return
    counts |= dict.fromkeys(_shared(module, queries // keys), "shared")
    convolved = _FUSED if any(is_depthwise(leaf) for _, leaf in leaves(module)) else _FUSED[:1]
    for output, fused, mixed in product(_outputs(module, queries, hidden), _FUSED, convolved):
        parts = _Heads(module, output, (queries, keys), fused, mixed).parts()
        norms = tuple(name for name in _norms(module) if f"{name}.weight" in parts)
        gathered = tuple(name for name in gathering(module, only_own=False) if name not in parts)
        cut = ModuleCut(kind="heads", parts=parts, counts=counts, norms=norms, gathered=gathered, summed=True)
        for summed in (cut, _summed_in_place(cut)):
            yield summed
            widths = _widths(module, cut)
            if widths:
                yield msgspec.structs.replace(summed, widths=widths)


class _Heads:
    """What each weight of a module is, if it is cut by heads and `output` reads them.

    heads: of queries and keys. fused, mixed: the blocks of wide projections and of wide convolutions.
    """

    def __init__(
        self, module: nn.Module, output: str, heads: tuple[int, int], fused: tuple[str, ...], mixed: tuple[str, ...]
    ):
        self._module = module
        self._output = output
        self._queries, self._keys = heads
        self._fused = fused
        self._mixed = mixed
        self._leaves = dict(leaves(module))
        self._read = in_width(self._leaves[output])

    def parts(self) -> dict[str, PartCut]:
        found = {pattern(self._output): PartCut("in", ("queries",))}
        for path, leaf in self._leaves.items():
            blocks = self._blocks(path, leaf)
            if path != self._output and blocks:
                found[pattern(path)] = PartCut("out", blocks)
        for path, owner in submodules(self._module):
            if path in self._leaves or "rope" in type(owner).__name__.lower():
                continue
            for name, array in owner.items():
                cut = self._array(array, found) if isinstance(array, mx.array) and "freq" not in name else None
                if cut is not None:
                    found[pattern(f"{path}.{name}" if path else name)] = cut
        return found

    def _blocks(self, path: str, leaf: nn.Module) -> tuple[str, ...]:
        width = out_width(leaf)
        if isinstance(leaf, MULTI_LINEARS):
            return self._heads_of(width)
        fused = self._mixed if is_depthwise(leaf) else self._fused
        is_only_key_head = width * self._queries == self._read and self._keys == self._queries
        if _LATENT.search(path) or is_only_key_head:
            return ()
        if width > self._read and fused and self._divides(width, fused):
            return fused
        if width != self._read and self._is_of_keys(width):
            return ("keys",)
        return ("queries",) if width % self._queries == 0 else ()

    def _heads_of(self, number: int) -> tuple[str, ...]:
        return ("queries",) if number == self._queries else ("keys",) if number == self._keys else ()

    def _is_of_keys(self, width: int) -> bool:
        """Whether something is as much wider as there are more queries."""
        shared = self._queries // self._keys
        widths = {self._read, *(out_width(other) for other in self._leaves.values())}
        return shared > 1 and width * shared in widths and width % self._keys == 0

    def _divides(self, width: int, blocks: tuple[str, ...]) -> bool:
        """Whether the last block has the width that the output reads and the others are of one width each."""
        if blocks == ("groups",):
            return self._keys < self._queries and width % self._keys == 0
        totals = [self._queries if name == "queries" else self._keys for name in blocks]
        rest = width - totals[-1] * (self._read // self._queries)
        return rest > 0 and rest % sum(totals[:-1]) == 0

    def _array(self, array: mx.array, found: dict[str, PartCut]) -> PartCut | None:
        axis = next((axis for axis, size in enumerate(array.shape) if size > 1), None)
        if axis is None:
            return None
        size = array.shape[axis]
        if self._heads_of(size):
            return PartCut(axis, self._heads_of(size))
        like = (
            cut
            for path, leaf in self._leaves.items()
            if (cut := found.get(pattern(path))) and cut.axis == "out" and out_width(leaf) == size
        )
        blocks = next((cut.blocks for cut in like), None)
        return None if blocks is None or array.ndim > 1 else PartCut(axis, blocks)


def _outputs(module: nn.Module, queries: int, hidden: int) -> list[str]:
    """The layers that may read what the heads made, the likeliest first."""
    found = [
        path
        for path, leaf in leaves(module)
        if is_linear(leaf) and in_width(leaf) % queries == 0 and out_width(leaf) == hidden
    ]
    named = [path for path in found if _OUTPUT.search(path) and not _LATENT.search(path)]
    return named[:2] or found[:-3:-1]


def _numbers_of_heads(module: nn.Module) -> dict[str, int]:
    return {
        name: number
        for name, number in _integers(module)
        if _HEADS.search(name.rpartition(".")[2]) and not _NOT_HEADS.search(name) and number > 1
    }


def _shared(module: nn.Module, number: int) -> list[str]:
    return [
        name for name, found in _integers(module) if _SHARED.search(name.rpartition(".")[2]) and found == number > 1
    ]


def _integers(module: nn.Module) -> Iterator[tuple[str, int]]:
    for path, owner in submodules(module):
        for name, value in vars(owner).items():
            if type(value) is int and not name.startswith("_"):
                yield pattern(f"{path}.{name}" if path else name), value


def _summed_in_place(cut: ModuleCut) -> ModuleCut:
    """The sums are made where the parts of the input meet, not when the module returns."""
    parts = {
        name: msgspec.structs.replace(part, summed=True) if part.axis == "in" else part
        for name, part in cut.parts.items()
    }
    return msgspec.structs.replace(cut, parts=parts, summed=False)


def _unique(names: Iterable[str]) -> list[str]:
    return list(dict.fromkeys(names))


def _norms(module: nn.Module) -> list[str]:
    return _unique(pattern(path) for path, found in submodules(module) if type(found) is nn.RMSNorm)


def _widths(module: nn.Module, cut: ModuleCut) -> dict[str, str]:
    """Attributes that equal the width of a part, or the ends of its blocks."""
    try:
        layout = Layout(module, cut, size=1)
        ranges = {pattern(part.path): layout.ranges(part, 0) for part in layout.parts if part.name is None}
    except DoesNotFit:
        return {}
    by_ends = {tuple(local_ends(found)): path for path, found in ranges.items() if len(found) > 1}
    by_width: dict[int, str] = {}
    for path, kept in ranges.items():
        by_width |= {stop - start: f"{path}/{block}" for block, (start, stop) in enumerate(kept)}
    by_width |= {local_width(kept): path for path, kept in ranges.items()}
    found = {}
    for name, number in _integers(module):
        owner_path, _, attribute = name.rpartition(".")
        is_width = _WIDTHS.search(attribute) and not _NOT_WIDTHS.search(attribute)
        if is_width and number in by_width and number != layout.queries and owner_path not in ranges:
            found[name] = by_width[number]
    for path, owner in submodules(module):
        for name, value in owner.items():
            if isinstance(value, list) and all(type(item) is int for item in value) and tuple(value) in by_ends:
                found[pattern(f"{path}.{name}" if path else name)] = by_ends[tuple(value)]
    return found
