"""The head of a route: turns requests into steps, follows their tokens, and says what is to be done.

Owns the token ids of its sequences, their stop conditions, the schedule and what is in flight. Each method is an event and
returns the actions that it asks for, to be performed in order; `now` is told. Knows nothing of sockets, MLX or the clock.
An event that does not fit what the head knows raises `UnfitMessage` and changes nothing.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from protocol.messages import (
    CloseSequence,
    DropPrefix,
    Generate,
    KeepPrefix,
    OpenSequence,
    PrefillProgress,
    Reused,
    Row,
    SequenceFailed,
    Step,
    StepOverdue,
    Tokens,
    Update,
)
from protocol.values import Route
from strategy.chunking import ChunkCost, ChunkSize
from strategy.prefix import BLOCK_TOKENS, NO_MATCH, Key, Match, PrefixDirectory
from strategy.scheduling import RowPlan, Schedule, StepPlan
from workers.engine.actions import Action, Forward, Launch, Report
from workers.engine.fitness import UnfitMessage
from workers.engine.step_kind import StepKind, kind_of
from workers.engine.usual_times import UsualTimes

# Prompts longer than this report how far their prefill is.
PROGRESS_FROM_TOKENS = 256
HISTORY_TOKENS = 64
# How often the blocks of a prompt on its way are kept.
KEEP_EVERY_TOKENS = 4 * BLOCK_TOKENS


@dataclass
class _Generation:
    request: Generate
    tokens: list[int]
    prompt_tokens: int
    match: Match

    @property
    def num_generated(self) -> int:
        return len(self.tokens) - self.prompt_tokens

    def finish_reason(self) -> str | None:
        """Why the sequence ends with its newest token, or None."""
        if self.tokens[-1] in self.request.end_tokens:
            return "stop"
        return "length" if self.num_generated >= self.request.max_tokens else None


@dataclass
class _InFlight:
    """A step that has not come back. limit_s: when it is overdue, those in front of it included."""

    plan: StepPlan
    kind: StepKind
    num_tokens: int
    launched_at: float
    limit_s: float
    is_reported: bool = False


class Head:
    """The head of one route. cost: of a chunk on its own stage; prefixes: None where nothing is reused; keeps_answers: what
    is kept of a sequence grows with its answer, not only at the end, since somebody holds copies of it.

    On the route a sequence has a number of its own, since one that lost its prefix begins anew under another.
    """

    def __init__(
        self,
        route: Route,
        *,
        cost: ChunkCost,
        fixed_chunk_tokens: int | None,
        max_rows: int,
        prefixes: PrefixDirectory | None,
        keeps_answers: bool = False,
    ):
        self.route = route
        self._chunk_size = ChunkSize(num_stages=len(route), cost=cost, fixed_tokens=fixed_chunk_tokens)
        self._schedule = Schedule(
            num_stages=len(route),
            chunk_tokens=lambda prompt, done, decoding: self._chunk_size.tokens(prompt, done, num_decoding=decoding),
            max_rows=max_rows,
        )
        self._usual = UsualTimes(cost, num_stages=len(route))
        self._prefixes = prefixes
        self._keeps_answers = keeps_answers
        self._generations: dict[int, _Generation] = {}
        self._numbers: dict[int, int] = {}  # the coordinator's number to the route's
        self._num_sequences = 0
        self._in_flight: dict[int, _InFlight] = {}  # oldest first
        self._num_steps = 0

    def __repr__(self) -> str:
        return f"Head({self.route}, {len(self)} sequences, {self.num_in_flight} in flight)"

    def __len__(self) -> int:
        return len(self._generations)

    @property
    def num_in_flight(self) -> int:
        """Steps that have not come back."""
        return len(self._in_flight)

    # --- sequences

    def begin(self, request: Generate, prompt: list[int]) -> list[Action]:
        """A new sequence with its prompt ids."""
        if request.sequence in self._numbers:
            raise UnfitMessage(f"sequence {request.sequence} is already there")
        match = NO_MATCH
        if self._prefixes is not None and request.cached:
            match = self._prefixes.match(prompt, request.scope)
        opening = self._open(request, prompt, match)
        if not match.num_tokens:
            return opening
        return [Report(Reused(sequence=request.sequence, num_tokens=match.num_tokens)), *opening]

    def _open(self, request: Generate, prompt: list[int], match: Match) -> list[Action]:
        self._num_sequences += 1
        number = self._num_sequences
        self._numbers[request.sequence] = number
        self._generations[number] = _Generation(request, prompt, len(prompt), match)
        sampling = request.sampling
        opening = OpenSequence(
            sequence=number,
            route=self.route,
            cached=request.cached,
            sampling=sampling,
            seed=request.seed,
            history=tuple(prompt[-HISTORY_TOKENS:]),
            max_length=len(prompt) + request.max_tokens,
        )
        penalties = (sampling.repetition_penalty, sampling.presence_penalty, sampling.frequency_penalty)
        self._schedule.add(
            number,
            prompt_tokens=len(prompt),
            cached=request.cached,
            client=request.client,
            computed_tokens=match.num_tokens,
            runs_ahead=not any(penalties),  # penalties look at the ids before
        )
        return [Forward(opening, match.keys)]

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
        num_computed = self._schedule.remove(number)
        actions: list[Action] = []
        if self._prefixes is not None:
            self._prefixes.release(generation.match)
            if keep and (num_computed <= len(generation.tokens) or not self._prefixes.snapshots):
                actions += self._keep(number, generation, num_computed, ended=True)
        return [*actions, Forward(CloseSequence(sequence=number, route=self.route))]

    # --- what is kept of them

    def _keep(self, number: int, generation: _Generation, num_tokens: int, *, ended: bool) -> list[Action]:
        """Have the stages keep the sequence's first `num_tokens`, all of which are computed, for later ones."""
        if self._prefixes is None or not generation.request.cached:
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
        self._num_steps += 1
        step = Step(
            number=self._num_steps,
            route=self.route,
            slot=plan.slot,
            cached=plan.cached,
            rows=tuple(Row(row.sequence, row.start, row.sample) for row in plan.rows),
            num_tokens=plan.rows[0].count,
        )
        kind = kind_of(step)
        limit_s = self._usual.limit_s(kind, step.num_tokens)
        for ahead in self._in_flight.values():
            limit_s = max(limit_s, ahead.limit_s)
        self._in_flight[step.number] = _InFlight(plan, kind, step.num_tokens, now, limit_s)
        return Launch(step, self._ids(plan))

    def _ids(self, plan: StepPlan) -> np.ndarray | None:
        ids = [self._known_ids(row) for row in plan.rows]
        return np.array(ids, dtype=np.int32) if ids[0] else None

    def _known_ids(self, row: RowPlan) -> list[int]:
        """None are known yet in a slot that runs ahead: no row's then."""
        return self._generations[row.sequence].tokens[row.start : row.start + row.count]

    def launched(self, step: Step) -> list[Action]:
        """A step of this head is on its way. Behind a prompt's chunks its prefix is kept, for others to share.

        Some blocks at a time: kept all at once, a long prompt would stop everyone for a while. A snapshot, which is a
        copy of everything before it, only behind the last chunk.
        """
        if self._prefixes is None:
            return []
        match kind_of(step):
            case StepKind.PREFILL:
                return self._keep_prompt(step, self._prefixes)
            case StepKind.DECODE if self._keeps_answers and not self._prefixes.snapshots:
                return [action for row in step.rows for action in self._keep_block(row)]
        return []

    def _keep_block(self, row: Row) -> list[Action]:
        """Behind the last token of a block."""
        generation = self._generations.get(row.sequence)
        if generation is None or (row.position + 1) % BLOCK_TOKENS:
            return []
        return self._keep(row.sequence, generation, row.position + 1, ended=False)

    def _keep_prompt(self, step: Step, prefixes: PrefixDirectory) -> list[Action]:
        row = step.rows[0]
        generation = self._generations.get(row.sequence)
        end = row.position + step.num_tokens
        if generation is None:
            return []
        is_due = not prefixes.snapshots and end // KEEP_EVERY_TOKENS > row.position // KEEP_EVERY_TOKENS
        if is_due or end == generation.prompt_tokens - 1:
            return self._keep(row.sequence, generation, end, ended=False)
        return []

    def ran(self, step: Step, seconds: float) -> None:
        """A step of this head took `seconds` on this worker's own stage."""
        match kind_of(step):
            case StepKind.DECODE:
                self._chunk_size.observe_decode(seconds)
            case StepKind.PREFILL:
                self._chunk_size.observe_chunk(step.rows[0].position, step.num_tokens, seconds)

    def sampled(self, number: int, tokens: tuple[int, ...], now: float) -> list[Action]:
        """A step came back with the ids of its sampling rows."""
        num_wanted = sum(row.sample for row in self._flying(number).plan.rows)
        if len(tokens) != num_wanted:
            return self.failed(
                number, f"{self.route.last} sampled {len(tokens)} tokens where {num_wanted} were asked for"
            )
        done = self._landed(number)
        self._usual.observe(done.kind, done.num_tokens, now - done.launched_at)
        actions: list[Action] = []
        updates: list[Update] = []
        ids = iter(tokens)
        for row in done.plan.rows:
            if row.sample:
                actions += self._accept(row.sequence, next(ids), updates)
            else:
                actions += self._progress(row)
        return [*actions, Report(Tokens(updates=tuple(updates)))] if updates else actions

    def _accept(self, number: int, token: int, updates: list[Update]) -> list[Action]:
        generation = self._generations.get(number)
        if generation is None:
            return []
        generation.tokens.append(token)
        reason = generation.finish_reason()
        updates.append(Update(generation.request.sequence, (token,), reason))
        return [] if reason is None else self._close(number, keep=True)

    def _progress(self, row: RowPlan) -> list[Action]:
        generation = self._generations.get(row.sequence)
        if generation is None or generation.prompt_tokens <= PROGRESS_FROM_TOKENS:
            return []
        processed, total = row.start + row.count, generation.prompt_tokens
        return [Report(PrefillProgress(sequence=generation.request.sequence, processed=processed, total=total))]

    def failed(self, number: int, message: str) -> list[Action]:
        """A step could not run: every row of it fails, or begins anew where a reused prefix may be the cause."""
        actions: list[Action] = []
        for row in self._landed(number).plan.rows:
            generation = self._generations.get(row.sequence)
            if generation is not None:
                actions += self._close(row.sequence, keep=False)
                actions += self._begin_anew_or_fail(generation, message)
        return actions

    def _begin_anew_or_fail(self, generation: _Generation, message: str) -> list[Action]:
        request, match = generation.request, generation.match
        if self._prefixes is None or not match.keys or generation.num_generated:
            return [Report(SequenceFailed(sequence=request.sequence, message=message))]
        self._prefixes.forget(match.keys)
        dropped = self._drop(match.keys)
        reused = Report(Reused(sequence=request.sequence, num_tokens=0))
        return [*dropped, reused, *self._open(request, generation.tokens, NO_MATCH)]

    def overdue(self, now: float) -> list[Action]:
        """Steps that should have come back; each is told once."""
        late = [
            (number, step)
            for number, step in self._in_flight.items()
            if now - step.launched_at > step.limit_s and not step.is_reported
        ]
        for _, step in late:
            step.is_reported = True
        return [
            Report(StepOverdue(worker=self.route.head, route=self.route, number=number, seconds=now - step.launched_at))
            for number, step in late
        ]

    def _flying(self, number: int) -> _InFlight:
        if number not in self._in_flight:
            raise UnfitMessage(f"step {number} of {self.route} is not in flight")
        return self._in_flight[number]

    def _landed(self, number: int) -> _InFlight:
        done = self._flying(number)
        del self._in_flight[number]
        self._schedule.done(done.plan)
        return done
