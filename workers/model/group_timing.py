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
from strategy.cost import StageSpeed
from workers.engine.executor import StageExecutor

_SHORT, _LONG = 16, 64  # tokens in a chunk
_ROWS = 4
_STEPS = 5


class GroupTimer:
    """received: gives what stands in place of what the stage before makes of some tokens; batches: sequences share steps;
    vocabulary_size: ids lie below it; now: a clock in seconds.
    """

    def __init__(
        self,
        route: Route,
        executor: StageExecutor,
        received: Callable[[np.ndarray], object],
        *,
        batches: bool,
        vocabulary_size: int,
        now: Callable[[], float] = time.perf_counter,
    ):
        self._route = route
        self._executor = executor
        self._received = received
        self._rows = _ROWS if batches else 1
        self._vocabulary_size = vocabulary_size
        self._now = now

    def __repr__(self) -> str:
        return f"GroupTimer({self._route})"

    def speed(self, alone: StageSpeed | None, share: float) -> StageSpeed:
        """As of one stage. alone: of layers on one worker, `share` times as many as which a rank has; None where nothing is known."""
        sequences = range(self._rows)
        for sequence in (*sequences, self._rows):
            self._open(sequence)
        short_s = median([self._step([sequence], 0, _SHORT, slot=None) for sequence in sequences])
        long_s = self._step([self._rows], 0, _LONG, slot=None)
        alone_s = [self._step([0], _SHORT + number, 1, slot=0) for number in range(_STEPS)]
        decode = [(1, min(alone_s))]
        if self._rows > 1:
            others = [self._step([*sequences][1:], _SHORT + number, 1, slot=1) for number in range(_STEPS)]
            decode.append((self._rows - 1, min(others)))
        for sequence in (*sequences, self._rows):
            self._executor.close(sequence)
        known = alone or StageSpeed(
            decode=((1, 0.0),), decode_context_s=0.0, chunk=ChunkCost(0.0, 0.0), chunk_context_s=0.0, payload_bytes=0
        )
        return msgspec.structs.replace(
            known,
            decode=tuple(decode),
            decode_context_s=known.decode_context_s * share,
            chunk=ChunkCost.fit([(_SHORT, short_s), (_LONG, long_s)]),
            chunk_context_s=known.chunk_context_s * share,
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
            max_length=_LONG + _SHORT + _STEPS,
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
