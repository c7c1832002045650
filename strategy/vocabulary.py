"""The two words that every decision is said in: a range of layers, and the workers that a request goes through."""

from collections.abc import Iterator
from typing import NamedTuple

import msgspec


class LayerRange(NamedTuple):
    """A half-open range of decoder layers."""

    start: int
    end: int


class Route(msgspec.Struct, frozen=True, array_like=True):
    """The workers that a request goes through, in stage order; one alone serves it with the full model."""

    workers: tuple[str, ...]

    def __str__(self) -> str:
        return ">".join(self.workers)

    def __len__(self) -> int:
        return len(self.workers)

    def __iter__(self) -> Iterator[str]:
        return iter(self.workers)

    @property
    def head(self) -> str:
        """Who batches, schedules and reports."""
        return self.workers[0]

    @property
    def last(self) -> str:
        """Who samples."""
        return self.workers[-1]

    @property
    def is_single(self) -> bool:
        return len(self.workers) == 1

    def next_after(self, worker: str) -> str | None:
        """Who gets what `worker` passes on; None behind the last. Raises ValueError for a worker that is not on it."""
        index = self.workers.index(worker) + 1
        return self.workers[index] if index < len(self.workers) else None
