"""The two words that every decision is said in: a range of layers, and the workers that a request goes through."""

from collections.abc import Iterator
from typing import NamedTuple

import msgspec


class LayerRange(NamedTuple):
    """A half-open range of decoder layers."""

    start: int
    end: int


# Of whoever has no stage.
NO_LAYERS = LayerRange(0, 0)


class Route(msgspec.Struct, frozen=True, array_like=True):
    """The workers that a request goes through, in stage order; one alone serves it with the full model.

    ranks: how many compute each stage together, one behind the other in `workers`: a tensor group, or a pipeline of such.
    """

    workers: tuple[str, ...]
    ranks: int = 1

    def __str__(self) -> str:
        return ">".join("+".join(self._stage(index)) for index in range(self.num_stages))

    def __len__(self) -> int:
        return len(self.workers)

    def __iter__(self) -> Iterator[str]:
        return iter(self.workers)

    @property
    def num_stages(self) -> int:
        return len(self.workers) // self.ranks

    @property
    def head(self) -> str:
        """Who batches, schedules and reports."""
        return self.workers[0]

    @property
    def last(self) -> str:
        """Who samples."""
        return self.workers[-self.ranks]

    @property
    def heads(self) -> tuple[str, ...]:
        """The first rank of each stage."""
        return self.workers[:: self.ranks]

    @property
    def is_single(self) -> bool:
        return len(self.workers) == 1

    @property
    def is_shared(self) -> bool:
        """Whether several workers compute each stage together."""
        return self.ranks > 1

    @property
    def is_sound(self) -> bool:
        """Whether each of its stages has all of its ranks, and no worker two places."""
        return self.ranks > 0 and not len(self.workers) % self.ranks and len(set(self.workers)) == len(self.workers) > 0

    def rank_of(self, worker: str) -> int:
        """A worker's place among those that compute its stage. Raises ValueError for one that is not on the route."""
        return self.workers.index(worker) % self.ranks

    def stage_of(self, worker: str) -> int:
        """The number of its stage. Raises ValueError for a worker that is not on the route."""
        return self.workers.index(worker) // self.ranks

    def together_with(self, worker: str) -> tuple[str, ...]:
        """All that compute a worker's stage, by rank. Raises ValueError for one that is not on the route."""
        return self._stage(self.stage_of(worker))

    def beside(self, worker: str) -> tuple[str, ...]:
        """The others that compute a worker's stage. Raises ValueError for one that is not on the route."""
        return tuple(other for other in self.together_with(worker) if other != worker)

    def is_in_last_stage(self, worker: str) -> bool:
        """Whether logits are computed there."""
        return worker in self.workers[-self.ranks :]

    def next_after(self, worker: str) -> str | None:
        """Who gets what `worker` passes on; None behind the last stage. Raises ValueError for a worker that is not on it."""
        index = self.workers.index(worker) + self.ranks
        return self.workers[index] if index < len(self.workers) else None

    def told_by(self, worker: str) -> tuple[str, ...]:
        """To whom a worker passes on what the head said: the head to its stage's other ranks, all to the next stage. Raises ValueError
        for a worker that is not on the route.
        """
        following = self.next_after(worker)
        return (*(self.beside(worker) if worker == self.head else ()), *(() if following is None else (following,)))

    def _stage(self, index: int) -> tuple[str, ...]:
        return self.workers[index * self.ranks : (index + 1) * self.ranks]
