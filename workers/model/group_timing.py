"""How fast a group runs its steps: on all of its ranks at once, so always the same ones, however long they take.

In the group's own executor, whose sequences are closed behind it. Each stage of a group runs by itself. What tokens before those of a step add is not measured but a rank's
share of what they add to one worker. On the MLX thread, while nothing else runs here.
"""

import time
from collections.abc import Callable
from statistics import median

import msgspec
import numpy as np

from protocol.messages import OpenSequence, Row, Step
from protocol.values import Route, Sampling
from strategy.chunking import ChunkCost
from strategy.stage_speed import StageSpeed
from workers.engine.executor import StageExecutor
from workers.model.chunk_costs import within_s

_CHUNKS = (16, 64, 256)  # tokens; the first is what lies before steps of decoding
_LEAST_LONG = 64
# What a step of so many rows takes is no line through two of them: one row is a product of a matrix and a vector.
_ROWS = (1, 2, 4, 8)
_STEPS = 4


class GroupTimer:
    """received: gives what stands in place of what the stage before makes of some tokens; batches: sequences share steps;
    vocabulary_size: ids lie below it; most_tokens: that have a place in the model for certain; now: a clock in seconds.
    """

    def __init__(
        self,
        route: Route,
        executor: StageExecutor,
        received: Callable[[np.ndarray], object],
        *,
        batches: bool,
        vocabulary_size: int,
        most_tokens: int,
        now: Callable[[], float] = time.perf_counter,
    ):
        self._route = route
        self._executor = executor
        self._received = received
        self._rows = _ROWS if batches else _ROWS[:1]
        self._vocabulary_size = vocabulary_size
        self._chunks = [tokens for tokens in _CHUNKS if tokens <= max(most_tokens, _LEAST_LONG)]
        self._now = now

    def __repr__(self) -> str:
        return f"GroupTimer({self._route})"

    def speed(self, alone: StageSpeed | None, share: float) -> StageSpeed:
        """As of one stage. alone: of layers on one worker, `share` times as many as which a rank has; None where nothing is known."""
        before, *longer = self._chunks
        sequences = range(sum(self._rows))
        of_chunks = range(len(sequences), len(sequences) + len(longer))
        for sequence in (*sequences, *of_chunks):
            self._open(sequence)
        chunks = [(before, median([self._step([sequence], 0, before, slot=None) for sequence in sequences]))]
        for sequence, tokens in zip(of_chunks, longer, strict=True):
            chunks.append((tokens, self._step([sequence], 0, tokens, slot=None)))
        decode, unused = [], list(sequences)
        for slot, rows in enumerate(self._rows):
            batch, unused = unused[:rows], unused[rows:]
            decode.append((rows, min(self._step(batch, before + number, 1, slot=slot) for number in range(_STEPS))))
        for sequence in (*sequences, *of_chunks):
            self._executor.close(sequence)
        known = alone or StageSpeed(
            decode=((1, 0.0),), decode_context_s=0.0, chunk=ChunkCost(0.0, 0.0), chunk_context_s=0.0, payload_bytes=0
        )
        context_s = known.chunk_context_s * share
        alone_s = [(tokens, seconds - within_s(tokens, seconds, context_s)) for tokens, seconds in chunks]
        return msgspec.structs.replace(
            known,
            decode=tuple(decode),
            decode_context_s=known.decode_context_s * share,
            chunk=ChunkCost.fit(alone_s),
            chunk_context_s=context_s,
            payload_bytes=0,
        )

    def _open(self, sequence: int) -> None:
        message = OpenSequence(
            sequence=sequence,
            route=self._route,
            cached=True,
            sampling=Sampling(),
            seed=0,
            history=(),
            max_length=max(self._chunks) + _STEPS,
        )
        self._executor.open(message, ())

    def _step(self, sequences: list[int], position: int, num_tokens: int, *, slot: int | None) -> float:
        ids = (np.arange(len(sequences) * num_tokens) * 7919 + 13) % max(self._vocabulary_size // 2, 1)
        step = Step(
            number=0,
            route=self._route,
            slot=slot,
            cached=True,
            rows=tuple(Row(sequence, position, int(num_tokens == 1)) for sequence in sequences),
            num_tokens=num_tokens,
        )
        tokens = ids.reshape(len(sequences), num_tokens).astype(np.int32)
        received = self._received(tokens)
        begun_at = self._now()
        launched = self._executor.launch(step, tokens, received)
        self._executor.finish(launched)
        return self._now() - begun_at
