"""How many requests run and wait at once: first come, first served.

Owns the two counts. A request that finds the waiting places taken is refused at once, never queued silently.
"""

import asyncio
import contextlib
from collections import deque
from collections.abc import AsyncIterator

from cluster.errors import QueueFull, Unavailable

RETRY_AFTER_S = 2


class Admission:
    """At most `max_running` requests hold a place; at most `max_waiting` wait for one."""

    def __init__(self, *, max_running: int, max_waiting: int):
        self._max_running = max_running
        self._max_waiting = max_waiting
        self._waiting: deque[asyncio.Future[None]] = deque()
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
    async def place(self) -> AsyncIterator[None]:
        """Hold a place for the body.

        Raises:
            QueueFull: as many wait as may.
            Unavailable: the cluster is stopping.
        """
        await self._enter()
        try:
            yield
        finally:
            self._leave()

    async def _enter(self) -> None:
        if self.closed:
            raise Unavailable("the cluster is stopping; start it again with ./launch.sh start")
        if self.num_running < self._max_running:
            self._take()
            return
        if self.num_waiting >= self._max_waiting:
            raise QueueFull(
                f"{self.num_running} requests run and {self.num_waiting} wait, as many as may; try again soon",
                retry_after_s=RETRY_AFTER_S,
            )
        turn: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._waiting.append(turn)
        try:
            await turn
        except asyncio.CancelledError:
            if turn.done() and not turn.cancelled() and turn.exception() is None:
                self._leave()  # the place came just as the caller gave up
            elif turn in self._waiting:
                self._waiting.remove(turn)
            raise

    def _take(self) -> None:
        self.num_running += 1
        self._idle.clear()

    def _leave(self) -> None:
        self.num_running -= 1
        while self._waiting and self.num_running < self._max_running:
            turn = self._waiting.popleft()
            if not turn.done():
                self._take()
                turn.set_result(None)
        if not self.num_running:
            self._idle.set()

    def close(self) -> None:
        """Refuse newcomers and everybody who waits; those who run go on."""
        self.closed = True
        while self._waiting:
            turn = self._waiting.popleft()
            if not turn.done():
                turn.set_exception(Unavailable("the cluster is stopping; start it again with ./launch.sh start"))

    async def drained(self) -> None:
        """Returns when nothing runs."""
        await self._idle.wait()
