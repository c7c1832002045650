"""How many prompt tokens one prefill chunk takes.

A chunk of c tokens costs a stage `fixed_s + c * token_s`. A prompt of N tokens over S stages, its chunks following each
other through the stages, takes (S - 1 + N / c) of these, which is least at c = sqrt(N * fixed_s / ((S - 1) * token_s)).
While others decode, a chunk may cost at most a few of their steps, so that their streams never stop.

Pure: costs are told, never measured here.
"""

import math
from dataclasses import dataclass

# Shorter ones cost more for their fixed part than the streams gain.
MIN_TOKENS = 16
# Beyond this, larger chunks gain nothing worth the wait of whoever comes in between.
MAX_TOKENS = 512
# What a chunk may cost while others decode, in their steps.
DECODES_PER_CHUNK = 3.0
# Of one prompt; more, and the time between chunks outweighs a shorter way through the stages.
MAX_CHUNKS = 32
_SMOOTHING = 0.2


@dataclass(frozen=True)
class ChunkCost:
    """Seconds a stage takes for a chunk: a fixed part and a part for each token."""

    fixed_s: float
    token_s: float

    @classmethod
    def fit(cls, samples: list[tuple[int, float]]) -> "ChunkCost":
        """The line through measured (tokens, seconds), at least two different numbers of tokens.

        Least squares of the relative errors, or the long chunks would decide what the short ones cost.
        """
        weights = [1 / seconds**2 for _, seconds in samples]
        total = sum(weights)
        mean_tokens = sum(w * tokens for w, (tokens, _) in zip(weights, samples, strict=True)) / total
        mean_s = sum(w * seconds for w, (_, seconds) in zip(weights, samples, strict=True)) / total
        slope = spread = 0.0
        for weight, (tokens, seconds) in zip(weights, samples, strict=True):
            slope += weight * (tokens - mean_tokens) * (seconds - mean_s)
            spread += weight * (tokens - mean_tokens) ** 2
        token_s = max(slope / spread, 1e-9)
        return cls(max(mean_s - token_s * mean_tokens, 0.0), token_s)


class ChunkSize:
    """The chunk size of one head. cost: measured at load; fixed_tokens: the user's choice, which wins over all."""

    def __init__(self, *, num_stages: int, cost: ChunkCost | None, fixed_tokens: int | None):
        self._num_stages = num_stages
        self._cost = cost
        self._fixed_tokens = fixed_tokens
        self._decode_s: float | None = None

    def __repr__(self) -> str:
        return f"ChunkSize({self._cost}, decode step {self._decode_s} s)"

    def observe_decode(self, seconds: float) -> None:
        """A decode step took this long on the head's own stage."""
        if self._decode_s is None:
            self._decode_s = seconds
        self._decode_s += _SMOOTHING * (seconds - self._decode_s)

    def tokens(self, prompt_tokens: int, *, others_decode: bool) -> int:
        """Tokens in the next chunk of a prompt of `prompt_tokens`."""
        if self._fixed_tokens is not None:
            return self._fixed_tokens
        if self._cost is None:
            return MAX_TOKENS
        best = float(MAX_TOKENS)
        if self._num_stages > 1:
            best = math.sqrt(prompt_tokens * self._cost.fixed_s / ((self._num_stages - 1) * self._cost.token_s))
            best = max(best, prompt_tokens / MAX_CHUNKS)
        if others_decode and self._decode_s is not None:
            affordable_s = DECODES_PER_CHUNK * self._decode_s - self._cost.fixed_s
            best = min(best, affordable_s / self._cost.token_s)
        return max(MIN_TOKENS, min(MAX_TOKENS, int(best)))
