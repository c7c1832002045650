"""The sequences that run on the plan in force: for each an inbox of what its head reports, until it ends or its plan does.

Knows numbers, routes and reports; nothing of text, clients or places. A sequence lives on one plan: when that ends, its
inbox ends with `RouteLost`, behind everything that was reported before.
"""

import asyncio
import math
from collections import Counter, deque
from collections.abc import Mapping, Sequence
from typing import Protocol

from cluster.planning.interface import Cluster
from cluster.planning.plan import Loss
from cluster.serving.answer import Report
from cluster.serving.crowd import Crowd
from cluster.serving.requests import Vector
from protocol.errors import ApiError, Unavailable
from protocol.messages import (
    Cancel,
    Embedded,
    Generate,
    PrefillProgress,
    PromptLogprobs,
    Reused,
    SequenceFailed,
    Tokens,
)
from protocol.values import Buffer, Route, pack_ids
from strategy.cost import RouteLoad

# How far a reader may be behind before its sequence stops.
MAX_BEHIND_TOKENS = 1000


class RouteLost(Exception):
    """The plan that a sequence ran on ended."""

    def __init__(self, loss: Loss):
        super().__init__(loss.sentence)
        self.loss = loss


class Paused(Exception):
    """A sequence was ended because nobody reads what it gives, or for the room that it took; another can go on where it stood."""


class RunOwner(Protocol):
    """Whoever holds the place of a run."""

    def paused(self, run: "Run") -> None:
        """Nobody reads what it gives, and nothing is computed for it any more."""
        ...

    def grown(self, run: "Run") -> float:
        """It has given as many tokens as were foreseen; the answer is how many are now. It may have been paused."""
        ...


class Run:
    """One sequence: where it runs and what was reported of it. is_done: its head has nothing more to compute for it.

    num_prompt, num_read, num_given: tokens of the prompt, those of it that were read, and of the answer; num_behind: tokens
    that were reported and not taken; num_taken: how often something was; foreseen: how many it may give before its owner is asked.
    """

    def __init__(self, message: Generate, num_prompt: int, began_at: float, owner: RunOwner):
        self.message = message
        self.num_prompt = num_prompt
        self.num_read = 0
        self.num_given = 0
        self.began_at = began_at
        self.is_done = False
        self.num_behind = 0
        self.num_taken = 0
        self.owner = owner
        self.foreseen = math.inf
        self._reports: deque[Report | ApiError | RouteLost | Paused] = deque()
        self._arrival: asyncio.Future[None] | None = None  # what `take` waits for; an Event costs a token more

    def __repr__(self) -> str:
        return f"Run({self.number} on {self.route})"

    @property
    def number(self) -> int:
        return self.message.sequence

    @property
    def route(self) -> Route:
        return self.message.route

    @property
    def works_on(self) -> Route:
        """Where steps of it run now: first on the stages that read its prompt for another worker, if there are such."""
        return self.route if self.num_given else self.message.read_by or self.route

    def put(self, report: Report | ApiError | RouteLost | Paused) -> None:
        self._reports.append(report)
        if self._arrival is not None and not self._arrival.done():
            self._arrival.set_result(None)

    async def take(self) -> list[Report]:
        """Everything that was reported since, at least one. Raises what the run ended with, once all before it is taken."""
        if not self._reports:
            self._arrival = asyncio.get_running_loop().create_future()
            await self._arrival
        reports: list[Report] = []
        while self._reports:
            report = self._reports[0]
            if isinstance(report, Exception):
                if reports:
                    break
                raise report
            reports.append(report)
            self._reports.popleft()
        self.num_behind = 0
        self.num_taken += 1
        return reports


class Runs:
    """The runs by number. Numbers are never used again, so a late report concerns nobody."""

    def __init__(self, cluster: Cluster):
        self._cluster = cluster
        self._runs: dict[int, Run] = {}
        self._crowds: dict[Run, Crowd] = {}
        self._decoding: Counter[Route] | None = None  # that have tokens and get more, since that last changed
        self._num_begun = 0

    def __repr__(self) -> str:
        return f"Runs({len(self._runs)} running)"

    def next_number(self) -> int:
        self._num_begun += 1
        return self._num_begun

    def begin(self, message: Generate, tokens: tuple[int, ...], now: float, owner: RunOwner) -> Run:
        """Send a sequence to the head of its route. Raises WireError for what is too large to send."""
        self._cluster.send(message.route.head, message, (pack_ids(tokens),))
        run = self._runs[message.sequence] = Run(message, len(tokens), now, owner)
        self._crowds[run] = Crowd()
        there = [each for each in self._runs.values() if each.route == run.route and not each.is_done]
        for each in there:
            self._crowds[each].most = max(self._crowds[each].most, len(there))
        return run

    def crowd(self, run: Run) -> Crowd:
        """Until it ends; of one that did nothing is known."""
        return self._crowds.get(run) or Crowd()

    def end(self, run: Run) -> None:
        """Nobody waits for this sequence any more."""
        self._crowds.pop(run, None)
        self._decoding = None
        if self._runs.pop(run.number, None) is not None:
            self._cluster.send(run.route.head, Cancel(sequence=run.number))

    def expire(self, run: Run, error: ApiError) -> None:
        """It was given its time; what it would still give nobody waits for."""
        self.end(run)
        run.put(error)

    def pause(self, run: Run) -> None:
        """Another can go on where this one stands; one of which nothing is left to compute stays."""
        if not run.is_done:
            self.end(run)
            run.put(Paused())

    def _pause(self, run: Run) -> None:
        self.pause(run)
        run.owner.paused(run)

    def unread(self) -> dict[Run, int]:
        """Of which something was reported and not taken, with how often they were read."""
        return {run: run.num_taken for run in self._runs.values() if run.num_behind}

    def pause_unread(self, earlier: Mapping[Run, int]) -> None:
        """Pause those of an earlier `unread` of which nothing was read since."""
        for run, num_taken in earlier.items():
            if run.number in self._runs and run.num_behind and run.num_taken == num_taken:
                self._pause(run)

    def loads(self) -> dict[Route, RouteLoad]:
        """What runs now, by route; what is read for another worker is as good as there, which others would choose, too."""
        by_route: dict[Route, list[Run]] = {}
        for run in self._runs.values():
            if not run.is_done:
                for route in dict.fromkeys((run.works_on, run.route)):
                    by_route.setdefault(route, []).append(run)
        return {route: _load(route, runs) for route, runs in by_route.items()}

    @property
    def owed_since(self) -> float | None:
        """Since when the sequence that runs longest has been running; None when nothing is left to compute."""
        return min((run.began_at for run in self._runs.values() if not run.is_done), default=None)

    # --- what arrives

    def tokens(self, message: Tokens) -> None:
        decoding = self._num_decoding()
        for update in message.updates:
            if run := self._runs.get(update.sequence):
                if run.num_given:
                    self._crowds[run].given(decoding[run.route])
                run.is_done = update.finish_reason is not None
                if run.is_done or not run.num_given:
                    self._decoding = None
                run.num_given += len(update.tokens)
                run.num_behind += len(update.tokens)
                run.put(update)
                if run.num_given >= run.foreseen and not run.is_done:
                    run.foreseen = run.owner.grown(run)
                if run.num_behind > MAX_BEHIND_TOKENS and not run.is_done and run.number in self._runs:
                    self._pause(run)

    def _num_decoding(self) -> Counter[Route]:
        if self._decoding is None:
            self._decoding = Counter(run.route for run in self._runs.values() if run.num_given and not run.is_done)
        return self._decoding

    def embedded(self, message: Embedded, vector: Buffer) -> None:
        if run := self._runs.get(message.sequence):
            run.is_done = True
            run.put(Vector(bytes(vector)))

    def report(self, message: PrefillProgress | PromptLogprobs | Reused) -> None:
        if run := self._runs.get(message.sequence):
            if isinstance(message, PrefillProgress):
                run.num_read = message.processed
            elif isinstance(message, Reused):
                run.num_read = message.num_tokens
            run.put(message)

    def failed(self, message: SequenceFailed) -> None:
        if run := self._runs.get(message.sequence):
            run.is_done = True
            self._decoding = None
            run.put(ApiError(message.message))

    def lose(self, loss: Loss) -> None:
        """The plan ended, and every sequence with it."""
        for run in self._runs.values():
            run.put(RouteLost(loss))
        self._runs.clear()
        self._crowds.clear()
        self._decoding = None

    def fail(self, message: str) -> None:
        """End every sequence: nobody will wait for it."""
        for run in self._runs.values():
            run.is_done = True
            run.put(Unavailable(message))
        self._decoding = None


def _load(route: Route, runs: Sequence[Run]) -> RouteLoad:
    cached = [run for run in runs if run.message.cached]
    reading = [run for run in cached if run.works_on == route and not run.num_given]
    decoding = [run for run in cached if run.works_on != route or run.num_given]
    lengths = [run.num_prompt + run.num_given for run in decoding or runs]
    return RouteLoad(
        decoding=len(decoding),
        reading=len(reading),
        reading_tokens=sum(max(run.num_prompt - 1 - run.num_read, 0) for run in reading),
        uncached=len(runs) - len(cached),
        context=sum(lengths) / len(lengths),
        longest=max(lengths),
    )
