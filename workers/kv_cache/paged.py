"""`paged`: blocks of 64 tokens that sequences share. A full block never changes; a sequence that forks off another
shares its blocks and copies nothing but what lies after them.

Owns the blocks of one layer of one sequence; Python's references count who shares a block. Which tokens a block holds is
known to the caller, who may keep blocks by the hash of those tokens and hand them to another sequence. What is not cut
into blocks yet is one growing tail, so that a sequence which nobody shares costs what a dynamic one does.
"""

from collections.abc import Sequence
from typing import Any, Self

import mlx.core as mx
from mlx import nn
from mlx_lm.models.cache import KVCache, create_attention_mask

from workers.kv_cache.batch import RowBatch
from workers.kv_cache.kind import KvSettings, with_plain_replaced
from workers.kv_cache.rows import Rows, append, read

BLOCK_TOKENS = 64


class Paged:
    """See the module."""

    shapes_masks = False

    def __init__(self, model: nn.Module): ...

    def why_not(self, settings: KvSettings, layers: tuple[int, int] | None = None) -> str | None:  # noqa: ARG002
        return None

    def make(self, entries: list[Any], settings: KvSettings) -> list[Any]:  # noqa: ARG002
        return with_plain_replaced(entries, lambda _: PagedKVCache())

    def batches(self, settings: KvSettings) -> bool:  # noqa: ARG002
        return True


class PagedKVCache:
    """blocks: keys and values (1, heads, 64, width) of the first tokens. tail: everything after them."""

    def __init__(self, blocks: Sequence[Rows] = ()) -> None:
        self.blocks = list(blocks)
        self.tail = KVCache()

    def __repr__(self) -> str:
        return f"PagedKVCache({len(self.blocks)} blocks, {self.tail.offset} more tokens)"

    def __deepcopy__(self, memo: dict[int, Any]) -> Self:
        return self.fork()

    @property
    def offset(self) -> int:
        return len(self.blocks) * BLOCK_TOKENS + int(self.tail.offset)

    def update_and_fetch(self, keys: mx.array, values: mx.array) -> tuple[mx.array, mx.array]:
        self.tail.update_and_fetch(keys, values)
        return self.keys_and_values()

    def keys_and_values(self) -> tuple[mx.array, mx.array]:
        """(1, heads, tokens, width) each, as one array."""
        if not self.blocks:
            tail: tuple[mx.array, mx.array] = self.tail.keys_and_values()
            return tail
        parts = [*self.blocks, *([self.tail.keys_and_values()] if self.tail.offset else [])]
        return mx.concatenate([keys for keys, _ in parts], axis=2), mx.concatenate(
            [values for _, values in parts], axis=2
        )

    def fork(self) -> Self:
        """Another sequence with the same tokens so far."""
        self.seal()
        other = type(self)(self.blocks)
        if self.tail.offset:
            append(other.tail, [read(self.tail, 0, self.tail.offset)])
        return other

    def seal(self) -> None:
        """Cuts every full block off the tail."""
        full = self.tail.offset // BLOCK_TOKENS * BLOCK_TOKENS
        if full:
            self.blocks += [read(self.tail, at, at + BLOCK_TOKENS) for at in range(0, full, BLOCK_TOKENS)]
            self._restart_tail(read(self.tail, full, self.tail.offset))

    def read_tokens(self, start: int, stop: int) -> Rows:
        """Keys and values of tokens [start, stop): a block itself where they are exactly its tokens, else a copy."""
        if self.empty():  # a layer without attention
            return ()
        self.seal()
        number, within = divmod(start, BLOCK_TOKENS)
        if within == 0 and stop - start == BLOCK_TOKENS and number < len(self.blocks):
            return self.blocks[number]
        return tuple(mx.contiguous(array[:, :, start:stop]) for array in self.keys_and_values())

    def append_tokens(self, parts: Sequence[Rows]) -> None:
        """Adds tokens that `read_tokens` gave; whole blocks in their place are shared from now on."""
        parts = list(parts)
        if not self.tail.offset:
            while parts and parts[0][0].shape[2] == BLOCK_TOKENS:
                self.blocks.append(parts.pop(0))
        if parts:
            append(self.tail, parts)

    def is_trimmable(self) -> bool:
        return True

    def trim(self, num_tokens: int) -> int:
        trimmed = min(self.offset, num_tokens)
        left = self.offset - trimmed
        if left >= len(self.blocks) * BLOCK_TOKENS:
            self.tail.trim(trimmed)
            return trimmed
        number, within = divmod(left, BLOCK_TOKENS)
        rest = tuple(array[:, :, :within] for array in self.blocks[number])
        del self.blocks[number:]
        self._restart_tail(rest)
        return trimmed

    def _restart_tail(self, rest: Rows) -> None:
        self.tail = KVCache()
        if rest[0].shape[2]:
            append(self.tail, [rest])

    @property
    def state(self) -> Any:
        return self.blocks, self.tail.state

    @state.setter
    def state(self, state: Any) -> None:
        blocks, self.tail.state = state
        self.blocks = [tuple(block) for block in blocks]

    @property
    def nbytes(self) -> int:
        """Bytes of all blocks, shared or not, and of the tail."""
        return sum(array.nbytes for block in self.blocks for array in block) + int(self.tail.nbytes)

    def make_mask(self, num_tokens: int, *, return_array: bool = False, window_size: int | None = None) -> Any:
        return create_attention_mask(num_tokens, self.offset, return_array, window_size)

    def size(self) -> int:
        return self.offset

    def empty(self) -> bool:
        return self.offset == 0

    @classmethod
    def merge(cls, caches: Sequence[Self]) -> "PagedBatch":
        return PagedBatch.of([cache.as_one() for cache in caches], [tuple(cache.blocks) for cache in caches])

    def as_one(self) -> KVCache:
        """The same tokens in mlx-lm's own cache."""
        one = KVCache()
        if self.offset:
            one.keys, one.values = self.keys_and_values()
            one.offset = self.offset
        return one


class PagedBatch(RowBatch):
    """Rows are the blocks that the sequences brought along; they are theirs again when they leave."""

    def extract(self, idx: int) -> PagedKVCache:
        one = super().extract(idx)
        cache = PagedKVCache(self.rows[idx])
        shared = len(self.rows[idx]) * BLOCK_TOKENS
        if one.offset > shared:
            append(cache.tail, [read(one, shared, one.offset)])
        return cache
