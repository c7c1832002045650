"""Questions to workers that belong to no plan, such as what lies on their disks, and whoever waits for the answers.

A worker that does not answer in time, because it is gone or busy, has no answer.
"""

import asyncio
import itertools
from collections.abc import Callable, Iterable

from protocol.messages import HeldModel, ListModels, Message, ModelsListed

WITHIN_S = 10.0


class Inquiries:
    """tell: says something to a worker, by name."""

    def __init__(self, tell: Callable[[str, Message], None]):
        self._tell = tell
        self._numbers = itertools.count(1)
        self._open: dict[tuple[str, int], asyncio.Future[ModelsListed]] = {}

    def __repr__(self) -> str:
        return f"Inquiries({len(self._open)} open)"

    async def models(self, workers: Iterable[str]) -> dict[str, tuple[HeldModel, ...]]:
        """The models on the disk of each worker's host, for those that answer."""
        number, loop = next(self._numbers), asyncio.get_running_loop()
        asked = {worker: loop.create_future() for worker in workers}
        self._open |= {(worker, number): answer for worker, answer in asked.items()}
        try:
            for worker in asked:
                self._tell(worker, ListModels(number=number))
            if asked:
                await asyncio.wait(asked.values(), timeout=WITHIN_S)
        finally:
            for worker in asked:
                del self._open[worker, number]
        return {worker: answer.result().models for worker, answer in asked.items() if answer.done()}

    def answered(self, answer: ModelsListed) -> None:
        """A worker answered; one that nobody waits for any more does not matter."""
        waiting = self._open.get((answer.worker, answer.number))
        if waiting is not None and not waiting.done():
            waiting.set_result(answer)
