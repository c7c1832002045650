"""Questions to workers beside all requests, and whoever waits for the answers: what lies on their disks, what their layers compute;
and, with an answer again and again, what they do when. A worker that does not answer in time, because it is gone or busy, has no answer.
"""

import asyncio
import itertools
from collections.abc import Callable, Iterable, Sequence

from cluster.planning.watched_steps import WatchedSteps
from protocol.messages import (
    ComputeFigures,
    FiguresComputed,
    HeldModel,
    ListModels,
    Message,
    ModelsListed,
    StageFigures,
    StepsRecorded,
)
from protocol.values import Buffer

MODELS_WITHIN_S = 10.0
# Behind the steps that it is at, a worker runs a short prompt.
FIGURES_WITHIN_S = 60.0

Answer = ModelsListed | FiguresComputed | StepsRecorded
_Say = Callable[[str, Message], None]


class Inquiries:
    """tell: says something to a worker, by name; send: something of the plan in force; is_elsewhere: as of `WatchedSteps`. steps: whoever
    looks at them.
    """

    def __init__(self, tell: _Say, send: _Say, is_elsewhere: Callable[[str], bool]):
        self._tell = tell
        self._send = send
        self._numbers = itertools.count(1)
        self.steps = WatchedSteps(is_elsewhere)
        self._open: dict[tuple[str, int], asyncio.Future[Answer]] = {}

    def __repr__(self) -> str:
        return f"Inquiries({len(self._open)} open)"

    async def models(self, workers: Iterable[str]) -> dict[str, tuple[HeldModel, ...]]:
        """The models on the disk of each worker's host, for those that answer."""
        found = await self._ask(workers, self._tell, lambda number: ListModels(number=number), MODELS_WITHIN_S)
        return {name: answer.models for name, answer in found.items() if isinstance(answer, ModelsListed)}

    async def figures(self, workers: Iterable[str]) -> dict[str, tuple[StageFigures, ...]]:
        """What the layers of each worker of the plan in force compute, for those that answer."""
        found = await self._ask(workers, self._send, lambda number: ComputeFigures(number=number), FIGURES_WITHIN_S)
        return {name: answer.stages for name, answer in found.items() if isinstance(answer, FiguresComputed)}

    async def _ask(
        self, workers: Iterable[str], say: _Say, question: Callable[[int], Message], within_s: float
    ) -> dict[str, Answer]:
        number, loop = next(self._numbers), asyncio.get_running_loop()
        asked: dict[str, asyncio.Future[Answer]] = {worker: loop.create_future() for worker in workers}
        self._open |= {(worker, number): answer for worker, answer in asked.items()}
        try:
            for worker in asked:
                say(worker, question(number))
            if asked:
                await asyncio.wait(asked.values(), timeout=within_s)
        finally:
            for worker in asked:
                del self._open[worker, number]
        return {worker: answer.result() for worker, answer in asked.items() if answer.done()}

    def answered(self, answer: Answer, buffers: Sequence[Buffer] = ()) -> None:
        """A worker answered; one that nobody waits for any more does not matter."""
        if isinstance(answer, StepsRecorded):
            self.steps.recorded(answer, buffers[0])
            return
        waiting = self._open.get((answer.worker, answer.number))
        if waiting is not None and not waiting.done():
            waiting.set_result(answer)
