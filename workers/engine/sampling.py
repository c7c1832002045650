"""From logits to the next token of one sequence, by mlx-lm's samplers and logits processors.

The PRNG key of a token is derived from (seed, position), so that a resumed or re-batched request samples what it would
have sampled alone.
"""

from collections.abc import Sequence
from typing import NamedTuple

import mlx.core as mx
from mlx_lm.sample_utils import Sampler, make_logits_processors, make_sampler

from protocol.values import Sampling
from workers.engine.grammar import Constraint

# How far back penalties look: mlx-lm's own default.
PENALTY_CONTEXT_TOKENS = 20


class TokenSampler:
    """Samples the tokens of one sequence in order; remembers the recent ones for penalties. constraint: what they may be."""

    def __init__(self, sampling: Sampling, seed: int, history: tuple[int, ...], constraint: Constraint | None = None):
        self.constraint = constraint
        self._sampling = sampling
        self._seed = seed
        self._history = list(history[-PENALTY_CONTEXT_TOKENS:])
        self._length: int | None = None  # of prompt and answer, once it is known
        self._processors = make_logits_processors(
            logit_bias=sampling.logit_bias,
            repetition_penalty=sampling.repetition_penalty,
            repetition_context_size=PENALTY_CONTEXT_TOKENS,
            presence_penalty=sampling.presence_penalty,
            presence_context_size=PENALTY_CONTEXT_TOKENS,
            frequency_penalty=sampling.frequency_penalty,
            frequency_context_size=PENALTY_CONTEXT_TOKENS,
        )
        self._sampler: Sampler | None = None

    @property
    def is_plain_greedy(self) -> bool:
        """Whether the token is the largest logit and nothing else, so that rows can share one argmax."""
        return self._sampling.temperature == 0 and not self._processors

    @property
    def num_logprobs(self) -> int | None:
        """Of how many of the likeliest tokens the log probabilities are told beside the sampled one's; None for none at all."""
        return self._sampling.logprobs

    @property
    def looks_at_ids(self) -> bool:
        """Whether what comes next depends on the ids before."""
        return bool(self._processors)

    def processed(self, logits: mx.array, ahead: tuple[int, ...] = ()) -> mx.array:
        """Logits (1, V) for the next token, or for the one behind those `ahead`, after penalties and biases, lazy."""
        if self._processors:
            tokens = mx.array([*self._history, *ahead][-PENALTY_CONTEXT_TOKENS:])
            for processor in self._processors:
                logits = processor(tokens, logits)
        return logits

    def sample(
        self, logits: mx.array, position: int, allowed: mx.array | None = None, ahead: tuple[int, ...] = ()
    ) -> mx.array:
        """The token for `position` (its index in prompt and answer together) from logits (1, V); shape (1,), lazy. allowed: truth
        values (1, V), None for any; ahead: ids between those that are accepted and it.
        """
        logits = _masked(self.processed(logits, ahead), allowed)
        if self._sampler is None:
            self._sampler = self._make_sampler(logits.shape[-1])
        if self._sampling.temperature > 0:
            mx.random.seed(mix(self._seed, position))
        return self._sampler(_logprobs(logits))

    def goes_on_with(self, token: int, position: int) -> bool:
        """Whether this token at `position` is the last one that was accepted; any may be where none was yet."""
        return self._length is None or (position == self._length - 1 and token == self._history[-1])

    def accept(self, token: int, position: int) -> None:
        """The id of the token that was sampled for `position` is known."""
        if self.constraint is not None:
            self.constraint.accept(token)
        self._length = position + 1
        self._history.append(token)
        del self._history[:-PENALTY_CONTEXT_TOKENS]

    def _make_sampler(self, vocabulary_size: int) -> Sampler:
        sampling = self._sampling
        return make_sampler(
            temp=sampling.temperature,
            top_p=sampling.top_p if sampling.top_p < 1 else 0.0,
            min_p=sampling.min_p,
            top_k=sampling.top_k if sampling.top_k < vocabulary_size else 0,
        )


def _masked(logits: mx.array, allowed: mx.array | None) -> mx.array:
    return logits if allowed is None else mx.where(allowed, logits, -mx.inf)


def _logprobs(logits: mx.array) -> mx.array:
    """Normalized as mlx-lm does it even for greedy: in 16 bits the rounding decides between near-equal logits."""
    return logits - mx.logsumexp(logits, axis=-1, keepdims=True)


def mix(seed: int, position: int) -> int:
    """A 64-bit PRNG seed for one position: the finalizer of SplitMix64 (Steele, Lea and Flood, 2014)."""
    mask = (1 << 64) - 1
    z = (seed + (position + 1) * 0x9E3779B97F4A7C15) & mask
    z = ((z ^ (z >> 30)) * 0xBF58476D1CE4E5B9) & mask
    z = ((z ^ (z >> 27)) * 0x94D049BB133111EB) & mask
    return z ^ (z >> 31)


class SamplingPlace(NamedTuple):
    """Where a token is sampled, as `TokenSampler.sample` takes it."""

    sampler: TokenSampler
    position: int
    ahead: tuple[int, ...] = ()


def sample_places(places: Sequence[SamplingPlace], logits: mx.array, allowed: mx.array | None = None) -> mx.array:
    """One token for each place from logits (B, V), by its own sampler; shape (B,), lazy. allowed: truth values (B, V), None for any."""
    if all(place.sampler.is_plain_greedy for place in places):
        return mx.argmax(_masked(_logprobs(logits), allowed), axis=-1)
    rows = [
        sampler.sample(logits[row : row + 1], position, None if allowed is None else allowed[row : row + 1], ahead)
        for row, (sampler, position, ahead) in enumerate(places)
    ]
    return mx.concatenate(rows)
