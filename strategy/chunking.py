"""How many prompt tokens one prefill chunk takes.

A chunk of c tokens costs a stage `fixed_s + c * token_s`. A prompt of N tokens over S stages, its chunks following each
other through the stages, takes (S - 1 + N / c) of these, which is least at c = sqrt(N * fixed_s / ((S - 1) * token_s)).
Attention makes a token dearer the more of them lie before it, by an amount that is learned from the chunks that ran.
While others decode, a chunk may cost as much as a step of each of their batches and half a step more, so that their
streams become slower but never stop.

Pure: costs are told, never measured here.
"""

import math
from dataclasses import dataclass

# Shorter ones cost more for their fixed part than the streams gain.
MIN_TOKENS = 16
# Beyond this, larger chunks gain nothing worth the wait of whoever comes in between.
MAX_TOKENS = 512
# Whoever comes in between waits for a chunk to end, so on a slow machine one takes no longer than this, unless half of it
# is the fixed part.
LONGEST_S = 2.0
# Of one prompt; more, and the time between chunks outweighs a shorter way through the stages.
MAX_CHUNKS = 32
# mlx-lm's generate_step runs a prompt but its last token in passes of so many tokens.
MLX_LM_CHUNK_TOKENS = 2048
_SMOOTHING = 0.2
# What an observed chunk still counts for after the next one.
_MEMORY = 0.9


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

    def __init__(self, *, num_stages: int, cost: ChunkCost, fixed_tokens: int | None):
        self._num_stages = num_stages
        self._cost = cost
        self._fixed_tokens = fixed_tokens
        self._decode_s: float | None = None
        # Least squares through the origin: seconds beyond `cost` against tokens times tokens before them.
        self._slope = 0.0
        self._spread = 0.0

    def __repr__(self) -> str:
        return f"ChunkSize({self._cost}, decode step {self._decode_s} s)"

    def observe_decode(self, seconds: float) -> None:
        """A decode step took this long on the head's own stage."""
        if self._decode_s is None:
            self._decode_s = seconds
        self._decode_s += _SMOOTHING * (seconds - self._decode_s)

    def observe_chunk(self, start: int, tokens: int, seconds: float) -> None:
        """A chunk of tokens [start, start + tokens) took this long on the head's own stage."""
        beyond_s = seconds - self._cost.fixed_s - tokens * self._cost.token_s
        self._slope = _MEMORY * self._slope + beyond_s * tokens * start
        self._spread = _MEMORY * self._spread + (tokens * start) ** 2

    @property
    def context_s(self) -> float:
        """Seconds that a token costs more for each token before it."""
        return max(self._slope / self._spread, 0.0) if self._spread else 0.0

    def tokens(
        self, prefill_tokens: int, computed_tokens: int, *, num_decoding: int, num_left: int | None = None
    ) -> int:
        """Tokens in the next chunk of a prompt.

        prefill_tokens: how many there were to compute in all; computed_tokens: how many lie before the chunk;
        num_decoding: batches of other sequences that decode meanwhile; num_left: how many are to compute now, all if None.
        """
        if self._fixed_tokens is not None:
            return self._fixed_tokens
        size = self._wanted(prefill_tokens, computed_tokens, num_decoding)
        left = prefill_tokens if num_left is None else num_left
        if self._num_stages > 1 and max(size, 2 * MIN_TOKENS) < left < 2 * size:
            return -(-left // 2)  # the stages behind would still be at a long chunk when the short last one comes
        return size

    def _wanted(self, prefill_tokens: int, computed_tokens: int, num_decoding: int) -> int:
        token_s = self._cost.token_s + computed_tokens * self.context_s
        best = float(MAX_TOKENS)
        if self._num_stages > 1:
            best = math.sqrt(prefill_tokens * self._cost.fixed_s / ((self._num_stages - 1) * token_s))
            best = max(best, prefill_tokens / MAX_CHUNKS)
        affordable_s = max(LONGEST_S, 2 * self._cost.fixed_s)
        if num_decoding and self._decode_s is not None:
            affordable_s = min(affordable_s, (num_decoding + 0.5) * self._decode_s)
        best = min(best, (affordable_s - self._cost.fixed_s) / token_s)
        return max(MIN_TOKENS, min(MAX_TOKENS, int(best)))
