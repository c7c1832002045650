"""The heads of the routes that begin on this worker, and what the stages of each have kept.

Decides nothing itself: each event goes to the head that it concerns, whose actions come back. Knows nothing of sockets, MLX
or the clock.
"""

from collections.abc import Iterator, Sequence

from protocol.messages import (
    Cancel,
    DropPrefix,
    ForgetConversation,
    Generate,
    KnownPrefix,
    Message,
    Pooled,
    ReadPrompt,
    Sampled,
    Step,
    StepFailed,
    StopReading,
)
from protocol.values import Buffer, Route, Sampling
from strategy.chunking import ChunkSize
from strategy.prefix import Key, PrefixDirectory
from workers.engine.actions import Action, Forward
from workers.engine.fitness import UnfitMessage
from workers.engine.generation import HAND_OVER_EVERY_TOKENS, Reading
from workers.engine.handovers import Handovers
from workers.engine.head import Head
from workers.engine.speculation import Speculation
from workers.model.stage_loading import LoadedStages

# Where prompts that come at once are read in one pass, how long another may take to come behind one, and how many are waited for.
_GATHERING_S, _MOST_GATHERED = 0.004, 32


class Heads:
    """See the module. name: this worker's."""

    def __init__(self, name: str) -> None:
        self.handovers = Handovers(name)
        self._stages = LoadedStages()
        self._heads: dict[Route, Head] = {}
        self._directories: dict[Route, PrefixDirectory] = {}

    def __repr__(self) -> str:
        return f"Heads({list(self._heads.values())})"

    def __iter__(self) -> Iterator[Head]:
        """Whoever had no step for longest comes first."""
        return iter(tuple(self._heads.values()))

    def launched(self, head: Head, step: Step) -> list[Action]:
        """A step of it runs: all others come before it, also those whose ids arrive meanwhile."""
        self._heads[head.route] = self._heads.pop(head.route)
        return head.launched(step)

    def renew(self, stages: LoadedStages) -> None:
        """Forget everything and begin with what is loaded now."""
        self._stages = stages
        self._heads.clear()
        self._directories.clear()
        self.handovers.clear()

    def abandon(self) -> list[Action]:
        """End what runs on the routes of this worker alone, and keep what was computed for when the requests come back.

        The stages of longer routes hear of the end by themselves, and may be at different steps.
        """
        return [action for head in self if head.route.is_single for action in head.abandon()]

    def begin(self, message: Generate, prompt: list[int]) -> list[Action]:
        """A request for a route that begins here."""
        head = self._head_of(message.route)
        if message.read_by is None:
            return head.begin(message, prompt)
        return self.handovers.begin(head, message, prompt)

    def gathering_s(self, message: Message) -> float | None:
        """How long to wait behind a message for what may come with it, where nothing runs and the end of all is all that counts."""
        is_first = isinstance(message, Generate) and not any(head.num_in_flight for head in self)
        is_wanted = is_first and self._stages.streams_wait and sum(map(len, self)) < _MOST_GATHERED
        return _GATHERING_S if is_wanted else None

    def _head_of(self, route: Route) -> Head:
        if route not in self._heads:
            self._heads[route] = self._new_head(route)
        return self._heads[route]

    def _new_head(self, route: Route) -> Head:
        return Head(
            route,
            chunk_size=ChunkSize(
                num_stages=route.num_stages,
                cost=self._stages.chunk_costs[route],
                fixed_tokens=self._stages.fixed_chunk_tokens,
                together=self._stages.reads_together,
                streams_wait=self._stages.streams_wait,
            ),
            max_rows=self._stages.max_rows,
            prefixes=self._directories.get(route),
            keeps_answers=route == self._stages.copied,
            speculation=self._speculation(route),
        )

    def _speculation(self, route: Route) -> Speculation | None:
        """None where nothing is guessed. The ranks of a last stage do not know what the first of them samples, so that none of them
        could tell a stale step: nobody goes on there.
        """
        guessers, needs = self._stages.guessers, self._stages.needs_of(route)
        if guessers is None or needs is None:
            return None
        has_stages = not route.is_single and not route.is_shared
        return Speculation(guessers, forgets=not needs.snapshots, has_stages=has_stages)

    def know(self, message: KnownPrefix, keys: Sequence[Key], lengths: Sequence[int]) -> list[Action]:
        """Reuse of prefixes begins on a route."""
        directory = PrefixDirectory(capacity=message.capacity, snapshots=message.snapshots)
        gone = directory.restore(zip(keys, lengths, strict=True))
        self._directories[message.route] = directory
        return [Forward(DropPrefix(route=message.route), tuple(gone))] if gone else []

    def forget_conversation(self, message: ForgetConversation) -> list[Action]:
        """A conversation was deleted."""
        return [action for head in self for action in head.forget_conversation(message.conversation)]

    def cancel(self, message: Cancel) -> list[Action]:
        """A sequence is to end; unknown ones are ignored."""
        actions = [action for head in self for action in head.cancel(message.sequence)]
        return actions + self.handovers.cancel(message.sequence)

    def read(self, message: ReadPrompt, prompt: list[int]) -> list[Action]:
        """A prompt to read on a route that begins here, for a worker that goes on alone."""
        needs = self._stages.needs_of(message.route)
        assert needs is not None, "a route that is loaded"
        every = None if needs.snapshots else HAND_OVER_EVERY_TOKENS
        request = Generate(
            sequence=message.sequence,
            request_id=message.request_id,
            route=message.route,
            cached=True,
            max_tokens=1,
            end_tokens=(),
            sampling=Sampling(),
            seed=0,
            scope=message.scope,
            client=message.client,
        )
        return self._head_of(message.route).read(request, prompt, Reading(message.holder, message.start, every))

    def stop_reading(self, message: StopReading) -> list[Action]:
        """Nobody waits for a prompt any more; unknown ones are ignored."""
        head = self._heads.get(message.route)
        return [] if head is None else head.cancel(message.sequence)

    def answered(self, message: Sampled | StepFailed, now: float) -> list[Action]:
        """A step of one of the heads came back."""
        head = self._heads.get(message.route)
        if head is None:
            raise UnfitMessage(f"no route {message.route} runs from here")
        if isinstance(message, Sampled):
            return head.sampled(message, now)
        return head.failed(message.number, message.message)

    def pooled(self, message: Pooled, vector: Buffer) -> list[Action]:
        """A sequence of one of the heads became a vector."""
        head = self._heads.get(message.route)
        if head is None:
            raise UnfitMessage(f"no route {message.route} runs from here")
        return head.pooled(message.sequence, vector)

    def ran(self, step: Step, seconds: float) -> None:
        """This worker's stage of a step took so long."""
        head = self._heads.get(step.route)
        if head is not None:
            head.ran(step, seconds)

    def overdue(self, now: float) -> list[Action]:
        """Steps that should have come back."""
        return [action for head in self for action in head.overdue(now)]
