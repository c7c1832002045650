"""What a surface is: one way to ask for a generation over HTTP, with its own path, body and answer.

A surface is a file in `surfaces/` and an entry in its tuple. Nothing else knows how many there are: `app` makes a route
of each, `generation` runs any.
"""

from collections.abc import Sequence
from typing import Any, Protocol, Self

import msgspec

from cluster.api.answered import Shelf
from cluster.api.events import comment, event
from cluster.api.fields import Notes
from cluster.api.schemas import Schema
from cluster.serving.requests import Delta, Finished, GenerationRequest, Prompt, Routed
from protocol.errors import ApiError


class Choices(msgspec.Struct, frozen=True, kw_only=True):
    """What is asked for beyond one answer's text: `n` choices for each of the prompts, the likeliest of `best_of`.

    logprobs: of how many of the likeliest tokens the log probabilities stand beside that of each token, None for none at all;
    echo: the prompt's text stands in front of each answer.
    """

    prompts: tuple[Prompt, ...]
    n: int = 1
    best_of: int = 1
    logprobs: int | None = None
    echo: bool = False


class ApiRequest(msgspec.Struct, frozen=True, kw_only=True):
    """A validated body. model: the name asked for, None for the one that is loaded.

    choices: None for one answer's text; else each of its generations differs from `generation`, see `choices.generations`.
    include_usage: a stream ends with what was used; counts_each: each of its pieces says what was used so far. notes: what of the
    body had no effect, as clauses.
    """

    generation: GenerationRequest
    model: str | None
    stream: bool
    include_usage: bool
    counts_each: bool = False
    notes: tuple[str, ...] = ()
    choices: Choices | None = None


class AnswerFormat(Protocol):
    """The wire format of one answer: as a stream of server-sent events, or whole as one JSON object.

    A stream is `opening`, `text` for each piece (`counted` where the tokens so far are to be said), `beside` for what is no text
    of the answer, and `closing`. whole: of an answer as one Delta.
    """

    def opening(self) -> bytes: ...

    def text(self, text: str) -> bytes: ...

    def counted(self, text: str, num_tokens: int) -> bytes: ...

    def beside(self, delta: Delta) -> bytes: ...

    def closing(self, finished: Finished) -> bytes: ...

    def whole(self, answer: Delta, finished: Finished) -> bytes: ...


class ChoiceAnswer(msgspec.Struct, frozen=True):
    """One choice, whole. echo: what stands in front of it."""

    answer: Delta
    finished: Finished
    echo: Delta | None = None


class ChoicesFormat(Protocol):
    """The wire format of an answer of choices, each with its `index`.

    A stream has of each an `opening`, `piece`s (used: tokens of prompts and of all answers so far, where they are to be said)
    and an `ending`, those of several among each other, and then a `closing`. total: of all together.
    """

    def opening(self, index: int, echo: Delta | None = None) -> bytes: ...

    def piece(self, index: int, delta: Delta, used: tuple[int, int] | None = None) -> bytes: ...

    def ending(self, index: int, finished: Finished) -> bytes: ...

    def closing(self, total: Finished) -> bytes: ...

    def whole(self, answers: Sequence[ChoiceAnswer], total: Finished) -> bytes: ...


def joined(deltas: Sequence[Delta]) -> Delta:
    """An answer as one Delta."""
    return Delta(
        text="".join(delta.text for delta in deltas),
        reasoning="".join(delta.reasoning for delta in deltas),
        calls=tuple(call for delta in deltas for call in delta.calls),
        scores=tuple(score for delta in deltas for score in delta.scores),
        token_ids=(),
    )


class Dialect:
    """What the surfaces of one API have in common; OpenAI's where a surface says nothing else. media_type: of a stream;
    counting_path: where the tokens of the same body's prompt are counted, None for nowhere.
    """

    media_type = "text/event-stream; charset=utf-8"
    counting_path: str | None = None

    def asked_by(self, shelf: Shelf) -> Self:  # noqa: ARG002  few surfaces keep anything
        """The surface for one request of whoever has this shelf of kept answers."""
        return self

    def comment(self, text: str) -> bytes:
        """What goes out in a stream for people and to keep it alive; clients skip it."""
        return comment(text)

    def at_once(self, request: ApiRequest, *, model: str, created: int) -> dict[str, Any] | None:  # noqa: ARG002
        """See `Surface`."""
        return None

    def choices(self, request: ApiRequest, routed: Routed, *, model: str, created: int) -> ChoicesFormat:
        """See `Surface`."""
        raise NotImplementedError(f"{type(self).__name__} parses no request for choices")

    def count(self, num_tokens: int) -> dict[str, Any]:
        """What is answered at `counting_path`."""
        return {"input_tokens": num_tokens}

    def failure(self, error: ApiError) -> bytes:
        """How a stream ends that has begun and cannot go on."""
        return event(error.body())

    def refusal(self, error: ApiError) -> dict[str, Any]:
        """The body of an answer that is an error."""
        return error.body()


class Surface(Protocol):
    """One way to ask; see Dialect for the rest. path: where it takes POST requests."""

    path: str
    media_type: str
    counting_path: str | None

    def asked_by(self, shelf: Shelf) -> "Surface": ...

    def parse(self, body: dict[str, Any], notes: Notes) -> ApiRequest:
        """The request that a JSON body asks for; what of it has no effect goes to `notes`. Raises BadRequest naming the field."""
        ...

    def schema(self) -> Schema:
        """What a body may be."""
        ...

    def answer(self, request: ApiRequest, routed: Routed, *, model: str, created: int) -> AnswerFormat:
        """The format of this request's answer. model: the id to answer with; created: Unix seconds."""
        ...

    def choices(self, request: ApiRequest, routed: Routed, *, model: str, created: int) -> ChoicesFormat:
        """The format of the answer to a request that asks for choices."""
        ...

    def at_once(self, request: ApiRequest, *, model: str, created: int) -> dict[str, Any] | None:
        """The answer to a request for which nothing is generated; None where something is."""
        ...

    def count(self, num_tokens: int) -> dict[str, Any]: ...

    def comment(self, text: str) -> bytes: ...

    def failure(self, error: ApiError) -> bytes: ...

    def refusal(self, error: ApiError) -> dict[str, Any]: ...
