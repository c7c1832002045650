"""The head of a route: turns requests into steps, follows their tokens, and says what is to be done.

Owns the token ids of its sequences, their stop conditions, the schedule and what is in flight. Each method is an event and
returns the actions that it asks for, to be performed in order; `now` is told. Knows nothing of sockets, MLX or the clock.
An event that does not fit what the head knows raises `UnfitMessage` and changes nothing.
"""

from collections.abc import Sequence
from itertools import count
from typing import Any

import numpy as np

from protocol.messages import (
    CloseSequence,
    DropPrefix,
    Embedded,
    Generate,
    KeepPrefix,
    PrefillProgress,
    Reused,
    Row,
    Sampled,
    SequenceFailed,
    Step,
    Tokens,
    Update,
)
from protocol.values import Buffer, Route, TokenLogprobs
from strategy.chunking import ChunkSize
from strategy.prefix import BLOCK_TOKENS, NO_MATCH, Key, Match, PrefixDirectory
from strategy.scheduling import Schedule
from strategy.step_plan import RowPlan, StepPlan
from workers.engine.actions import Action, Forward, Launch, Report
from workers.engine.fitness import UnfitMessage
from workers.engine.generation import Generation, Reading
from workers.engine.scored import misfit_of, prompts_scored
from workers.engine.speculation import Speculation, Verified
from workers.engine.step_kind import StepKind, kind_of
from workers.engine.step_under_way import StepsUnderWay, StepUnderWay
from workers.engine.usual_times import UsualTimes

# Prompts longer than this report how far their prefill is.
PROGRESS_FROM_TOKENS = 256
# How often the blocks of a prompt on its way are kept.
KEEP_EVERY_TOKENS = 4 * BLOCK_TOKENS


class Head:
    """The head of one route. chunk_size: on its own stage; prefixes: None where nothing is reused; keeps_answers: what
    is kept of a sequence grows with its answer, not only at the end, since somebody holds copies of it; speculation: None where no
    next tokens are guessed.

    On the route a sequence has a number of its own, since one that lost its prefix begins anew under another.
    """

    def __init__(
        self,
        route: Route,
        *,
        chunk_size: ChunkSize,
        max_rows: int,
        prefixes: PrefixDirectory | None,
        keeps_answers: bool = False,
        speculation: Speculation | None = None,
    ):
        self.route = route
        self._speculation = speculation or Speculation(None)
        self._chunk_size = chunk_size
        self._schedule = Schedule(
            num_stages=route.num_stages, chunks=chunk_size, max_rows=max_rows, guesses=speculation
        )
        self._steps = StepsUnderWay(route, UsualTimes(chunk_size.cost, num_stages=route.num_stages))
        self._prefixes = prefixes
        self._keeps_answers = keeps_answers
        self._generations: dict[int, Generation] = {}
        self._numbers: dict[int, int] = {}  # the coordinator's number to the route's
        self._num_sequences = 0

    def __repr__(self) -> str:
        return f"Head({self.route}, {len(self)} sequences, {self.num_in_flight} in flight)"

    def __len__(self) -> int:
        return len(self._generations)

    @property
    def num_in_flight(self) -> int:
        """Steps that have not come back."""
        return len(self._steps)

    # --- sequences

    def begin(self, request: Generate, prompt: list[int]) -> list[Action]:
        """A new sequence with its prompt ids."""
        return self.begin_with(self.match(request, prompt), request, prompt)

    def match(self, request: Generate, prompt: list[int]) -> Match:
        """What of a new request's prompt is kept here; held for it until it ends, or until `release`."""
        if request.sequence in self._numbers:
            raise UnfitMessage(f"sequence {request.sequence} is already there")
        if self._prefixes is None or not request.reuses or request.scores_prompt:
            return NO_MATCH
        return self._prefixes.match(prompt, request.scope)

    def release(self, match: Match) -> None:
        """What was matched is not begun with."""
        if self._prefixes is not None:
            self._prefixes.release(match)

    def begin_with(self, match: Match, request: Generate, prompt: list[int]) -> list[Action]:
        """A new sequence that begins with what was matched."""
        return self._reused(request, match.num_tokens) + self._open(Generation(request, prompt, len(prompt), match))

    def begin_handed(self, match: Match, request: Generate, prompt: list[int], handed: Sequence[Any]) -> list[Action]:
        """A new sequence whose prompt, but for its last token, is what was matched and what a pipeline handed over."""
        generation = Generation(request, prompt, len(prompt), match, len(prompt) - 1 - match.num_tokens)
        actions = self._open(generation, handed)
        if self._prefixes is not None and self._prefixes.snapshots:  # blocks can be kept at the end
            actions += self._keep(self._numbers[request.sequence], generation, len(prompt) - 1, ended=False)
        return actions

    def read(self, request: Generate, prompt: list[int], reading: Reading) -> list[Action]:
        """A new sequence that is only read, for a worker that goes on alone; not where that is done sooner by itself."""
        match = self.match(request, prompt)
        num_tokens = len(prompt) - 1
        if num_tokens - match.num_tokens >= len(self.route) * (num_tokens - reading.num_handed):
            self.release(match)
            return [reading.failed(request.sequence, "it has more of it here, and reads the rest sooner than all do")]
        generation = Generation(request, prompt, len(prompt), match, reading=reading)
        actions = self._reused(request, max(match.num_tokens, reading.num_handed)) + self._open(generation)
        if generation.is_read(match.num_tokens):
            number = self._numbers[request.sequence]
            actions += self._hand_over(number, generation, match.num_tokens) + self._close(number, keep=False)
        return actions

    def _reused(self, request: Generate, num_tokens: int) -> list[Action]:
        return [Report(Reused(sequence=request.sequence, num_tokens=num_tokens))] if num_tokens else []

    def _open(self, generation: Generation, handed: Sequence[Any] = ()) -> list[Action]:
        self._num_sequences += 1
        number = self._num_sequences
        request, prompt = generation.request, generation.tokens
        self._numbers[request.sequence] = number
        self._generations[number] = generation
        self._speculation.begin(number, generation)
        opening, sampling = generation.opening(number, self.route), request.sampling
        penalties = (sampling.repetition_penalty, sampling.presence_penalty, sampling.frequency_penalty)
        self._schedule.add(
            number,
            prompt_tokens=len(prompt),
            cached=request.cached,
            client=request.client,
            computed_tokens=opening.computed_tokens,
            runs_ahead=not any(penalties),  # which look at the ids before
            reads_only=generation.reads_only,
        )
        if generation.is_anew or request.scores_prompt:
            self._schedule.read_alone(number)
        return [Forward(opening, generation.match.keys, handed)]

    def cancel(self, sequence: int) -> list[Action]:
        """Forget a sequence by the coordinator's number; steps in flight run out. Unknown ones are ignored."""
        number = self._numbers.get(sequence)
        return [] if number is None else self._close(number, keep=True)

    def abandon(self) -> list[Action]:
        """End every sequence, without a report, and keep what it had computed: requests may come back."""
        return [action for number in list(self._generations) for action in self._close(number, keep=True)]

    def _close(self, number: int, *, keep: bool) -> list[Action]:
        generation = self._generations.pop(number)
        del self._numbers[generation.request.sequence]
        self._speculation.end(number)
        num_computed = self._schedule.remove(number)
        actions: list[Action] = []
        if self._prefixes is not None:
            self._prefixes.release(generation.match)
            if keep and (num_computed <= len(generation.tokens) or not self._prefixes.snapshots):
                actions += self._keep(number, generation, num_computed, ended=True)
        return [*actions, Forward(CloseSequence(sequence=number, route=self.route))]

    # --- what is kept of them

    @property
    def _cuts(self) -> bool:
        """Whether blocks are kept, at any time."""
        return self._prefixes is not None and not self._prefixes.snapshots

    def _keep(self, number: int, generation: Generation, num_tokens: int, *, ended: bool) -> list[Action]:
        """Have the stages keep the sequence's first `num_tokens`, all of which are computed, for later ones."""
        if self._prefixes is None or not generation.request.reuses:
            return []
        request = generation.request
        conversation = request.conversation if ended else None
        kept = self._prefixes.keep(generation.tokens[:num_tokens], request.scope, conversation, tail=ended)
        actions: list[Action] = []
        if kept.parts:
            spans = tuple((start, end) for start, end, _ in kept.parts)
            keeping = KeepPrefix(sequence=number, route=self.route, spans=spans)
            actions.append(Forward(keeping, tuple(key for _, _, key in kept.parts)))
        return actions + self._drop(kept.evicted)

    def _drop(self, keys: Sequence[Key]) -> list[Action]:
        return [Forward(DropPrefix(route=self.route), tuple(keys))] if keys else []

    def forget_conversation(self, conversation: str) -> list[Action]:
        """Give back what only this conversation had."""
        return [] if self._prefixes is None else self._drop(self._prefixes.forget_conversation(conversation))

    # --- steps

    def next_step(self, now: float) -> Launch | None:
        """The next step, in flight from now on, or None when there is nothing to run now."""
        plan = self._schedule.next()
        if plan is None:
            return None
        return Launch(self._steps.begin(plan, now), self._ids(plan))

    def _ids(self, plan: StepPlan) -> np.ndarray | None:
        ids = [self._known_ids(row) for row in plan.rows]
        most = max(map(len, ids))
        return np.array([row + row[-1:] * (most - len(row)) for row in ids], dtype=np.int32) if most else None

    def _known_ids(self, row: RowPlan) -> list[int]:
        """None are known yet in a slot that runs ahead: no row's then."""
        known = self._generations[row.sequence].tokens[row.start : row.start + row.count]
        return [*known, *self._speculation.behind(row)]

    def launched(self, step: Step) -> list[Action]:
        """A step of this head is on its way. Behind a prompt's chunks its prefix is kept, for others to share, and handed
        to whom it is read for.

        Some blocks at a time: kept all at once, a long prompt would stop everyone for a while. A snapshot, which is a
        copy of everything before it, only behind the last chunk.
        """
        match kind_of(step):
            case StepKind.PREFILL:
                return [action for row in step.rows for action in self._chunk_launched(row, step.end_of(row))]
            case StepKind.DECODE if self._keeps_answers and self._cuts:
                return [action for row in step.rows for action in self._keep_block(row, step.num_tokens)]
        return []

    def _keep_block(self, row: Row, num_tokens: int) -> list[Action]:
        """Behind the last token of a block, guesses left out."""
        generation = self._generations.get(row.sequence)
        if generation is None:
            return []
        end = min(row.position + num_tokens - max(row.num_sampled - 1, 0), len(generation.tokens))
        if not generation.enters_block(end):
            return []
        return self._keep(row.sequence, generation, end, ended=False)

    def _chunk_launched(self, row: Row, end: int) -> list[Action]:
        generation = self._generations.get(row.sequence)
        if generation is None:
            return []
        actions = self._hand_over(row.sequence, generation, end)  # somebody waits for it
        is_due = self._cuts and end // KEEP_EVERY_TOKENS > row.position // KEEP_EVERY_TOKENS
        if is_due or generation.is_read(end):
            actions += self._keep(row.sequence, generation, end, ended=False)
        return actions

    def _hand_over(self, number: int, generation: Generation, end: int) -> list[Action]:
        """Have the stages hand over what is new of a prompt that is only read, when it is time."""
        if generation.reading is None:
            return []
        request, is_last = generation.request.sequence, generation.is_read(end)
        message = generation.reading.hand_over(number, self.route, request, end, is_last=is_last)
        return [] if message is None else [Forward(message)]

    def ran(self, step: Step, seconds: float) -> None:
        """A step of this head took `seconds` on this worker's own stage."""
        match kind_of(step):
            case StepKind.DECODE:
                self._chunk_size.observe_decode(seconds)
            case StepKind.PREFILL:
                before = sum(row.position for row in step.rows) // len(step.rows)
                self._chunk_size.observe_chunk(before, step.size, seconds)

    def sampled(self, answer: Sampled, now: float) -> list[Action]:
        """A step came back with the ids of its sampling rows."""
        step = self._steps[answer.number]
        rows, is_stale = step.plan.rows, self._schedule.is_stale(step.plan)
        if (misfit := misfit_of(answer, rows, self._generations, is_stale=is_stale)) is not None:
            return self.failed(answer.number, f"{self.route.last} {misfit}")
        if is_stale:
            self._landed(answer.number)
            return []
        found_in = iter(answer.tokens)
        found = [next(found_in) if row.num_sampled else () for row in rows]
        guesses = self._speculation.landed(step, found, now, is_alone=len(self) == 1)
        self._landed(answer.number, [len(ids) for ids in found], is_kept=guesses.is_kept)
        self._steps.took(step, now)
        actions: list[Action] = [*prompts_scored(answer, rows, self._generations)]
        updates: list[Update] = []
        places, logprobs, reasons = count(), iter(answer.logprobs), dict(answer.failed)
        for row, ids in zip(rows, found, strict=True):
            if row.num_sampled:
                told = [next(logprobs, None) for _ in ids]
                if (why := reasons.get(next(places))) is None:
                    actions += self._accept(row, ids, told, guesses, updates)
                else:
                    actions += self._fail(row.sequence, why)
            else:
                actions += self._progress(row)
        return [*actions, Report(Tokens(updates=tuple(updates)))] if updates else actions

    def _accept(
        self,
        row: RowPlan,
        found: Sequence[int],
        told: Sequence[TokenLogprobs | None],
        guesses: Verified,
        updates: list[Update],
    ) -> list[Action]:
        """What was sampled for a sequence, up to where it ends."""
        generation = self._generations.get(row.sequence)
        if generation is None:
            return []
        taken = generation.take(found)
        reason = generation.finish_reason()
        logprobs = tuple(each for each in told[: len(taken)] if each is not None)
        accepted = min(len(taken), guesses.num_right)
        updates.append(Update(generation.request.sequence, taken, reason, logprobs, guesses.num_guesses, accepted))
        return [] if reason is None else self._close(row.sequence, keep=True)

    def _fail(self, number: int, why: str) -> list[Action]:
        generation = self._generations.get(number)
        if generation is None:
            return []
        failure = SequenceFailed(sequence=generation.request.sequence, message=why)
        return [*self._close(number, keep=True), Report(failure)]

    def pooled(self, number: int, vector: Buffer) -> list[Action]:
        """A sequence became a vector, which ends it; its step comes back behind that."""
        generation = self._generations.get(number)
        if generation is None:
            return []
        if generation.request.pooling is None:
            raise UnfitMessage(f"sequence {number} of {self.route} is no vector")
        return [Report(Embedded(sequence=generation.request.sequence), (vector,)), *self._close(number, keep=False)]

    def _progress(self, row: RowPlan) -> list[Action]:
        generation = self._generations.get(row.sequence)
        if generation is None or generation.num_generated:
            return []
        processed, total = row.start + row.count, generation.prompt_tokens
        actions: list[Action] = []
        if total > PROGRESS_FROM_TOKENS:
            sequence = generation.request.sequence
            actions.append(Report(PrefillProgress(sequence=sequence, processed=processed, total=total)))
        if generation.reading is not None and generation.is_read(processed):
            actions += self._close(row.sequence, keep=True)
        if generation.request.pooling is not None and processed == total:  # it would have ended before
            why = f"{self.route.last} gave no vector of it"
            actions += [Report(SequenceFailed(sequence=generation.request.sequence, message=why))]
            actions += self._close(row.sequence, keep=False)
        return actions

    def failed(self, number: int, message: str) -> list[Action]:
        """A step could not run: every row of it fails, or begins anew where what it began with may be the cause, or another prompt
        that was read with it.
        """
        actions: list[Action] = []
        rows = self._landed(number).plan.rows
        for row in rows:
            generation = self._generations.get(row.sequence)
            if generation is not None:
                actions += self._close(row.sequence, keep=False)
                may_begin_anew = generation.may_begin_anew or (len(rows) > 1 and not row.num_sampled)
                actions += self._begin_anew_or_fail(generation, message, may_begin_anew=may_begin_anew)
        return actions

    def _begin_anew_or_fail(self, generation: Generation, message: str, *, may_begin_anew: bool) -> list[Action]:
        request, dropped = generation.request, []
        if may_begin_anew and self._prefixes is not None:
            self._prefixes.forget(generation.match.keys)
            dropped = self._drop(generation.match.keys)
        if generation.reading is not None:
            return [*dropped, generation.reading.failed(request.sequence, message)]
        if not may_begin_anew:
            return [Report(SequenceFailed(sequence=request.sequence, message=message))]
        reused = Report(Reused(sequence=request.sequence, num_tokens=0))
        anew = Generation(request, generation.tokens, len(generation.tokens), NO_MATCH, is_anew=True)
        return [*dropped, reused, *self._open(anew)]

    def overdue(self, now: float) -> list[Action]:
        """Steps that should have come back; each is told once."""
        return [*self._steps.overdue(now)]

    def _landed(self, number: int, found: Sequence[int] | None = None, *, is_kept: bool = True) -> StepUnderWay:
        done = self._steps.end(number)
        self._schedule.done(done.plan, found, is_kept=is_kept)
        return done
