"""The log probabilities of one request, from what heads tell to what the API gives, over every plan that it runs on.

Owns those of its prompt until all of them are there. Knows nothing of workers or HTTP.
"""

from collections.abc import Callable, Sequence

from cluster.serving.requests import GenerationRequest, Likelihood, PromptScored, Scored
from protocol.messages import PromptLogprobs
from protocol.values import TokenLogprobs

TextOf = Callable[[int], bytes]


class Scores:
    """text_of: a token's own text. prompt: its ids where their own log probabilities are told, else none; is_all: nothing else is
    wanted of the request.
    """

    def __init__(self, text_of: TextOf, prompt: tuple[int, ...] = (), *, is_all: bool = False):
        self.is_all = is_all
        self._text_of = text_of
        self._prompt = prompt
        self._of_prompt = [Scored(Likelihood(token, text_of(token), None)) for token in prompt[:1]]
        self._is_told = not prompt

    def __repr__(self) -> str:
        return f"Scores({len(self._of_prompt)} of {len(self._prompt)} of the prompt)"

    @property
    def lacks_prompt(self) -> bool:
        """Whether the prompt's are asked for and not all there."""
        return len(self._of_prompt) < len(self._prompt)

    def take_prompt(self, told: PromptLogprobs) -> None:
        """More of the prompt's. What is there already is told again by a sequence that began anew after a loss."""
        if not self._is_told and told.start <= len(self._of_prompt):
            entries = told.entries[len(self._of_prompt) - told.start :]
            tokens = self._prompt[len(self._of_prompt) :]
            self._of_prompt += map(self._scored, tokens, entries)

    def whole_prompt(self) -> PromptScored | None:
        """The prompt's, once, when all of them are there."""
        if self._is_told or self.lacks_prompt:
            return None
        self._is_told = True
        return PromptScored(scores=tuple(self._of_prompt))

    def of_answer(self, tokens: Sequence[int], logprobs: Sequence[TokenLogprobs]) -> tuple[Scored, ...]:
        """Of the first ids of an answer that these are of, or of none where they are not told."""
        return tuple(map(self._scored, tokens, logprobs))

    def _scored(self, token: int, logprobs: TokenLogprobs) -> Scored:
        return Scored(
            self._likelihood(token, logprobs.logprob),
            tuple(self._likelihood(each, logprob) for each, logprob in logprobs.top),
        )

    def _likelihood(self, token: int, logprob: float) -> Likelihood:
        return Likelihood(token, self._text_of(token), logprob)


def scores_of(request: GenerationRequest, prompt: tuple[int, ...], text_of: TextOf) -> Scores | None:
    """What a request is told of; None where it wants no log probabilities. prompt: its ids."""
    if request.scores_prompt:
        return Scores(text_of, prompt, is_all=request.max_tokens == 0)
    return None if request.sampling.logprobs is None else Scores(text_of)
