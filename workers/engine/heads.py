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
    Sampled,
    Step,
    StepFailed,
)
from protocol.values import Route
from strategy.prefix import Key, PrefixDirectory
from workers.engine.actions import Action, Forward
from workers.engine.fitness import UnfitMessage
from workers.engine.head import Head
from workers.model.stage_loading import LoadedStages


class Heads:
    """See the module."""

    def __init__(self) -> None:
        self._stages = LoadedStages()
        self._heads: dict[Route, Head] = {}
        self._directories: dict[Route, PrefixDirectory] = {}

    def __repr__(self) -> str:
        return f"Heads({list(self._heads.values())})"

    def __iter__(self) -> Iterator[Head]:
        return iter(tuple(self._heads.values()))

    def renew(self, stages: LoadedStages) -> None:
        """Forget everything and begin with what is loaded now."""
        self._stages = stages
        self._heads.clear()
        self._directories.clear()

    def abandon(self) -> list[Action]:
        """End what runs on the routes of this worker alone, and keep what was computed for when the requests come back.

        The stages of longer routes hear of the end by themselves, and may be at different steps.
        """
        return [action for head in self if head.route.is_single for action in head.abandon()]

    def begin(self, message: Generate, prompt: list[int]) -> list[Action]:
        """A request for a route that begins here."""
        if message.route not in self._heads:
            self._heads[message.route] = self._new_head(message.route)
        return self._heads[message.route].begin(message, prompt)

    def _new_head(self, route: Route) -> Head:
        return Head(
            route,
            cost=self._stages.chunk_costs[route],
            fixed_chunk_tokens=self._stages.fixed_chunk_tokens,
            max_rows=self._stages.max_rows,
            prefixes=self._directories.get(route),
            keeps_answers=route == self._stages.copied,
        )

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
        return [action for head in self for action in head.cancel(message.sequence)]

    def answered(self, message: Sampled | StepFailed, now: float) -> list[Action]:
        """A step of one of the heads came back."""
        head = self._heads.get(message.route)
        if head is None:
            raise UnfitMessage(f"no route {message.route} runs from here")
        if isinstance(message, Sampled):
            return head.sampled(message.number, message.tokens, now)
        return head.failed(message.number, message.message)

    def ran(self, step: Step, seconds: float) -> None:
        """This worker's stage of a step took so long."""
        head = self._heads.get(step.route)
        if head is not None:
            head.ran(step, seconds)

    def overdue(self, now: float) -> list[Action]:
        """Steps that should have come back."""
        return [action for head in self for action in head.overdue(now)]
