"""What a surface is: one way to ask for a generation over HTTP, with its own path, body and answer.

A surface is a file in `surfaces/` and an entry in its tuple. Nothing else knows how many there are: `app` makes a route
of each, `generation` runs any.
"""

from typing import Any, Protocol, Self

import msgspec

from cluster.api.answered import Shelf
from cluster.api.events import comment, event
from cluster.api.fields import Notes
from cluster.api.schemas import Schema
from cluster.serving.requests import Delta, Finished, GenerationRequest, Routed
from protocol.errors import ApiError


class ApiRequest(msgspec.Struct, frozen=True, kw_only=True):
    """A validated body. model: the name asked for, None for the one that is loaded.

    include_usage: a stream ends with what was used; counts_each: each of its pieces says what was used so far. notes: what of the
    body had no effect, as clauses.
    """

    generation: GenerationRequest
    model: str | None
    stream: bool
    include_usage: bool
    counts_each: bool = False
    notes: tuple[str, ...] = ()


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


class Dialect:
    """What the surfaces of one API have in common; OpenAI's where a surface says nothing else. media_type: of a stream."""

    media_type = "text/event-stream; charset=utf-8"

    def asked_by(self, shelf: Shelf) -> Self:  # noqa: ARG002  few surfaces keep anything
        """The surface for one request of whoever has this shelf of kept answers."""
        return self

    def comment(self, text: str) -> bytes:
        """What goes out in a stream for people and to keep it alive; clients skip it."""
        return comment(text)

    def at_once(self, request: ApiRequest, *, model: str, created: int) -> dict[str, Any] | None:  # noqa: ARG002
        """See `Surface`."""
        return None

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

    def at_once(self, request: ApiRequest, *, model: str, created: int) -> dict[str, Any] | None:
        """The answer to a request for which nothing is generated; None where something is."""
        ...

    def comment(self, text: str) -> bytes: ...

    def failure(self, error: ApiError) -> bytes: ...

    def refusal(self, error: ApiError) -> dict[str, Any]: ...
