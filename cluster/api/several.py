"""A request's choices on their way to the client: what its generations say, as one stream or as one object."""

import contextlib
from collections.abc import AsyncGenerator, AsyncIterator, Awaitable, Callable, Sequence

import msgspec

from cluster.api.keep_alive import for_people, kept_alive
from cluster.api.merging import merged
from cluster.api.surface import ApiRequest, ChoiceAnswer, ChoicesFormat, joined
from cluster.serving.requests import (
    Delta,
    Event,
    Finished,
    GenerationRequest,
    Progress,
    PromptScored,
    Routed,
    Service,
    TextPrompt,
    TokensPrompt,
    Waiting,
)

Write = Callable[..., Awaitable[None]]


class Several:
    """The choices of one request, which asks for some. generations: all of them, of which the first is `routed`; comment: of the
    surface.
    """

    def __init__(
        self,
        service: Service,
        request: ApiRequest,
        generations: Sequence[GenerationRequest],
        routed: Routed,
        answer: ChoicesFormat,
        comment: Callable[[str], bytes],
    ) -> None:
        assert request.choices is not None
        self._service = service
        self._choices = request.choices
        self._counts_each = request.counts_each
        self._generations = generations
        self._routed = routed
        self._answer = answer
        self._comment = comment
        self._echoes: dict[int, Delta] = {}  # by prompt
        self._begun: set[int] = set()
        self._finished: dict[int, Finished] = {}
        self._used = (0, 0)  # tokens of prompts and of answers

    def __repr__(self) -> str:
        return f"Several({len(self._finished)} of {len(self._generations)} finished)"

    async def stream(self, first: AsyncIterator[Event], write: Write) -> None:
        """A write for each event. first: the events of the first generation after the one that said how it runs."""
        async with contextlib.aclosing(self._events(first)) as events:
            beating = kept_alive(events, self._all_begin_with, lambda: write(self._comment("keep-alive")))
            async for place, event in beating:
                await self._learn(place, event)
                is_last = len(self._finished) == len(self._generations)
                data = self._said(place, event)
                if is_last:
                    data += self._answer.closing(self._total(self._finished[0]))
                if data:
                    await write(data, more=not is_last)

    async def collect(self, first: AsyncIterator[Event]) -> bytes:
        """The whole answer. first: as of `stream`."""
        deltas: list[list[Delta]] = [[] for _ in self._generations]
        async with contextlib.aclosing(self._events(first)) as events:
            async for place, event in events:
                await self._learn(place, event)
                if isinstance(event, Delta):
                    deltas[place].append(event)
        answers = [
            ChoiceAnswer(joined(said), self._finished[place], self._echo(place)) for place, said in enumerate(deltas)
        ]
        best = self._best(answers)
        return self._answer.whole(best, self._total(best[0].finished))

    def _events(self, first: AsyncIterator[Event]) -> AsyncGenerator[tuple[int, Event], None]:
        return merged(self._service, self._generations, self._choices.best_of, self._routed, first)

    def _all_begin_with(self, placed: tuple[int, Event]) -> bool:
        place, event = placed
        if isinstance(event, Delta | Finished):
            self._begun.add(place)
        return len(self._begun) == len(self._generations)

    async def _learn(self, place: int, event: Event) -> None:
        """What an event tells of all choices."""
        prompt, copy = divmod(place, self._choices.best_of)
        if isinstance(event, Delta):
            self._used = (self._used[0], self._used[1] + len(event.token_ids))
        elif isinstance(event, Finished):
            self._finished[place] = event
        elif isinstance(event, Routed) and copy == 0:
            self._used = (self._used[0] + event.prompt_tokens, self._used[1])
            if self._choices.echo:
                self._echoes[prompt] = Delta(text=await self._prompt_text(prompt), token_ids=())
        elif isinstance(event, PromptScored):
            self._echoes[prompt] = msgspec.structs.replace(self._echoes[prompt], scores=event.scores)

    async def _prompt_text(self, prompt: int) -> str:
        match self._choices.prompts[prompt]:
            case TextPrompt(text=text):
                return text
            case TokensPrompt(tokens=tokens):
                return await self._service.decode(tokens)
        raise AssertionError("no chat is echoed")

    def _echo(self, place: int) -> Delta | None:
        return self._echoes.get(place // self._choices.best_of)

    def _said(self, place: int, event: Event) -> bytes:
        if isinstance(event, Delta):
            says_something = event.text or event.reasoning or event.calls or event.scores
            used = self._used if self._counts_each else None
            return self._answer.piece(place, event, used) if says_something else b""
        if isinstance(event, Finished):
            return self._answer.ending(place, event)
        # Of several that wait one says it for all.
        if isinstance(event, Progress) or (isinstance(event, Waiting) and self._is_foremost(place)):
            return self._comment(for_people(event))
        opens = isinstance(event, PromptScored if self._generations[place].scores_prompt else Routed)
        return self._answer.opening(place, self._echo(place)) if opens else b""

    def _is_foremost(self, place: int) -> bool:
        return all(earlier in self._finished for earlier in range(place))

    def _best(self, answers: Sequence[ChoiceAnswer]) -> list[ChoiceAnswer]:
        """As many of each prompt's as are asked for: all, or the likeliest."""
        n, best_of = self._choices.n, self._choices.best_of
        if n == best_of:
            return list(answers)
        groups = (answers[start : start + best_of] for start in range(0, len(answers), best_of))
        return [answer for group in groups for answer in sorted(group, key=_mean_logprob, reverse=True)[:n]]

    def _total(self, first: Finished) -> Finished:
        """All together: the tokens of each prompt once. The rest is said of the `first`."""
        finished = [self._finished[place] for place in range(len(self._generations))]
        of_prompts = finished[:: self._choices.best_of]
        return msgspec.structs.replace(
            first,
            prompt_tokens=sum(each.prompt_tokens for each in of_prompts),
            cached_tokens=sum(each.cached_tokens for each in of_prompts),
            completion_tokens=sum(each.completion_tokens for each in finished),
            proposed=sum(each.proposed for each in finished),
            accepted=sum(each.accepted for each in finished),
            notes=tuple(dict.fromkeys(note for each in finished for note in each.notes)),
        )


def _mean_logprob(choice: ChoiceAnswer) -> float:
    """Of a token; an answer without any is the last."""
    logprobs = [score.chosen.logprob or 0.0 for score in choice.answer.scores]
    return sum(logprobs) / len(logprobs) if logprobs else float("-inf")
