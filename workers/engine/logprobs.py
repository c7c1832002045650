"""How likely tokens are where they stand: what is told of sampled tokens and of the tokens of prompts.

By logits as mlx-lm's `generate_step` gives them: after penalties and biases, before temperature, normalized in float32. All
is lazy and belongs to the step whose logits it is made of, until it is read.
"""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import mlx.core as mx
import numpy as np

from protocol.messages import Step
from protocol.values import NO_CHANCE, Sampling, TokenLogprobs
from workers.engine.sampling import SamplingPlace

# Of so many rows at once what is made of their logits takes memory: a few hundred MB for the largest vocabularies.
_ROWS_AT_ONCE = 256


@dataclass(frozen=True)
class Unread:
    """Of N tokens their log probabilities (N,), and of the K likeliest ids at each place theirs, both (N, K) and in no order.

    num_top: how many of these are wanted, by place.
    """

    chosen: mx.array
    ids: mx.array
    top: mx.array
    num_top: tuple[int, ...]

    @property
    def arrays(self) -> tuple[mx.array, ...]:
        return self.chosen, self.ids, self.top

    def read(self) -> tuple[TokenLogprobs, ...]:
        """Waits for them."""
        chosen, ids, top = (np.array(array) for array in self.arrays)
        chosen = np.where(np.isfinite(chosen), chosen, NO_CHANCE)
        return tuple(
            TokenLogprobs(logprob, _best(*place))
            for logprob, *place in zip(chosen.tolist(), ids, top, self.num_top, strict=True)
        )


def _best(ids: "np.ndarray", logprobs: "np.ndarray", count: int) -> tuple[tuple[int, float], ...]:
    order = [index for index in np.lexsort((ids, -logprobs)) if np.isfinite(logprobs[index])]
    return tuple((int(ids[index]), float(logprobs[index])) for index in order[:count])


def of_sampled(places: Sequence[SamplingPlace], logits: mx.array, sampled: mx.array) -> Unread | None:
    """Of the ids (B,) that were sampled from logits (B, V), for the places that want it; None where none does."""
    wanted = [row for row, place in enumerate(places) if place.sampler.num_logprobs is not None]
    if not wanted:
        return None
    rows = [places[row].sampler.processed(logits[row : row + 1], places[row].ahead) for row in wanted]
    num_top = [places[row].sampler.num_logprobs or 0 for row in wanted]
    return _unread([(mx.concatenate(rows), sampled[mx.array(wanted)])], num_top)


class _PromptScoring:
    """Of the prompt of one sequence, step by step. num_top: of how many of the likeliest ids at each place.

    last: what the last token of a step says of the first one of the next, (1, V).
    """

    def __init__(self, num_top: int):
        self._num_top = num_top
        self.last: mx.array | None = None

    def score(self, tokens: mx.array, logits: mx.array) -> Unread | None:
        """Of the next tokens (n,) of the prompt, by the logits (n, V) behind each; of its very first there is nothing."""
        pieces = [] if self.last is None else [(self.last, tokens[:1])]
        num_tokens = tokens.shape[0]
        for start in range(0, num_tokens - 1, _ROWS_AT_ONCE):
            end = min(start + _ROWS_AT_ONCE, num_tokens - 1)
            pieces.append((logits[start:end], tokens[start + 1 : end + 1]))
        self.last = _normalized(logits[-1:])
        return _unread(pieces, [self._num_top] * sum(ids.shape[0] for _, ids in pieces)) if pieces else None


class StepLogprobs(NamedTuple):
    """What a step tells of its tokens. sampled: of those places that want it; scored: by row of the step, of the
    tokens of prompts; kept: for the next step.
    """

    sampled: Unread | None = None
    scored: tuple[Unread | None, ...] = ()
    kept: tuple[mx.array, ...] = ()

    @property
    def arrays(self) -> list[mx.array]:
        """To be computed with the step: with what is kept goes what it is made of."""
        unread = [each for each in (self.sampled, *self.scored) if each is not None]
        return [*self.kept, *(array for each in unread for array in each.arrays)]

    def read_sampled(self, places: Sequence[SamplingPlace]) -> tuple[TokenLogprobs | None, ...]:
        """For each of the places that were sampled at, None for those that do not want it; none at all where none does."""
        if self.sampled is None:
            return ()
        found = iter(self.sampled.read())
        return tuple(None if place.sampler.num_logprobs is None else next(found) for place in places)

    def read_scored(self) -> tuple[tuple[TokenLogprobs, ...], ...]:
        """For each row of the step, of the tokens of its prompt; none at all where no row has such."""
        return tuple(() if each is None else each.read() for each in self.scored)


class PromptScores:
    """The sequences whose prompts' own tokens are told of, until each prompt is read."""

    def __init__(self) -> None:
        self._sequences: dict[int, _PromptScoring] = {}

    def __repr__(self) -> str:
        return f"PromptScores({list(self._sequences)})"

    def open(self, sequence: int, sampling: Sampling) -> None:
        self._sequences[sequence] = _PromptScoring(sampling.logprobs or 0)

    def close(self, sequence: int) -> None:
        """Unknown ones are ignored."""
        self._sequences.pop(sequence, None)

    def clear(self) -> None:
        self._sequences.clear()

    def concern(self, step: Step) -> bool:
        """Whether a step tells of tokens of prompts, for which its logits are wanted at every position."""
        return bool(self._sequences) and any(row.sequence in self._sequences for row in step.rows)

    def of(self, step: Step, tokens: mx.array, logits: mx.array) -> StepLogprobs:
        """What a step of tokens (rows, n) with logits (rows, n, V) tells."""
        if not self.concern(step):
            return StepLogprobs()
        scored: list[Unread | None] = []
        kept: list[mx.array] = []
        for index, row in enumerate(step.rows):
            scoring = self._sequences.get(row.sequence)
            scored.append(None if scoring is None else scoring.score(tokens[index], logits[index]))
            if row.num_sampled:
                self.close(row.sequence)
            elif scoring is not None and scoring.last is not None:
                kept.append(scoring.last)
        return StepLogprobs(scored=tuple(scored), kept=tuple(kept))


def _normalized(logits: mx.array) -> mx.array:
    logits = logits.astype(mx.float32)
    return logits - mx.logsumexp(logits, axis=-1, keepdims=True)


def _unread(pieces: Iterable[tuple[mx.array, mx.array]], num_top: Sequence[int]) -> Unread:
    """Of ids (n,) by logits (n, V), piece by piece."""
    chosen, likeliest, top = [], [], []
    for logits, ids in pieces:
        logprobs = _normalized(logits)
        chosen.append(mx.take_along_axis(logprobs, ids[:, None], axis=-1)[:, 0])
        count = min(max(num_top), logits.shape[-1])
        order = mx.argpartition(-logprobs, kth=count - 1, axis=-1)[:, :count] if count else ids[:, None][:, :0]
        likeliest.append(order)
        top.append(mx.take_along_axis(logprobs, order, axis=-1))
    return Unread(mx.concatenate(chosen), mx.concatenate(likeliest), mx.concatenate(top), tuple(num_top))
