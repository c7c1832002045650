"""`static`: room for the whole sequence is allocated with its first token and written in place; nothing grows after."""

from collections.abc import Sequence
from typing import Any

import mlx.core as mx
from mlx import nn
from mlx_lm.models.cache import KVCache

from workers.kv_cache.batch import RowBatch
from workers.kv_cache.kind import CacheFull, KvSettings, with_plain_replaced

_ROUND_TO = 64


class Static:
    """Sequences of at most `max_tokens` tokens, rounded up to a multiple of 64."""

    shapes_masks = False

    def __init__(self, model: nn.Module): ...

    def why_not(self, settings: KvSettings, layers: tuple[int, int] | None = None) -> str | None:  # noqa: ARG002
        if settings.max_tokens is None or settings.max_tokens < 1:
            return "a static cache is allocated once and needs the most tokens of a sequence (max_tokens)"
        return None

    def make(self, entries: list[Any], settings: KvSettings) -> list[Any]:
        if reason := self.why_not(settings):
            raise ValueError(reason)
        assert settings.max_tokens is not None
        capacity = (settings.max_tokens + _ROUND_TO - 1) // _ROUND_TO * _ROUND_TO
        return with_plain_replaced(entries, lambda _: StaticKVCache(capacity))

    def batches(self, settings: KvSettings) -> bool:  # noqa: ARG002
        return True


class StaticKVCache(KVCache):
    """mlx-lm's cache with a step of all the room that is left, so that its first growth is its last.

    capacity: in tokens.
    """

    def __init__(self, capacity: int):
        super().__init__()
        self.capacity = capacity

    @property
    def step(self) -> int:
        return max(1, self.capacity - self.offset)

    def update_and_fetch(self, keys: mx.array, values: mx.array) -> Any:
        if self.offset + keys.shape[2] > self.capacity:
            raise CacheFull(
                f"the sequence has {self.offset + keys.shape[2]} tokens and its static cache room for {self.capacity}"
            )
        return super().update_and_fetch(keys, values)

    @classmethod
    def merge(cls, caches: Sequence["StaticKVCache"]) -> "StaticBatch":
        return StaticBatch.of(caches, [cache.capacity for cache in caches])


class StaticBatch(RowBatch):
    """Rows are the capacities. Grows, when rows joined or left, at once to the room that its longest row may need."""

    @property
    def step(self) -> int:
        used: list[int] = self.offset.tolist()
        return max(1, *(capacity - length for capacity, length in zip(self.rows, used, strict=True)))

    def extract(self, idx: int) -> StaticKVCache:
        cache = StaticKVCache(self.rows[idx])
        cache.state = super().extract(idx).state
        return cache
