"""What a surface is: one way to ask for a generation over HTTP, with its own path, body and answer.

A surface is a file in `surfaces/` and an entry in its tuple. Nothing else knows how many there are: `app` makes a route
of each, `generation` runs any.
"""

from typing import Any, Protocol

import msgspec

from cluster.api.fields import Notes
from cluster.serving.requests import Finished, GenerationRequest, Routed
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

    A stream is `opening`, `text` for each piece (`counted` where the tokens so far are to be said), and `closing`.
    """

    def opening(self) -> bytes: ...

    def text(self, text: str) -> bytes: ...

    def counted(self, text: str, num_tokens: int) -> bytes: ...

    def closing(self, finished: Finished) -> bytes: ...

    def whole(self, text: str, finished: Finished) -> bytes: ...


class Surface(Protocol):
    """One way to ask. path: where it takes POST requests."""

    path: str

    def parse(self, body: dict[str, Any], notes: Notes) -> ApiRequest:
        """The request that a JSON body asks for; what of it has no effect goes to `notes`. Raises BadRequest naming the field."""
        ...

    def answer(self, request: ApiRequest, routed: Routed, *, model: str, created: int) -> AnswerFormat:
        """The format of this request's answer. model: the id to answer with; created: Unix seconds."""
        ...

    def failure(self, error: ApiError) -> bytes:
        """How a stream ends that has begun and cannot go on, as events."""
        ...
