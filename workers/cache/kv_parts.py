"""A part of a sequence's cache, addressed by cache entry: combined with parts of other layers, and sent as raw buffers.

Owns what a part is. Knows no budgets, keys or disks. Trusts nothing that comes from another process: whatever the bytes,
the result is a part made of mlx-lm's own cache classes, or a `WireError`.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import mlx.core as mx
from mlx_lm.models.cache import ArraysCache, CacheList, ChunkedKVCache, KVCache, QuantizedKVCache, RotatingKVCache

from protocol.errors import WireError
from workers.cache.stage_cache import StageCache
from workers.model import payload
from workers.model.payload import Spec

_CLASSES = {kind.__name__: kind for kind in (ArraysCache, ChunkedKVCache, KVCache, QuantizedKVCache, RotatingKVCache)}
_MAX_TOKENS = 2**31 - 1


@dataclass(frozen=True)
class KvPart:
    """entries: by index in the model's list of caches. end: how many tokens lie before where the part ends."""

    end: int
    entries: dict[int, Any]

    @cached_property
    def num_bytes(self) -> int:
        return sum(entry.nbytes for entry in self.entries.values())

    def has_tokens(self, count: int) -> bool:
        """Whether every entry has the rows of so many tokens, or of none, as where a layer keeps nothing."""
        return all(
            type(entry) is ArraysCache and all(array is None or array.shape[-2:-1] == (count,) for array in entry.cache)
            for entry in self.entries.values()
        )


def combined(layout: StageCache, sources: Sequence[tuple[StageCache, KvPart]]) -> KvPart | None:
    """The part that a stage of this layout would have kept, from parts that stages of other layouts kept of the same
    tokens; None where they lack an entry. Arrays are shared, not copied.
    """
    entries = {}
    for index in layout.distinct():
        entry = next(_holding(index, layout, sources), None)
        if entry is None:
            return None
        entries[index] = entry
    return KvPart(sources[0][1].end, entries)


def _holding(index: int, layout: StageCache, sources: Sequence[tuple[StageCache, KvPart]]) -> Iterator[Any]:
    """The entries that can be the one at `index`: a real one is the same wherever it is real, a stand-in like any of its
    kind.
    """
    is_real = index in layout.owned
    for cache, part in sources:
        for other in layout.sharing(index):
            at = cache.sharing(other)[0]
            if (other in cache.owned) == is_real and at in part.entries:
                yield part.entries[at]


def encode(part: KvPart) -> tuple[Spec, list[memoryview]] | None:
    """What `decode` makes the part from again; None where one of its caches is of a class of the model's own.

    The buffers are views of the part's own arrays where these are evaluated and contiguous, as those of a block are: then
    nothing is copied, and nothing waits for what the device is at.
    """
    entries = list(part.entries.values())
    if not all(map(_can_send, entries)):
        return None
    packed = payload.map_arrays(_contiguous, [_packed(entry) for entry in entries])
    spec, buffers = payload.encode([part.end, list(part.entries), packed])
    return spec, buffers


def decode(spec: Spec, buffers: Sequence[payload.Buffer]) -> KvPart:
    """The part of a specification and buffers that came from another process; one copy of the bytes.

    Waits for nothing that the device is at. Raises WireError for anything that `encode` does not produce.
    """
    match payload.decode(spec, buffers):
        case [int(end), [*indices], [*packed]] if 0 < end <= _MAX_TOKENS and len(indices) == len(packed):
            if not all(type(index) is int and index >= 0 for index in indices):
                raise WireError("a part of a cache names an entry by something that is no index")
            entries = [_unpacked(item) for item in packed]
        case _:
            raise WireError("a part of a cache is not made of an end, indices and entries")
    return KvPart(end, dict(zip(indices, entries, strict=True)))


def _contiguous(array: mx.array) -> mx.array:
    if memoryview(array).c_contiguous:  # type: ignore[arg-type]
        return array
    array = mx.contiguous(array)
    mx.eval(array)
    return array


def _can_send(entry: Any) -> bool:
    if type(entry) is CacheList:
        return all(map(_can_send, entry.caches))
    return _CLASSES.get(type(entry).__name__) is type(entry)


def _packed(entry: Any) -> list[Any]:
    state = [_packed(part) for part in entry.caches] if type(entry) is CacheList else entry.state
    return [type(entry).__name__, state]


def _unpacked(packed: Any) -> Any:
    match packed:
        case ["CacheList", [*parts]]:
            return CacheList(*map(_unpacked, parts))
        case [str(name), state] if name in _CLASSES:
            try:
                entry = _CLASSES[name].from_state(state)
                entry.nbytes  # noqa: B018  fails where the state is not one of this class
            except (TypeError, ValueError, AttributeError) as error:
                raise WireError(f"a part of a cache has a {name} of the wrong form") from error
            return entry
    raise WireError("a part of a cache has an entry of a class that is not allowed")
