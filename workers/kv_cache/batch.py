"""mlx-lm's batch of growing caches: of one sequence without a copy; and one that also remembers of each row what its own
kind needs when the row leaves.
"""

from collections.abc import Sequence
from typing import Any, Self

import mlx.core as mx
from mlx_lm.models.cache import BatchKVCache, KVCache


def batch_of_one(cache: KVCache) -> BatchKVCache:
    """A batch of one sequence that keeps its arrays and their room to grow; mlx-lm's merge leaves no room."""
    batch = BatchKVCache([0])
    batch.state = (cache.keys, cache.values, batch.offset + cache.offset, batch.left_padding, cache.offset)
    return batch


def row_view(batch: BatchKVCache, index: int) -> KVCache:
    """A sequence of a batch as a cache of its own whose arrays are the batch's; mlx-lm's extract copies them."""
    row = KVCache()
    if batch.keys is not None:
        # All of them: for one the device would have to end first what it is at.
        start, stop = batch.left_padding.tolist()[index], batch._idx  # noqa: SLF001  mlx-lm has no name for its end
        row.keys = batch.keys[index : index + 1, :, start:stop]
        row.values = batch.values[index : index + 1, :, start:stop]
        row.offset = stop - start
    return row


class RowBatch(BatchKVCache):
    """rows: one item for each sequence of the batch, in order."""

    def __init__(self, rows: list[Any]):
        super().__init__([0] * len(rows))
        self.rows = rows

    @classmethod
    def of(cls, caches: Sequence[Any], rows: list[Any]) -> Self:
        """A batch of single sequences. caches: as mlx-lm's BatchKVCache.merge takes them."""
        batch = cls(rows)
        batch.state = BatchKVCache.merge(caches).state
        return batch

    def filter(self, batch_indices: mx.array) -> None:
        kept: Any = batch_indices.tolist()
        self.rows = [self.rows[index] for index in kept]
        super().filter(batch_indices)

    def extend(self, other: Self) -> None:
        super().extend(other)
        self.rows = self.rows + other.rows
