"""A client that is served while something happens to its cluster, and what a report says of it and of the processes."""

import asyncio
import contextlib
import itertools
from collections.abc import AsyncIterator, Sequence

from benchmarks.support.client import Answer, Target, ask_health, stream
from benchmarks.support.contenders import Cluster
from benchmarks.support.reporting import Report
from benchmarks.support.resources import Sample

PROMPT = tuple(range(20, 84))
TOKENS = 64
_HEALTH_WITHIN_S, _GAP_MORE_S, _MEMORY_MORE = 1.0, 0.5, 0.10


class Served:
    """A client that streams answer after answer, and how it was served."""

    def __init__(self, running: Cluster):
        self._running = running
        self._target = Target(
            name="honest", url=running.url, model=running.model, end_tokens=(1,), strategy="distributed-cached"
        )
        self.answers: list[Answer] = []
        self.health_s: list[float] = []

    def __repr__(self) -> str:
        return f"Served({len(self.answers)} answers)"

    async def one(self) -> Answer:
        """An answer."""
        return await stream(self._target, PROMPT, TOKENS)

    @contextlib.asynccontextmanager
    async def meanwhile(self) -> AsyncIterator[None]:
        """While something else happens."""
        tasks = [asyncio.create_task(self._stream()), asyncio.create_task(ask_health(self._running.url, self.health_s))]
        try:
            yield
        finally:
            for task in tasks:
                task.cancel()
            await asyncio.gather(*tasks, return_exceptions=True)

    async def _stream(self) -> None:
        while True:
            self.answers.append(await self.one())


def longest_gap(answers: Sequence[Answer]) -> float:
    """Seconds between two tokens of one answer, at most."""
    gaps = [later - earlier for answer in answers for earlier, later in itertools.pairwise(answer.text_at)]
    return max(gaps, default=0.0)


def add_answers(report: Report, served: Served, right: Sequence[int], alone: Sequence[Answer]) -> None:
    """How the client was served. right: the ids of each answer; alone: its answers while nothing happened."""
    wrong = [answer for answer in served.answers if answer.error or answer.tandem.get("token_ids") != right]
    report.check(f"answers of {len(served.answers)} beside it that are wrong", len(wrong), at_most=0)
    report.check(
        "longest gap beside it, less that alone, s",
        longest_gap(served.answers) - longest_gap(alone),
        at_most=_GAP_MORE_S,
    )
    report.check("seconds until /health answers, longest", max(served.health_s), at_most=_HEALTH_WITHIN_S)
    report.data["errors"] = sorted({answer.error for answer in wrong if answer.error})


def add_use(report: Report, before: Sample, after: Sample) -> None:
    """Processes that ended, and what the others hold more than before."""
    rows, grown = [], [0.0]
    for use in before.processes:
        later = after.of(use.pid)
        if later is not None:
            grown.append(later.resident_bytes / use.resident_bytes - 1)
            rows.append(
                [use.name, use.resident_bytes / 1e6, later.resident_bytes / 1e6, use.descriptors, later.descriptors]
            )
    report.table("processes", ["process", "MB before", "MB after", "descriptors before", "after"], rows)
    report.check("processes that ended", len(before.processes) - len(rows), at_most=0)
    report.check("memory of a process, more than before", max(grown), at_most=_MEMORY_MORE)
