"""How many prompt tokens one prefill chunk takes.

A chunk of c tokens costs a stage `fixed_s + c * token_s`. A prompt of N tokens over S stages, its chunks following each
other through the stages, takes as long as one stage for all of it, fixed parts included, and S - 1 times its longest chunk. That is
least with chunks that take equally long, with sqrt(N * token_s * fixed_s / (S - 1)) for the tokens of each: N / c of them then cost as much
for their fixed parts as the stages wait for each other.

Attention makes chunks dearer the more tokens lie before them, both their tokens and their fixed part (which reads all of those, and is
then the larger part where few tokens share it): by amounts that are learned from the chunks that ran. So sizes fall along a prompt.

While others decode, a chunk may cost as much as a step of each of their batches and half a step more, so that their
streams become slower but never stop. What is left of a prompt is read at once where the pause is too short to be seen; where all that
counts is when all have their answers, streams wait for a chunk as long as whoever comes in between would.

Short prompts are read together, in one pass, where filling the shorter ones up costs less than the fixed part of a pass for each.

Pure: costs are told, never measured here.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass

# Shorter ones cost more for their fixed part than the streams gain.
MIN_TOKENS = 16
# Beyond this, larger chunks gain nothing worth the wait of whoever comes in between.
MAX_TOKENS = 512
# Whoever comes in between waits for a chunk to end, so on a slow machine one takes no longer than this, unless half of it
# is the fixed part.
LONGEST_S = 2.0
# Nobody who reads along sees that a stream paused for so long.
UNSEEN_S = 0.1
# Of one prompt; more, and the time between chunks outweighs a shorter way through the stages.
MAX_CHUNKS = 32
# mlx-lm's generate_step runs a prompt but its last token in passes of so many tokens.
MLX_LM_CHUNK_TOKENS = 2048
_SMOOTHING = 0.2
# What an observed chunk still counts for after the next one.
_MEMORY = 0.9
# How much it counts, beside what ran, that a chunk's fixed part grows as its tokens' does: chunks of one size alone cannot tell.
_ALIKE = 0.03


@dataclass(frozen=True)
class ChunkCost:
    """Seconds a stage takes for a chunk: a fixed part and a part for each token."""

    fixed_s: float
    token_s: float

    def scaled(self, share: float) -> "ChunkCost":
        """Of so much of the stage."""
        return ChunkCost(self.fixed_s * share, self.token_s * share)

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


class _ContextCost:
    """What the tokens before a chunk add to its cost, learned from chunks that ran. cost: of chunks that none lies before.

    Least squares of what a chunk took beyond that against the tokens before it, and against their number times its own.
    """

    def __init__(self, cost: ChunkCost):
        self._cost = cost
        self._ratio = cost.fixed_s / cost.token_s
        self._fixed_fixed = self._fixed_token = self._token_token = 0.0
        self._fixed_s = self._token_s = 0.0

    def __repr__(self) -> str:
        return f"_ContextCost({self.of_each_token})"

    def observe(self, start: int, tokens: int, seconds: float) -> None:
        """A chunk of tokens [start, start + tokens) took this long."""
        beyond_s = seconds - self._cost.fixed_s - tokens * self._cost.token_s
        each = start * tokens
        self._fixed_fixed = _MEMORY * self._fixed_fixed + start * start
        self._fixed_token = _MEMORY * self._fixed_token + start * each
        self._token_token = _MEMORY * self._token_token + each * each
        self._fixed_s = _MEMORY * self._fixed_s + beyond_s * start
        self._token_s = _MEMORY * self._token_s + beyond_s * each

    @property
    def of_each_token(self) -> ChunkCost:
        """What each token before a chunk adds to its fixed part and to each of its tokens."""
        if not self._token_token:
            return ChunkCost(0.0, 0.0)
        alike = _ALIKE * self._fixed_fixed
        fixed_fixed, token_token = self._fixed_fixed + alike, self._token_token + alike * self._ratio**2
        fixed_token = self._fixed_token - alike * self._ratio
        determinant = fixed_fixed * token_token - fixed_token**2
        fixed_s = (self._fixed_s * token_token - self._token_s * fixed_token) / determinant
        token_s = (self._token_s * fixed_fixed - self._fixed_s * fixed_token) / determinant
        if fixed_s < 0:
            return ChunkCost(0.0, max(self._token_s / self._token_token, 0.0))
        if token_s < 0:
            return ChunkCost(max(self._fixed_s / self._fixed_fixed, 0.0), 0.0)
        return ChunkCost(fixed_s, token_s)

    def behind(self, num_tokens: float) -> ChunkCost:
        """Of a chunk that so many tokens lie before."""
        each = self.of_each_token
        return ChunkCost(self._cost.fixed_s + num_tokens * each.fixed_s, self._cost.token_s + num_tokens * each.token_s)


class ChunkSize:
    """The chunk size of one head. cost: measured at load; fixed_tokens: the user's choice, which wins over all; together: whether
    prompts can be read in one pass; streams_wait: others that decode meanwhile make no chunk shorter.
    """

    def __init__(
        self,
        *,
        num_stages: int,
        cost: ChunkCost,
        fixed_tokens: int | None,
        together: bool = False,
        streams_wait: bool = False,
    ):
        self._num_stages = num_stages
        self._together = together
        self._streams_wait = streams_wait
        self.cost = cost
        self._fixed_tokens = fixed_tokens
        self._decode_s: float | None = None
        self._context = _ContextCost(cost)

    def __repr__(self) -> str:
        return f"ChunkSize({self.cost}, decode step {self._decode_s} s)"

    def observe_decode(self, seconds: float) -> None:
        """A decode step took this long on the head's own stage."""
        if self._decode_s is None:
            self._decode_s = seconds
        self._decode_s += _SMOOTHING * (seconds - self._decode_s)

    def observe_chunk(self, start: int, tokens: int, seconds: float) -> None:
        """A chunk of tokens [start, start + tokens) took this long on the head's own stage."""
        self._context.observe(start, tokens, seconds)

    def cost_behind(self, num_tokens: float) -> ChunkCost:
        """Of a chunk that so many tokens lie before, by what ran so far."""
        return self._context.behind(num_tokens)

    def tokens(
        self, prefill_tokens: int, computed_tokens: int, *, num_decoding: int, num_left: int | None = None
    ) -> int:
        """Tokens in the next chunk of a prompt.

        prefill_tokens: how many there were to compute in all; computed_tokens: how many lie before the chunk;
        num_decoding: batches of other sequences that decode meanwhile; num_left: how many are to compute now, all if None.
        """
        if self._fixed_tokens is not None:
            return self._fixed_tokens
        left = prefill_tokens if num_left is None else num_left
        size = self._wanted(prefill_tokens, computed_tokens, left, num_decoding)
        if self._num_stages > 1 and max(size, 2 * MIN_TOKENS) < left < 2 * size:
            return -(-left // 2)  # the stages behind would still be at a long chunk when the short last one comes
        return size

    def joins(self, counts: Sequence[int], count: int, *, num_decoding: int) -> bool:
        """Whether a prompt of which `count` tokens are left is read in the pass of those of which `counts` are, all filled up to the
        longest.
        """
        size = (len(counts) + 1) * max(*counts, count)
        filling = size - len(counts) * max(counts) - count
        is_cheaper = filling * self.cost.token_s <= self.cost.fixed_s
        return self._together and is_cheaper and size <= self.tokens(size, 0, num_decoding=num_decoding)

    def _wanted(self, prefill_tokens: int, computed_tokens: int, left: int, num_decoding: int) -> int:
        cost = self.cost_behind(computed_tokens)
        best = float(MAX_TOKENS)
        if self._num_stages > 1:
            middle = max(computed_tokens + left - prefill_tokens / 2, 0.0)  # of the prompt
            usual = self.cost_behind(middle)
            tokens_s = math.sqrt(prefill_tokens * usual.token_s * usual.fixed_s / (self._num_stages - 1))
            best = max(tokens_s / cost.token_s, prefill_tokens / MAX_CHUNKS)
        affordable_s = max(LONGEST_S, 2 * cost.fixed_s)
        if num_decoding and self._decode_s is not None and not self._streams_wait:
            rest_s = cost.fixed_s + left * cost.token_s
            seen_s = (num_decoding + 0.5) * self._decode_s
            affordable_s = min(affordable_s, max(seen_s, rest_s) if rest_s <= UNSEEN_S else seen_s)
        best = min(best, (affordable_s - cost.fixed_s) / cost.token_s)
        return max(MIN_TOKENS, min(MAX_TOKENS, int(best)))
