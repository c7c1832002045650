"""Arrays that belong to the tokens of one sequence, their second last axis: growing, reading and appending them.

Owns how each cache class keeps its tokens, so that a range of them can be taken out of one cache and put into another.
What cannot be taken apart by token (state-space layers, windows that have forgotten something) is said by `can_read`.
"""

from collections.abc import Sequence
from typing import Any

import mlx.core as mx
from mlx_lm.models.cache import (
    ArraysCache,
    CacheList,
    KVCache,
    QuantizedKVCache,
    RotatingKVCache,
    create_attention_mask,
)

Rows = tuple[mx.array, ...]
STEP = 256


class RowsCache:
    """What the kinds with a storage of their own share: rows that grow in steps, and a count of tokens.

    rows: arrays (..., room, width), the same token at the same index of each; () before the first token. num_arrays: how
    many there are.
    """

    num_arrays = 0

    def __init__(self) -> None:
        self.rows: Rows = ()
        self.offset = 0

    def __repr__(self) -> str:
        return f"{type(self).__name__}({self.offset} tokens, {self.nbytes} bytes)"

    @property
    def state(self) -> Any:
        return self.rows, self.offset

    @state.setter
    def state(self, state: Any) -> None:
        rows, self.offset = state
        self.rows = tuple(rows)

    @property
    def nbytes(self) -> int:
        return sum(array.nbytes for array in self.rows)

    def size(self) -> int:
        return self.offset

    def empty(self) -> bool:
        return not self.rows

    def is_trimmable(self) -> bool:
        return True

    def trim(self, num_tokens: int) -> int:
        num_tokens = min(self.offset, num_tokens)
        self.offset -= num_tokens
        return num_tokens

    def make_mask(self, num_tokens: int, *, return_array: bool = False, window_size: int | None = None) -> Any:
        return create_attention_mask(num_tokens, self.offset, return_array, window_size)

    def append(self, new: Rows) -> None:
        """Stores the rows of the next tokens."""
        start, self.offset = self.offset, self.offset + new[0].shape[-2]
        if not self.rows or self.offset > self.rows[0].shape[-2]:
            self.rows = tuple(
                _with_room(old, start, array) for old, array in zip(self.rows or (None,) * len(new), new, strict=True)
            )
        for kept, array in zip(self.rows, new, strict=True):
            kept[..., start : self.offset, :] = array

    def stored(self) -> Rows:
        """The rows of all tokens."""
        return tuple(array[..., : self.offset, :] for array in self.rows)


def can_read(entry: Any) -> bool:
    """Whether the tokens of this cache can be read one by one now."""
    if isinstance(entry, CacheList):
        return all(can_read(part) for part in entry.caches)
    if isinstance(entry, RotatingKVCache):
        return entry.offset <= entry.max_size and (entry.keys is None or entry.keys.shape[2] <= entry.max_size)
    return hasattr(entry, "read_tokens") or isinstance(entry, RowsCache | KVCache | QuantizedKVCache)


def can_forget(entry: Any) -> bool:
    """Whether this cache can forget its last tokens now and later."""
    if isinstance(entry, CacheList):
        return all(can_forget(part) for part in entry.caches)
    return can_read(entry) and not isinstance(entry, RotatingKVCache) and bool(entry.is_trimmable())


def read(entry: Any, start: int, stop: int) -> Rows:
    """Copies of the rows of tokens [start, stop), unevaluated. Only when `can_read`."""
    if isinstance(entry, CacheList):
        return tuple(array for part in entry.caches for array in read(part, start, stop))
    if hasattr(entry, "read_tokens"):
        rows: Rows = entry.read_tokens(start, stop)
        return rows
    return tuple(mx.contiguous(array[..., start:stop, :]) for array in _stored(entry))


def append(entry: Any, parts: Sequence[Rows]) -> None:
    """Adds ranges that `read` gave, in order."""
    if isinstance(entry, CacheList):
        start = 0
        for part in entry.caches:
            stop = start + num_arrays(part)
            append(part, [rows[start:stop] for rows in parts])
            start = stop
        return
    if hasattr(entry, "append_tokens"):
        entry.append_tokens(parts)
        return
    stored = _stored(entry)
    columns = [
        [*([stored[index]] if stored else []), *(rows[index] for rows in parts)] for index in range(num_arrays(entry))
    ]
    num_tokens = sum(array.shape[-2] for array in columns[0])
    if isinstance(entry, KVCache | RowsCache):  # or the next token would copy everything again
        for column in columns:
            column.append(_room(column[0], -num_tokens % STEP or STEP))
    _set(entry, tuple(mx.concatenate(column, axis=-2) for column in columns), num_tokens)


def cut(entry: Any, start: int, stop: int) -> ArraysCache:
    """Tokens [start, stop) in mlx-lm's container of arrays, which its prompt-cache files can hold. Only when `can_read`."""
    taken = read(entry, start, stop)
    block = ArraysCache(max(1, len(taken)))  # one None where nothing was ever stored: some layers have no attention
    for slot, array in enumerate(taken):
        block[slot] = array
    return block


def join(entry: Any, blocks: Sequence[ArraysCache]) -> None:
    """Adds what `cut` gave, in order. Raises ValueError when it is not of such a cache."""
    parts = [tuple(block.cache) for block in blocks if block[0] is not None]
    if any(len(part) != num_arrays(entry) for part in parts):
        raise ValueError(f"the parts of a cache of another kind do not fit a {type(entry).__name__}")
    if parts:
        append(entry, parts)


def num_arrays(entry: Any) -> int:
    """How many arrays `read` gives for this cache."""
    if isinstance(entry, CacheList):
        return sum(num_arrays(part) for part in entry.caches)
    return entry.num_arrays if isinstance(entry, RowsCache) else 6 if isinstance(entry, QuantizedKVCache) else 2


def _stored(entry: Any) -> Rows:
    if isinstance(entry, RowsCache):
        return entry.stored()
    if entry.keys is None:
        return ()
    arrays = (*entry.keys, *entry.values) if isinstance(entry, QuantizedKVCache) else (entry.keys, entry.values)
    return tuple(array[..., : entry.offset, :] for array in arrays)


def _set(entry: Any, arrays: Rows, num_tokens: int) -> None:
    entry.offset = num_tokens
    if isinstance(entry, RowsCache):
        entry.rows = arrays
    elif isinstance(entry, QuantizedKVCache):
        entry.keys, entry.values = arrays[:3], arrays[3:]
    else:
        entry.keys, entry.values = arrays
    if isinstance(entry, RotatingKVCache):
        entry._idx = entry.offset  # noqa: SLF001  where its next token goes


def _with_room(old: mx.array | None, num_tokens: int, new: mx.array) -> mx.array:
    """The first tokens of `old`, with room after them for `new` and up to the next step."""
    empty = _room(new, -(-new.shape[-2] // STEP) * STEP)
    return empty if old is None else mx.concatenate([old[..., :num_tokens, :], empty], axis=-2)


def _room(like: mx.array, num_tokens: int) -> mx.array:
    """Nothing yet, for so many tokens."""
    return mx.zeros((*like.shape[:-2], num_tokens, like.shape[-1]), like.dtype)
