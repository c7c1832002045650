"""The head of a route: turns requests into steps, follows their tokens, and reports them.

Owns the token ids of its sequences, their stop conditions and the schedule; hands each step to `run_step` and learns of
its end through `sampled` or `failed`. Knows nothing of sockets or MLX.
"""

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

from cluster.wire import (
    CloseSequence,
    Generate,
    Message,
    OpenSequence,
    PrefillProgress,
    Row,
    SequenceFailed,
    Step,
    Tokens,
    Update,
)
from strategy.chunking import ChunkSize
from strategy.scheduling import NO_SLOT, RowPlan, Schedule, StepPlan

# Prompts longer than this report how far their prefill is.
PROGRESS_FROM_TOKENS = 256
HISTORY_TOKENS = 64
# Stands for an id that the step before is still computing.
NOT_KNOWN_YET = -1


@dataclass
class _Sequence:
    request: Generate
    tokens: list[int]
    prompt_tokens: int

    @property
    def num_generated(self) -> int:
        return len(self.tokens) - self.prompt_tokens

    def finish_reason(self) -> str | None:
        """Why the sequence ends with its newest token, or None."""
        if self.tokens[-1] in self.request.end_tokens:
            return "stop"
        return "length" if self.num_generated >= self.request.max_tokens else None


class Head:
    """The head of one route. `report` goes to the coordinator; `forward` to this worker's own executor and down the
    route, in order.
    """

    def __init__(
        self,
        route: tuple[str, ...],
        *,
        chunk_size: ChunkSize,
        max_rows: int,
        report: Callable[[Message], None],
        forward: Callable[[Message], None],
    ):
        self.route = route
        self._chunk_size = chunk_size
        self._schedule = Schedule(
            num_stages=len(route),
            chunk_tokens=lambda prompt, others: chunk_size.tokens(prompt, others_decode=others),
            max_rows=max_rows,
        )
        self._report = report
        self._forward = forward
        self._sequences: dict[int, _Sequence] = {}
        self._in_flight: dict[int, StepPlan] = {}
        self._num_steps = 0

    def __repr__(self) -> str:
        return f"Head({'>'.join(self.route)}, {len(self._sequences)} sequences, {len(self._in_flight)} in flight)"

    def __len__(self) -> int:
        return len(self._sequences)

    def begin(self, request: Generate, prompt: list[int]) -> None:
        """A new sequence with its prompt ids."""
        self._sequences[request.sequence] = _Sequence(request, prompt, len(prompt))
        self._forward(
            OpenSequence(
                sequence=request.sequence,
                route=self.route,
                cached=request.cached,
                sampling=request.sampling,
                seed=request.seed,
                history=tuple(prompt[-HISTORY_TOKENS:]),
            )
        )
        penalties = (
            request.sampling.repetition_penalty,
            request.sampling.presence_penalty,
            request.sampling.frequency_penalty,
        )
        self._schedule.add(
            request.sequence,
            prompt_tokens=len(prompt),
            cached=request.cached,
            runs_ahead=not any(penalties),  # penalties look at the ids before
        )

    def cancel(self, sequence: int) -> None:
        """Forget a sequence; steps in flight run out. Unknown ones are ignored."""
        if self._sequences.pop(sequence, None) is not None:
            self._schedule.remove(sequence)
            self._forward(CloseSequence(sequence=sequence, route=self.route))

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
                processed, total = row.start + row.count, sequence.prompt_tokens
                self._report(PrefillProgress(sequence=row.sequence, processed=processed, total=total))
        if updates:
            self._report(Tokens(updates=tuple(updates)))

    def _accept(self, number: int, token: int) -> list[Update]:
        sequence = self._sequences.get(number)
        if sequence is None:
            return []
        sequence.tokens.append(token)
        reason = sequence.finish_reason()
        if reason is not None:
            self.cancel(number)
        return [Update(number, (token,), reason)]

    def failed(self, number: int, message: str) -> None:
        """A step could not run: every row of it fails."""
        plan = self._in_flight.pop(number)
        self._schedule.done(plan)
        for row in plan.rows:
            if row.sequence in self._sequences:
                self.cancel(row.sequence)
                self._report(SequenceFailed(sequence=row.sequence, message=message))
