"""The head of a route: turns requests into steps, follows their tokens, and reports them.

Owns the token ids of its sequences, their stop conditions and the schedule; hands each step to `run_step` and learns of
its end through `sampled` or `failed`. Knows nothing of sockets or MLX.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Protocol

import numpy as np

from protocol.messages import (
    CloseSequence,
    DropPrefix,
    Generate,
    KeepPrefix,
    Message,
    OpenSequence,
    PrefillProgress,
    Reused,
    Row,
    SequenceFailed,
    Step,
    Tokens,
    Update,
)
from protocol.values import Route
from strategy.chunking import ChunkSize
from strategy.prefix import BLOCK_TOKENS, NO_MATCH, Key, Match, PrefixDirectory
from strategy.scheduling import NO_SLOT, RowPlan, Schedule, StepPlan

# Prompts longer than this report how far their prefill is.
PROGRESS_FROM_TOKENS = 256
HISTORY_TOKENS = 64
# How often the blocks of a prompt on its way are kept.
KEEP_EVERY_TOKENS = 4 * BLOCK_TOKENS
# Stands for an id that the step before is still computing.
NOT_KNOWN_YET = -1


@dataclass
class _Sequence:
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


class Forward(Protocol):
    """Takes a message, with the keys of prefixes that it speaks of, to this worker's executor and down the route."""

    def __call__(self, message: Message, keys: tuple[Key, ...] = ()) -> None: ...


class Head:
    """The head of one route. `report` goes to the coordinator.

    On the route a sequence has a number of its own, since one that lost its prefix begins anew under another.
    """

    def __init__(
        self,
        route: Route,
        *,
        chunk_size: ChunkSize,
        max_rows: int,
        prefixes: PrefixDirectory | None,
        report: Callable[[Message], None],
        forward: Forward,
    ):
        self.route = route
        self._chunk_size = chunk_size
        self._schedule = Schedule(
            num_stages=len(route),
            chunk_tokens=lambda prompt, done, decoding: chunk_size.tokens(prompt, done, num_decoding=decoding),
            max_rows=max_rows,
        )
        self._prefixes = prefixes
        self._report = report
        self._forward = forward
        self._sequences: dict[int, _Sequence] = {}
        self._numbers: dict[int, int] = {}  # the coordinator's number to the route's
        self._num_sequences = 0
        self._in_flight: dict[int, StepPlan] = {}
        self._num_steps = 0

    def __repr__(self) -> str:
        return f"Head({self.route}, {len(self._sequences)} sequences, {len(self._in_flight)} in flight)"

    def __len__(self) -> int:
        return len(self._sequences)

    def begin(self, request: Generate, prompt: list[int]) -> None:
        """A new sequence with its prompt ids."""
        match = NO_MATCH
        if self._prefixes is not None and request.cached:
            match = self._prefixes.match(prompt, request.scope)
        if match.num_tokens:
            self._report(Reused(sequence=request.sequence, num_tokens=match.num_tokens))
        self._open(request, prompt, match)

    def _open(self, request: Generate, prompt: list[int], match: Match) -> None:
        self._num_sequences += 1
        number = self._num_sequences
        self._numbers[request.sequence] = number
        self._sequences[number] = _Sequence(request, prompt, len(prompt), match)
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
        self._forward(opening, match.keys)
        penalties = (sampling.repetition_penalty, sampling.presence_penalty, sampling.frequency_penalty)
        self._schedule.add(
            number,
            prompt_tokens=len(prompt),
            cached=request.cached,
            computed_tokens=match.num_tokens,
            runs_ahead=not any(penalties),  # penalties look at the ids before
        )

    def cancel(self, sequence: int) -> None:
        """Forget a sequence by the coordinator's number; steps in flight run out. Unknown ones are ignored."""
        if (number := self._numbers.get(sequence)) is not None:
            self._close(number, keep=True)

    def _close(self, number: int, *, keep: bool) -> None:
        sequence = self._sequences.pop(number)
        del self._numbers[sequence.request.sequence]
        num_computed = self._schedule.remove(number)
        if self._prefixes is not None:
            self._prefixes.release(sequence.match)
            if keep and (num_computed <= len(sequence.tokens) or not self._prefixes.snapshots):
                self._keep(number, sequence, num_computed, ended=True)
        self._forward(CloseSequence(sequence=number, route=self.route))

    def _keep(self, number: int, sequence: _Sequence, num_tokens: int, *, ended: bool) -> None:
        """Have the stages keep the sequence's first `num_tokens`, all of which are computed, for later ones."""
        if self._prefixes is None or not sequence.request.cached:
            return
        request = sequence.request
        conversation = request.conversation if ended else None
        kept = self._prefixes.keep(sequence.tokens[:num_tokens], request.scope, conversation, tail=ended)
        if kept.parts:
            spans = tuple((start, end) for start, end, _ in kept.parts)
            keeping = KeepPrefix(sequence=number, route=self.route, spans=spans)
            self._forward(keeping, tuple(key for _, _, key in kept.parts))
        self._drop(kept.evicted)

    def _drop(self, keys: Sequence[Key]) -> None:
        if keys:
            self._forward(DropPrefix(route=self.route), tuple(keys))

    def forget_conversation(self, conversation: str) -> None:
        """Give back what only this conversation had."""
        if self._prefixes is not None:
            self._drop(self._prefixes.forget_conversation(conversation))

    def launched(self, step: Step) -> None:
        """A step of this head is on its way. Behind a prompt's chunks its prefix is kept, for others to share.

        Some blocks at a time: kept all at once, a long prompt would stop everyone for a while. A snapshot, which is a
        copy of everything before it, only behind the last chunk.
        """
        if self._prefixes is None or step.slot != NO_SLOT or not step.cached:
            return
        row = step.rows[0]
        sequence = self._sequences.get(row.sequence)
        end = row.position + step.num_tokens
        if sequence is None:
            return
        is_due = not self._prefixes.snapshots and end // KEEP_EVERY_TOKENS > row.position // KEEP_EVERY_TOKENS
        if is_due or end == sequence.prompt_tokens - 1:
            self._keep(row.sequence, sequence, end, ended=False)

    def next_step(self) -> tuple[Step, np.ndarray] | None:
        """The next step with its token ids (rows, N) int32, or None when there is nothing to run now.

        An id may be NOT_KNOWN_YET: the one that the same rows' step before is sampling.
        """
        plan = self._schedule.next()
        if plan is None:
            return None
        self._num_steps += 1
        self._in_flight[self._num_steps] = plan
        ids = [self._ids(row) for row in plan.rows]
        step = Step(
            number=self._num_steps,
            route=self.route,
            slot=plan.slot,
            cached=plan.cached,
            rows=tuple(Row(row.sequence, row.start, row.sample) for row in plan.rows),
            num_tokens=plan.rows[0].count,
        )
        return step, np.array(ids, dtype=np.int32)

    def _ids(self, row: RowPlan) -> list[int]:
        return self._sequences[row.sequence].tokens[row.start : row.start + row.count] or [NOT_KNOWN_YET]

    def ran(self, step: Step, seconds: float) -> None:
        """A step of this head took `seconds` on this worker's own stage."""
        if step.slot != NO_SLOT:
            self._chunk_size.observe_decode(seconds)
        elif step.cached:
            self._chunk_size.observe_chunk(step.rows[0].position, step.num_tokens, seconds)

    def sampled(self, number: int, tokens: tuple[int, ...]) -> None:
        """A step came back with the ids of its sampling rows."""
        plan = self._in_flight.pop(number)
        self._schedule.done(plan)
        updates = []
        ids = iter(tokens)
        for row in plan.rows:
            if row.sample:
                updates += self._accept(row.sequence, next(ids))
            elif (sequence := self._sequences.get(row.sequence)) and sequence.prompt_tokens > PROGRESS_FROM_TOKENS:
                self._report(
                    PrefillProgress(
                        sequence=sequence.request.sequence,
                        processed=row.start + row.count,
                        total=sequence.prompt_tokens,
                    )
                )
        if updates:
            self._report(Tokens(updates=tuple(updates)))

    def _accept(self, number: int, token: int) -> list[Update]:
        sequence = self._sequences.get(number)
        if sequence is None:
            return []
        sequence.tokens.append(token)
        reason = sequence.finish_reason()
        if reason is not None:
            self._close(number, keep=True)
        return [Update(sequence.request.sequence, (token,), reason)]

    def failed(self, number: int, message: str) -> None:
        """A step could not run: every row of it fails, or begins anew where a reused prefix may be the cause."""
        plan = self._in_flight.pop(number)
        self._schedule.done(plan)
        for row in plan.rows:
            sequence = self._sequences.get(row.sequence)
            if sequence is None:
                continue
            self._close(row.sequence, keep=False)
            request, match = sequence.request, sequence.match
            if self._prefixes is not None and match.keys and not sequence.num_generated:
                self._prefixes.forget(match.keys)
                self._drop(match.keys)
                self._report(Reused(sequence=request.sequence, num_tokens=0))
                self._open(request, sequence.tokens, NO_MATCH)
            else:
                self._report(SequenceFailed(sequence=request.sequence, message=message))
