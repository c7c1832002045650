"""A request's choices: what its body may ask for, the generations that they take, and one choice as an answer of its own."""

from collections.abc import Sequence
from typing import Any

import msgspec

from cluster.api.events import TextEvent
from cluster.api.fields import Check, Notes, integer
from cluster.api.surface import ApiRequest, ChoiceAnswer, Choices, ChoicesFormat
from cluster.serving.requests import Delta, Finished, GenerationRequest, Prompt, Routed
from protocol.errors import BadRequest

# Of one request, all prompts together: of one prompt, or of so many prompts, or of fewer of which each has several.
MOST_CHOICES = 128
MOST_EACH = 8
MOST_PROMPTS_WITH_SEVERAL = MOST_CHOICES // MOST_EACH
MOST_LOGPROBS = 20

num_choices: Check = integer(1, MOST_CHOICES)
num_logprobs: Check = integer(0, MOST_LOGPROBS)


def most_each(num_prompts: int) -> int:
    """How many answers may be asked for to each of so many prompts."""
    if num_prompts == 1:
        return MOST_CHOICES
    return MOST_EACH if num_prompts <= MOST_PROMPTS_WITH_SEVERAL else 1


def choices_of(
    fields: dict[str, Any], prompts: Sequence[Prompt], logprobs: int | None, notes: Notes, *, echo: bool = False
) -> Choices | None:
    """What checked fields ask for, None where that is one answer's text. Raises BadRequest for more than may be."""
    n, best_of, most = fields.get("n", 1), fields.get("best_of", 1), most_each(len(prompts))
    for name, asked in (("n", n), ("best_of", best_of)):
        if asked > most:
            raise BadRequest(
                f"{name} is {asked} for each of {len(prompts)} prompts; send at most {most}, or fewer prompts",
                param=name,
            )
    if best_of > 1 and fields.get("stream", False):
        raise BadRequest(
            "best_of must be 1 in a stream: the best are known only when all are done; send n alone", param="best_of"
        )
    if best_of < n:
        if "best_of" in fields:
            notes.without_effect("best_of", ())
        best_of = n
    if len(prompts) == best_of == 1 and logprobs is None and not echo:
        return None
    return Choices(prompts=tuple(prompts), n=n, best_of=best_of, logprobs=logprobs, echo=echo)


def generations(request: ApiRequest) -> tuple[GenerationRequest, ...]:
    """What a request generates: by prompt, and of each as many as one is chosen from."""
    asked, choices = request.generation, request.choices
    if choices is None:
        return (asked,)
    return tuple(_copy(asked, choices, prompt, copy) for prompt in choices.prompts for copy in range(choices.best_of))


def _copy(asked: GenerationRequest, choices: Choices, prompt: Prompt, copy: int) -> GenerationRequest:
    """One of a prompt's: a given seed counts up, and the prompt is scored once, or where nothing else is done."""
    seed, logprobs, is_scored_only = asked.sampling.seed, choices.logprobs, asked.max_tokens == 0
    if logprobs is None and (choices.best_of > choices.n or is_scored_only):
        logprobs = 0
    sampling = msgspec.structs.replace(
        asked.sampling, seed=None if seed is None else (seed + copy) % 2**64, logprobs=logprobs
    )
    scores_prompt = choices.echo and (is_scored_only or (logprobs is not None and copy == 0))
    return msgspec.structs.replace(asked, prompt=prompt, sampling=sampling, scores_prompt=scores_prompt)


class OneChoice:
    """The `AnswerFormat` of what writes choices, for the only one that there is."""

    def __init__(self, choices: ChoicesFormat, routed: Routed) -> None:
        self._choices = choices
        self._prompt_tokens = routed.prompt_tokens
        self.text = TextEvent(lambda text: choices.piece(0, Delta(text=text, token_ids=()))).of

    def __repr__(self) -> str:
        return f"OneChoice({self._choices!r})"

    def opening(self) -> bytes:
        return self._choices.opening(0)

    def counted(self, text: str, num_tokens: int) -> bytes:
        """See `AnswerFormat`."""
        return self._choices.piece(0, Delta(text=text, token_ids=()), (self._prompt_tokens, num_tokens))

    def beside(self, delta: Delta) -> bytes:
        """See `AnswerFormat`."""
        return self._choices.piece(0, delta)

    def closing(self, finished: Finished) -> bytes:
        return self._choices.ending(0, finished) + self._choices.closing(finished)

    def whole(self, answer: Delta, finished: Finished) -> bytes:
        return self._choices.whole([ChoiceAnswer(answer, finished)], finished)
