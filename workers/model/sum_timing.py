"""What exchanges cost the ranks of a group: noted in a pass of one token, then timed by themselves, by all ranks at once."""

import time
from collections import Counter
from collections.abc import Callable, Iterable, Sequence

import mlx.core as mx

from strategy.group_sums import GroupSums
from workers.tensor.group import TensorGroup

_CHUNK_TOKENS = 256
_ROW_TIMES, _CHUNK_TIMES = 31, 5


class NotedGroup:
    """A `TensorGroup` that passes everything on, and notes what this rank adds to it."""

    def __init__(self, group: TensorGroup):
        self.rank = group.rank
        self.size = group.size
        self.carrier = group.carrier
        self.in_graph = group.in_graph
        self._group = group
        self._added: Counter[tuple[int, mx.Dtype]] = Counter()

    def __repr__(self) -> str:
        return f"NotedGroup({self._added.total()} of {self._group})"

    def sum(self, x: mx.array) -> mx.array:
        """See `TensorGroup`."""
        self._added[x.size, x.dtype] += 1
        return self._group.sum(x)

    def gather(self, x: mx.array, axis: int = -1, widths: Sequence[int] | None = None) -> mx.array:
        """See `TensorGroup`."""
        self._added[x.size, x.dtype] += 1
        return self._group.gather(x, axis, widths)

    def abort(self) -> None:
        """See `TensorGroup`."""
        self._group.abort()

    def failed(self, error: Exception) -> None:
        """See `TensorGroup`."""
        self._group.failed(error)

    def close(self) -> None:
        """See `TensorGroup`."""
        self._group.close()

    def timed(self, now: Callable[[], float] = time.perf_counter) -> GroupSums | None:
        """What was noted, taken for that of one token: as if each exchange were a sum of the usual size. None where nothing was.

        Raises GroupBroken.
        """
        if not self._added:
            return None
        (size, dtype), _ = self._added.most_common(1)[0]
        row, chunk = mx.zeros((1, size), dtype), mx.zeros((_CHUNK_TOKENS, size), dtype)
        return GroupSums(
            num_sums=self._added.total(),
            row_bytes=row.nbytes,
            row_s=_usual(self._sum_s(row, now) for _ in range(_ROW_TIMES)),
            transport=self.carrier.name,
            why_not_wanted=self.carrier.why_not_wanted,
            chunk_bytes=chunk.nbytes,
            chunk_s=_usual(self._sum_s(chunk, now) for _ in range(_CHUNK_TIMES)),
        )

    def _sum_s(self, x: mx.array, now: Callable[[], float]) -> float:
        begun_at = now()
        mx.eval(self._group.sum(x))
        return now() - begun_at


def _usual(seconds: Iterable[float]) -> float:
    """On a machine that other things disturb now and then."""
    found = sorted(seconds)
    return found[len(found) // 4]
