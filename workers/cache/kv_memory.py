"""What the caches of one sequence take, read off caches that have seen one token."""

from typing import Any

from mlx.utils import tree_flatten
from mlx_lm.models.cache import ArraysCache, CacheList

from strategy.memory import KvGrowth, KvNeeds
from workers.cache.prefix_store import can_cut
from workers.cache.stage_cache import StageCache


def kv_needs(cache: StageCache) -> KvNeeds:
    """The needs of a stage from its `cache` after one token."""
    fixed_bytes = 0
    growth: dict[int | None, int] = {}
    for entry in _simple(cache.entries[index] for index in cache.owned):
        if isinstance(entry, ArraysCache) or not entry.nbytes:
            fixed_bytes += entry.nbytes
            continue
        limit = getattr(entry, "max_size", None)
        growth[limit] = growth.get(limit, 0) + -(-entry.nbytes // _allocated_tokens(entry))
    return KvNeeds(
        fixed_bytes=fixed_bytes,
        growth=tuple(KvGrowth(token_bytes, limit) for limit, token_bytes in growth.items()),
        snapshots=not can_cut(cache),
    )


def _simple(entries: Any) -> Any:
    for entry in entries:
        if isinstance(entry, CacheList):
            yield from _simple(entry.caches)
        else:
            yield entry


def _allocated_tokens(entry: Any) -> int:
    """Tokens that a cache has room for: the next to last axis of its arrays."""
    arrays = [value for _, value in tree_flatten(entry.state) if getattr(value, "ndim", 0) >= 2]
    return max((array.shape[-2] for array in arrays), default=1)
