"""What a head guesses of its sequences: how much, by whom, and what became of it.

Decides with `strategy.drafting`; the guesses come from who is told to make them. Knows the tokens of the sequences, no sockets
and no clock.
"""

import logging
from collections.abc import Sequence
from dataclasses import dataclass, field
from itertools import takewhile
from typing import NamedTuple, Self

from strategy.draft_costs import ChainCosts, ReadingCosts, StepCosts
from strategy.drafting import ROUTE_FADING, Acceptances, DraftLength, DraftPatience
from strategy.step_plan import RowPlan
from workers.drafting.guessers import Guesser, Guessers, Nobody
from workers.engine.generation import Generation
from workers.engine.step_under_way import StepUnderWay

log = logging.getLogger(__name__)

# A step that goes on has so many tokens at least.
_LEAST_FURTHER = 2
# An answer is thought to have so many more tokens, or as many again as it has, if it may.
_LIKELY_TOKENS = 256


class Verified(NamedTuple):
    """What became of guesses: how many, how many of them came true, and whether what goes on behind them counts."""

    num_guesses: int = 0
    num_right: int = 0
    is_kept: bool = True


class _Seen(NamedTuple):
    """Of all sequences for which is guessed in one way."""

    costs: StepCosts
    acceptance: Acceptances
    patience: DraftPatience
    chain: ChainCosts
    reading: ReadingCosts

    @classmethod
    def nothing(cls) -> Self:
        return cls(costs := StepCosts(), Acceptances(ROUTE_FADING), DraftPatience(), ChainCosts(costs), ReadingCosts())


@dataclass
class _GuessedSequence:
    """guesses: that are on their way, behind its tokens. due: how many more are wanted, for so many tokens of it and so many that are
    due; is_over: nothing is guessed behind those. was_asked: before the step under way; goes_on: the next step to come
    back is one that went on.
    """

    generation: Generation
    guesser: Guesser
    length: DraftLength
    guesses: list[int] = field(default_factory=list)
    guessed_at: int = 0
    due: tuple[tuple[int, int], int] = (0, 0), 0
    is_over: bool = False
    was_asked: bool = False
    goes_on: bool = False


class Speculation:
    """Of the head of one route; as the schedule asks it, see `strategy.step_plan.Guesses`. guessers: None for nobody; forgets: as there; has_stages:
    several, so that one can go on while others verify.
    """

    def __init__(self, guessers: Guessers | None, *, forgets: bool = False, has_stages: bool = False):
        self.forgets = forgets
        self._goes_on = forgets and has_stages
        self._guessers = guessers
        self._sequences: dict[int, _GuessedSequence] = {}
        self._landed_at = 0.0
        self._seen: dict[tuple[str, bool], _Seen] = {}

    def __repr__(self) -> str:
        return f"Speculation({self._guessers}, {len(self._sequences)} sequences)"

    def begin(self, number: int, generation: Generation) -> None:
        """A sequence of the head. For what is only read nothing is guessed."""
        request = generation.request
        if self._guessers is None or generation.reads_only is not None:
            return
        guesser = self._guessers.of(request)
        if guesser is not None:
            key = guesser.way, request.cached
            seen = self._seen.setdefault(key, _Seen.nothing())
            length = DraftLength(
                seen.costs,
                seen.acceptance,
                seen.patience if guesser.is_model else None,
                grows=not request.cached,
                chain=seen.chain if self._goes_on and request.cached else None,
                reading=seen.reading,
            )
            self._sequences[number] = _GuessedSequence(generation, guesser, length)

    def end(self, number: int) -> None:
        """Unknown ones are ignored."""
        self._sequences.pop(number, None)

    def is_due(self, sequence: int, num_due: int) -> bool:
        """Whether to guess what is behind the known tokens of a sequence, of which a step has so many to compute."""
        state = self._sequences.get(sequence)
        return state is not None and self._num_wanted(state, num_due) > 0

    def guess(self, sequence: int, num_due: int) -> int:
        """Do so; returns how many ids were guessed."""
        state = self._sequences[sequence]
        state.was_asked = True
        count = self._num_wanted(state, num_due)
        state.guesses = self._asked(state, count)
        state.is_over = len(state.guesses) < count
        return len(state.guesses)

    def go_on(self, sequence: int) -> int:
        """Guess what comes behind the guesses that are on their way, where that pays; returns how many ids were guessed."""
        state = self._sequences[sequence]
        if state.is_over:
            return 0
        count = self._num_further(state)
        found = self._asked(state, count, state.guesses) if count else []
        state.is_over = not count or len(found) < count
        if len(found) < _LEAST_FURTHER:
            return 0
        state.guesses += found
        return len(found)

    def _asked(self, state: _GuessedSequence, count: int, ahead: Sequence[int] = ()) -> list[int]:
        """What is guessed; who fails at it is asked no more for this sequence, which goes on without."""
        try:
            return state.guesser.source.guess(state.generation.tokens, count, ahead)
        except Exception:  # the boundary of somebody else's model, without which there is an answer
            log.exception("an answer goes on without guesses")
            state.guesser = state.guesser._replace(source=Nobody())
            return []

    def _num_further(self, state: _GuessedSequence) -> int:
        """Behind an end nothing comes."""
        generation, num_guesses = state.generation, len(state.guesses)
        most = generation.request.max_tokens - generation.num_generated - num_guesses - 1
        if most < _LEAST_FURTHER or not set(generation.request.end_tokens).isdisjoint(state.guesses):
            return 0
        return state.length.further(len(generation.tokens) + num_guesses, most)

    def behind(self, row: RowPlan) -> Sequence[int]:
        """The guesses in a step's row, which has known tokens before them or none."""
        state = self._sequences.get(row.sequence)
        if state is None:
            return ()
        num_known = len(state.generation.tokens)
        return state.guesses[max(row.start - num_known, 0) : max(row.start + row.count - num_known, 0)]

    def landed(self, step: StepUnderWay, found: Sequence[Sequence[int]], now: float, *, is_alone: bool) -> Verified:
        """A step came back with these ids of each row. is_alone: the route has no other sequence, so that it took what it takes.

        Returns what became of its guesses; who has some is alone in a step.
        """
        begun_at, self._landed_at = max(step.launched_at, self._landed_at), now
        verified = Verified()
        for row, ids in zip(step.plan.rows, found, strict=True):
            state = self._sequences.get(row.sequence)
            if state is not None and row.num_sampled:
                verified = _verified(row, ids, state.guesses)
                self._learn(state, row, verified, now - begun_at if is_alone else None)
                state.guesses = state.guesses[len(ids) :] if verified.is_kept else []
        return verified

    def _learn(self, state: _GuessedSequence, row: RowPlan, verified: Verified, seconds: float | None) -> None:
        num_known, num_guesses = row.start + row.count - row.num_sampled + 1, row.num_sampled - 1
        num_behind = len(state.guesses) - num_guesses
        num_due = num_known - row.start if state.generation.request.cached else 1
        if state.goes_on or num_behind:
            num_verified = num_guesses + min(num_behind, 1)
            is_behind, num_unread = state.goes_on, num_known - state.guessed_at
            state.length.went_on(
                row.count, num_verified, verified.num_right, seconds, is_behind=is_behind, num_unread=num_unread
            )
        elif state.was_asked and not num_guesses:
            state.length.read_on(num_known, num_due, seconds)
        else:
            num_unread = num_known - state.guessed_at if num_guesses else 0
            state.length.stepped(num_known, num_due, num_guesses, verified.num_right, seconds, num_unread)
        state.was_asked = False
        state.goes_on = num_behind > 0 and verified.is_kept
        if num_guesses:
            state.guessed_at = num_known

    def _num_wanted(self, state: _GuessedSequence, num_due: int) -> int:
        generation = state.generation
        now = len(generation.tokens), num_due
        if state.due[0] != now:
            support = state.guesser.source.expects(generation.tokens)
            state.length.expects(support or 1)
            state.due = now, self._best(state, num_due) if support else 0
        return state.due[1]

    def _best(self, state: _GuessedSequence, num_due: int) -> int:
        """The first token of a prompt that was read comes as soon as it can."""
        generation, num_known = state.generation, len(state.generation.tokens)
        request = generation.request
        most = request.max_tokens - generation.num_generated - 1
        if most <= 0 or generation.tells_prompt or (request.cached and not generation.num_generated):
            return 0
        num_unread = num_known - state.guessed_at if state.guesser.is_model else 0
        num_ahead = min(most + 1, max(_LIKELY_TOKENS, generation.num_generated))
        return state.length.best(num_known, num_due, most, num_unread, num_ahead)


def _verified(row: RowPlan, found: Sequence[int], guesses: Sequence[int]) -> Verified:
    """guesses: on their way behind the known tokens, of which the row has the first; where others follow, the last of `found` is one, too."""
    num_right = sum(1 for _ in takewhile(lambda pair: pair[0] == pair[1], zip(found, guesses, strict=False)))
    is_kept = num_right == len(found)
    if is_kept:
        return Verified(num_right, num_right)
    return Verified(len(guesses), num_right, is_kept=len(guesses) < row.num_sampled == len(found))
