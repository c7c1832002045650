"""What a step on the last stage samples, until it is known, and what is said of it then."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import chain, compress
from typing import NamedTuple, Self

import mlx.core as mx
import numpy as np

from protocol.messages import Step
from protocol.values import TokenLogprobs
from workers.engine.grammar import Constraint, allowed_tokens
from workers.engine.logprobs import StepLogprobs
from workers.engine.sampling import SamplingPlace, TokenSampler


class Told(NamedTuple):
    """What the last stage says of a step, as of `Sampled`."""

    tokens: tuple[tuple[int, ...], ...] = ()
    logprobs: tuple[TokenLogprobs | None, ...] = ()
    scored: tuple[tuple[TokenLogprobs, ...], ...] = ()
    failed: tuple[tuple[int, str], ...] = ()


class _SampledRow(NamedTuple):
    """guesses: at what is sampled at its places but the last."""

    sampler: TokenSampler
    guesses: tuple[int, ...]
    position: int

    @property
    def places(self) -> list[SamplingPlace]:
        """Each behind the guesses at those before it."""
        return [
            SamplingPlace(self.sampler, self.position + count, self.guesses[:count])
            for count in range(len(self.guesses) + 1)
        ]

    def accept(self, found: Sequence[int]) -> None:
        """What was sampled is known."""
        if self.guesses and self.sampler.constraint is not None:
            self.sampler.constraint.told(len(found))
        for position, token in enumerate(found, self.position):
            self.sampler.accept(token, position)

    def right_of(self, ids: Sequence[int]) -> tuple[int, ...]:
        """Of what was sampled at its places what stands behind right guesses alone."""
        for count, (guess, found) in enumerate(zip(self.guesses, ids, strict=False), 1):
            if guess != found:
                return tuple(ids[:count])
        return tuple(ids)


class SamplingRows(NamedTuple):
    """The rows of a step that are sampled from, in row order. indices: which of its rows they are."""

    indices: tuple[int, ...]
    rows: tuple[_SampledRow, ...]

    @classmethod
    def of(cls, step: Step, tokens: np.ndarray | None, sampler_of: Callable[[int], TokenSampler]) -> Self:
        """tokens: of the step, None where they are not known yet; sampler_of: by sequence."""
        indices = tuple(index for index, row in enumerate(step.rows) if row.num_sampled)
        found = []
        for index in indices:
            row = step.rows[index]
            num_guesses = row.num_sampled - 1
            guesses = () if tokens is None or not num_guesses else tuple(tokens[index, -num_guesses:].tolist())
            found.append(_SampledRow(sampler_of(row.sequence), guesses, row.position + step.num_tokens - num_guesses))
        return cls(indices, tuple(found))

    @property
    def places(self) -> list[SamplingPlace]:
        """Row after row."""
        return list(chain.from_iterable(row.places for row in self.rows))

    @property
    def constraints(self) -> list[Constraint | None]:
        """By row."""
        return [row.sampler.constraint for row in self.rows]

    def allowed(self, vocabulary_size: int) -> np.ndarray:
        """Truth values (places, V): what may be sampled at each; anything where that has no constraint."""
        if not self.guesses:
            return allowed_tokens(self.constraints, vocabulary_size)
        (row,) = self.rows  # who has guesses is alone
        allowed = np.ones((len(row.places), vocabulary_size), bool)
        if row.sampler.constraint is not None:
            row.sampler.constraint.allow_behind(row.guesses, allowed)
        return allowed

    @property
    def guesses(self) -> bool:
        """Whether any row has some."""
        return any(row.guesses for row in self.rows)

    def taken_from(self, output: mx.array) -> mx.array:
        """Of a step's (rows, n, V) those of the places, (places, V)."""
        if self.guesses:
            parts = [output[at, -len(row.guesses) - 1 :, :] for at, row in zip(self.indices, self.rows, strict=True)]
            return mx.concatenate(parts)
        logits = output[:, -1, :]
        return logits if len(self.indices) == logits.shape[0] else logits[mx.array(self.indices)]


@dataclass
class SampledRows:
    """The tokens of a step that are being sampled: (places,), row after row."""

    tokens: mx.array
    rows: tuple[_SampledRow, ...]
    _ids: tuple[tuple[int, ...], ...] | None = None

    def ids(self) -> tuple[tuple[int, ...], ...]:
        """Waits for those of each row; whoever sampled them knows them then."""
        if self._ids is None:
            ids = iter(np.array(self.tokens).tolist())
            self._ids = tuple(row.right_of([next(ids) for _ in row.places]) for row in self.rows)
            for row, found in zip(self.rows, self._ids, strict=True):
                row.accept(found)
        return self._ids

    def told(self, logprobs: StepLogprobs) -> Told:
        """Waits for it."""
        ids = self.ids()
        of_places = logprobs.read_sampled([place for row in self.rows for place in row.places])
        counts = (
            count < len(found) for row, found in zip(self.rows, ids, strict=True) for count in range(len(row.places))
        )
        constraints = [row.sampler.constraint for row in self.rows]
        failed = tuple((at, why.failure) for at, why in enumerate(constraints) if why is not None and why.failure)
        return Told(ids, tuple(compress(of_places, counts)), logprobs.read_scored(), failed)
