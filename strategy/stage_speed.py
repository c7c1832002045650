"""What a step takes on one worker's part of a route, and what a link takes: as measured at a few sizes, and taken to be linear between
them and beyond.
"""

from bisect import bisect_left
from collections.abc import Sequence
from functools import cached_property
from typing import TYPE_CHECKING

import msgspec

from strategy.chunking import ChunkCost

if TYPE_CHECKING:  # see StageArrays
    from strategy.sharing import Floats

# Steps of fewer rows are looked up.
_TABLE_ROWS = 64


class StageSpeed(msgspec.Struct, frozen=True, kw_only=True, dict=True):
    """One worker's part of a route. decode: (rows, seconds) of a step of so many sequences, by rising number; decode_context_s:
    what each token in the cache adds to a row of it; chunk: of a prompt's chunk; chunk_context_s: what each token before it adds
    to a token of it; payload_bytes: of one token, to the next stage.
    """

    decode: tuple[tuple[int, float], ...]
    decode_context_s: float
    chunk: ChunkCost
    chunk_context_s: float
    payload_bytes: int

    def decode_s(self, rows: int, context: float) -> float:
        """Seconds of a step of so many rows, each behind `context` tokens."""
        by_rows = self._by_rows
        own_s = by_rows[rows] if rows < _TABLE_ROWS else _between(self.decode, rows)
        return own_s + rows * context * self.decode_context_s

    @cached_property
    def _by_rows(self) -> list[float]:
        return [_between(self.decode, rows) for rows in range(_TABLE_ROWS)]

    def chunk_s(self, tokens: float, start: float) -> float:
        """Seconds of a chunk of `tokens` behind `start` others."""
        context_s = tokens * (start + tokens / 2) * self.chunk_context_s
        return self.chunk.fixed_s + tokens * self.chunk.token_s + context_s

    def exceeds(self, other: "StageSpeed") -> bool:
        """Whether this takes at least as long as the other, whatever both are to run."""
        rows = [rows for rows, _ in (*self.decode, *other.decode)]
        return (
            self.decode_context_s >= other.decode_context_s
            and self.chunk.fixed_s >= other.chunk.fixed_s
            and self.chunk.token_s >= other.chunk.token_s
            and self.chunk_context_s >= other.chunk_context_s
            and all(_between(self.decode, size) >= _between(other.decode, size) for size in rows)
        )


class Hop(msgspec.Struct, frozen=True):
    """A link, one way: seconds for nothing, and bytes in a second."""

    latency_s: float
    bytes_per_s: float

    def seconds(self, num_bytes: float) -> float:
        return self.latency_s + num_bytes / self.bytes_per_s


class StageArrays:
    """The figures of some stages; its methods are those of StageSpeed, and give an array by place."""

    def __init__(self, stages: Sequence[StageSpeed]):
        import numpy as np  # takes longer than all else that a command imports, and most of them calculate nothing

        self._by_rows = np.array([[stage.decode_s(rows, 0) for stage in stages] for rows in range(_TABLE_ROWS)])
        self._decode_context_s = np.array([stage.decode_context_s for stage in stages])
        self._fixed_s = np.array([stage.chunk.fixed_s for stage in stages])
        self._token_s = np.array([stage.chunk.token_s for stage in stages])
        self._chunk_context_s = np.array([stage.chunk_context_s for stage in stages])

    def __repr__(self) -> str:
        return f"StageArrays({len(self._fixed_s)} stages)"

    def decode_s(self, rows: int, context: float) -> "Floats":
        """More rows than are looked up take as much more as the last ones."""
        last = _TABLE_ROWS - 1
        own_s = self._by_rows[min(rows, last)]
        if rows > last:
            own_s = own_s + (rows - last) * (self._by_rows[last] - self._by_rows[last - 1])
        return own_s + rows * context * self._decode_context_s

    def chunk_s(self, tokens: float, start: float) -> "Floats":
        context_s = tokens * (start + tokens / 2) * self._chunk_context_s
        return self._fixed_s + tokens * self._token_s + context_s


def _between(points: Sequence[tuple[int, float]], size: int) -> float:
    """Linear between measured points, and beyond the last two."""
    if len(points) == 1:
        return points[0][1]
    index = min(max(bisect_left(points, (size, 0.0)), 1), len(points) - 1)
    (left, low), (right, high) = points[index - 1], points[index]
    return max(low + (high - low) * (size - left) / (right - left), 0.0)
