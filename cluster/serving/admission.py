"""Which requests run and which wait: first come, first served, within counts and memory.

Owns the counts and each worker's room for caches. A request that finds the waiting places taken is refused at once,
never queued silently. A later, smaller request does not overtake one that waits for memory, so nobody starves.
"""

import asyncio
import contextlib
from collections import deque
from collections.abc import AsyncIterator, Mapping

from protocol.errors import QueueFull, Unavailable

RETRY_AFTER_S = 2
NO_COST: Mapping[str, int] = {}


class Admission:
    """At most `max_running` requests hold a place; at most `max_waiting` wait for one. room: bytes by worker."""

    def __init__(self, *, max_running: int, max_waiting: int, room: Mapping[str, int] | None = None):
        self._max_running = max_running
        self._max_waiting = max_waiting
        self._room = dict(room or {})
        self._waiting: deque[tuple[asyncio.Future[None], Mapping[str, int]]] = deque()
        self._idle = asyncio.Event()
        self._idle.set()
        self.num_running = 0
        self.closed = False

    def __repr__(self) -> str:
        return f"Admission({self.num_running} running, {self.num_waiting} waiting)"

    @property
    def num_waiting(self) -> int:
        return len(self._waiting)

    @contextlib.asynccontextmanager
    async def place(self, cost: Mapping[str, int] = NO_COST) -> AsyncIterator[None]:
        """Hold a place, and `cost` bytes by worker, for the body. No cost may exceed a worker's whole room.

        Raises:
            QueueFull: as many wait as may.
            Unavailable: the cluster is stopping.
        """
        await self._enter(cost)
        try:
            yield
        finally:
            self._leave(cost)

    def _has_room(self, cost: Mapping[str, int]) -> bool:
        enough = all(self._room[worker] >= needed for worker, needed in cost.items())
        return enough and self.num_running < self._max_running

    async def _enter(self, cost: Mapping[str, int]) -> None:
        if self.closed:
            raise Unavailable("the cluster is stopping; start it again with ./launch.sh start")
        if not self._waiting and self._has_room(cost):
            self._take(cost)
            return
        if self.num_waiting >= self._max_waiting:
            raise QueueFull(
                f"{self.num_running} requests run and {self.num_waiting} wait, as many as may; try again soon",
                retry_after_s=RETRY_AFTER_S,
            )
        turn: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._waiting.append((turn, cost))
        try:
            await turn
        except asyncio.CancelledError:
            if turn.done() and not turn.cancelled() and turn.exception() is None:
                self._leave(cost)  # the place came just as the caller gave up
            else:
                self._waiting = deque(waiter for waiter in self._waiting if waiter[0] is not turn)
                self._admit()  # it may have held up others
            raise

    def _take(self, cost: Mapping[str, int]) -> None:
        for worker, needed in cost.items():
            self._room[worker] -= needed
        self.num_running += 1
        self._idle.clear()

    def _leave(self, cost: Mapping[str, int]) -> None:
        self.num_running -= 1
        for worker, needed in cost.items():
            self._room[worker] += needed
        self._admit()
        if not self.num_running:
            self._idle.set()

    def _admit(self) -> None:
        """Give places to those who wait, in order, as far as there is room."""
        while self._waiting and (self._waiting[0][0].done() or self._has_room(self._waiting[0][1])):
            turn, cost = self._waiting.popleft()
            if not turn.done():
                self._take(cost)
                turn.set_result(None)

    def close(self) -> None:
        """Refuse newcomers and everybody who waits; those who run go on."""
        self.closed = True
        while self._waiting:
            turn, _ = self._waiting.popleft()
            if not turn.done():
                turn.set_exception(Unavailable("the cluster is stopping; start it again with ./launch.sh start"))

    async def drained(self) -> None:
        """Returns when nothing runs."""
        await self._idle.wait()
