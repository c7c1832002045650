"""What the ranks of a tensor group exchange: sums and gathers in the middle of a pass.

Owns the contract, and ranks that are threads of one process, for trying cuts and for tests. Knows no models. Every rank calls the
same operations in the same order; whoever has to wait for a rank that never comes is freed by `abort`.
"""

import threading
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import reduce
from operator import add
from typing import NamedTuple, Protocol, TypeVar, cast

import mlx.core as mx

from protocol.errors import TandemError

T = TypeVar("T")


class GroupBroken(TandemError):
    """A rank is gone or gave up, so no exchange of the group can end any more."""


class NotMet(TandemError):
    """The ranks of a group did not all come together. The message is a clause that says who missed whom, and where; empty where another
    rank knows.
    """


class Carrier(NamedTuple):
    """What carries a group's exchanges: a transport's name, and a clause where it is not the one that was wanted."""

    name: str
    why_not_wanted: str | None = None


class TensorGroup(Protocol):
    """The ranks that compute one model together, as one of them sees it.

    rank: 0 to size - 1, also the order of sums and gathers. in_graph: operations are parts of the graph, that wait for nobody when they are
    called; all ranks must evaluate the same ones. Others evaluate what they are given and raise GroupBroken.
    """

    rank: int
    size: int
    carrier: Carrier
    in_graph: bool

    def sum(self, x: mx.array) -> mx.array:
        """The elementwise sum of every rank's array, all of one shape and type: added in rank order, the same bits everywhere."""

    def gather(self, x: mx.array, axis: int = -1, widths: Sequence[int] | None = None) -> mx.array:
        """Every rank's array, one behind the other along an axis in rank order; they may be of unequal width there, also 0. widths: of
        every rank, for groups that would have to ask; by who knows them, on all ranks or on none.
        """

    def abort(self) -> None:
        """From any thread: this operation and every later one ends, and raises GroupBroken where not all ranks come to it."""

    def failed(self, error: Exception) -> None:
        """A pass raised this on this rank, an operation in its graph perhaps: as `abort`, or more. May raise GroupBroken."""

    def close(self) -> None:
        """Gives back what the group holds. Only between operations."""


class ThreadGroup:
    """A rank that is a thread. Arrays are handed over as they are: MLX lets any thread read what is evaluated."""

    carrier = Carrier("threads")
    in_graph = False

    def __init__(self, rank: int, meeting: "_Meeting"):
        self.rank = rank
        self.size = meeting.barrier.parties
        self._meeting = meeting

    def __repr__(self) -> str:
        return f"ThreadGroup(rank {self.rank} of {self.size})"

    @classmethod
    def of(cls, size: int) -> list["ThreadGroup"]:
        """The ranks of a new group, one for each thread."""
        meeting = _Meeting(size)
        return [cls(rank, meeting) for rank in range(size)]

    def sum(self, x: mx.array) -> mx.array:
        return reduce(add, self._everyones(x))

    def gather(self, x: mx.array, axis: int = -1, _: Sequence[int] | None = None) -> mx.array:
        return mx.concatenate(self._everyones(x), axis=axis)

    def abort(self) -> None:
        self._meeting.barrier.abort()

    def failed(self, _: Exception) -> None:
        self.abort()

    def close(self) -> None:
        """Nothing is held."""

    def _everyones(self, x: mx.array) -> list[mx.array]:
        mx.eval(x)
        return self._meeting.exchange(self.rank, x)


class _Meeting:
    """Where threads meet: each leaves an array and takes all."""

    def __init__(self, size: int):
        self.barrier = threading.Barrier(size)
        self._left: list[mx.array | None] = [None] * size

    def exchange(self, rank: int, x: mx.array) -> list[mx.array]:
        self._left[rank] = x
        try:
            self.barrier.wait()
            taken = [array for array in self._left if array is not None]
            self.barrier.wait()
        except threading.BrokenBarrierError as error:
            raise GroupBroken("a rank of the tensor group gave up; start the request again") from error
        return taken


def on_threads(size: int, action: Callable[[ThreadGroup], T], threads: ThreadPoolExecutor | None = None) -> list[T]:
    """What the action returns on each rank of a group of threads. Where one raises, the others are freed and that error is raised.

    threads: as many as ranks, to run on; MLX never gives back what it makes for a thread, so who asks often keeps them. A process that
    ran MLX on several threads may abort when it ends: call it in a child that ends with `os._exit`.
    """
    raised: list[BaseException] = []

    def run(group: ThreadGroup) -> T | None:
        try:
            return action(group)
        except BaseException as error:  # noqa: BLE001  the boundary of a thread: raised again by whoever waits for it
            raised.append(error)
            group.abort()
            return None

    pool = threads or ThreadPoolExecutor(size, "rank")
    returned = list(pool.map(run, ThreadGroup.of(size)))
    if threads is None:
        pool.shutdown()
    if raised:
        raise raised[0]
    return cast(list[T], returned)
