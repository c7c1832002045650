"""One sequence as the head of its route knows it: what was asked, its tokens, and for whom it is only read."""

from collections.abc import Sequence
from dataclasses import dataclass

from protocol.messages import Generate, HandOver, OpenSequence, ReadingFailed
from protocol.values import Route
from strategy.prefix import BLOCK_TOKENS, Match
from workers.engine.actions import Tell

# How often the tokens of a prompt on its way are handed over.
HAND_OVER_EVERY_TOKENS = 4 * BLOCK_TOKENS
HISTORY_TOKENS = 64


@dataclass
class Reading:
    """A prompt that is read for the `holder`, which has the first `num_handed` tokens of it and goes on alone.

    every: tokens after which it is handed more; None for caches that cannot be cut, which it gets when all is read.
    """

    holder: str
    num_handed: int
    every: int | None

    def hand_over(self, sequence: int, route: Route, request: int, end: int, *, is_last: bool) -> HandOver | None:
        """What is to be handed over once the first `end` tokens are computed; None when it is not time yet."""
        start = self.num_handed
        if not is_last and (self.every is None or end - start < self.every):
            return None
        self.num_handed = end
        return HandOver(sequence=sequence, route=route, holder=self.holder, request=request, start=start, end=end)

    def failed(self, request: int, why: str) -> Tell:
        """For the holder: the rest of the prompt will not come."""
        return Tell(self.holder, ReadingFailed(sequence=request, message=why))


@dataclass
class Generation:
    """tokens: of the prompt and those sampled since; match: what of it was kept here; num_handed: how many tokens behind
    that a pipeline handed over; reading: None where the answer is generated on this route; num_blocks: full ones of what was
    computed, as far as `enters_block` was asked; is_anew: it began before, and a step of it failed.
    """

    request: Generate
    tokens: list[int]
    prompt_tokens: int
    match: Match
    num_handed: int = 0
    reading: Reading | None = None
    num_blocks: int = 0
    is_anew: bool = False

    def opening(self, number: int, route: Route) -> OpenSequence:
        """What the stages are told before its first step, under its number there."""
        request, sampling = self.request, self.request.sampling
        return OpenSequence(
            sequence=number,
            request_id=request.request_id,
            route=route,
            cached=request.cached,
            sampling=sampling,
            seed=request.seed,
            history=tuple(self.tokens[-HISTORY_TOKENS:]),
            max_length=len(self.tokens) + (0 if request.pooling else request.max_tokens),
            computed_tokens=self.match.num_tokens + self.num_handed,
            scores_prompt=request.scores_prompt,
            end_tokens=request.end_tokens if sampling.looks_back else (),
            answer=tuple(self.tokens[len(self.tokens) - request.answered :]) if sampling.looks_back else (),
            pooling=request.pooling,
        )

    def enters_block(self, end: int) -> bool:
        """Whether there is another full block among the first `end` tokens than when that was asked before."""
        before, self.num_blocks = self.num_blocks, end // BLOCK_TOKENS
        return self.num_blocks > before

    @property
    def num_generated(self) -> int:
        return len(self.tokens) - self.prompt_tokens

    @property
    def may_begin_anew(self) -> bool:
        """Whether what it began with may be the cause of a failure: nothing was sampled yet."""
        return self.num_generated == 0 and bool(self.match.keys or self.num_handed)

    @property
    def tells_logprobs(self) -> bool:
        """Whether the log probabilities of what is sampled are told."""
        return self.request.sampling.logprobs is not None

    @property
    def tells_prompt(self) -> bool:
        """Whether the log probabilities of the prompt's tokens are told, with each step until the first token is sampled."""
        return self.request.scores_prompt and self.num_generated == 0

    @property
    def reads_only(self) -> int | None:
        """How many of its tokens are read where nothing is sampled; None where something is."""
        if self.request.pooling is not None:
            return self.prompt_tokens
        return None if self.reading is None else self.prompt_tokens - 1

    def is_read(self, end: int) -> bool:
        """Whether the first `end` tokens are all of the prompt that is computed before the first token is sampled."""
        return end == self.prompt_tokens - 1

    def take(self, found: Sequence[int]) -> tuple[int, ...]:
        """Go on with what was sampled, up to where that ends the sequence; returns so much of it."""
        for count, token in enumerate(found, 1):
            self.tokens.append(token)
            if self.finish_reason() is not None:
                return tuple(found[:count])
        return tuple(found)

    def finish_reason(self) -> str | None:
        """Why the sequence ends with its newest token, or None."""
        if self.tokens[-1] in self.request.end_tokens:
            return "stop"
        return "length" if self.num_generated >= self.request.max_tokens else None
