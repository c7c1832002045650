"""OpenAI's responses: POST /v1/responses, items in, items out, and each answer kept so that the next request can go on from it.

Nothing is done here that a response could ask a server to do: no tool runs, no file is read.
"""

import time
from typing import Any

import msgspec

from cluster.api.answered import Shelf
from cluster.api.fields import Check, Notes, anything, check_all, flag, hint, mapping, mapping_of, only, text
from cluster.api.forced_tools import AUTO, chosen, tool_choice
from cluster.api.parameters import COMMON, SYNONYMS, api_request, said_by, token_limit, understood, understood_schema
from cluster.api.schemas import Schema, described
from cluster.api.structured import response_format
from cluster.api.surface import AnswerFormat, ApiRequest, Dialect
from cluster.api.surfaces.response_answer import ResponseAnswer, ResponseRequest, failed_early
from cluster.api.surfaces.response_items import (
    by_id,
    decoded,
    functions_of,
    input_schema,
    items_of,
    messages_of,
    tools_of_any_kind,
)
from cluster.api.template_options import TEMPLATE_FIELDS, template_options
from cluster.serving.requests import ChatPrompt, Routed
from protocol.errors import ApiError, BadRequest, NotFound

_TEXT: dict[str, Check] = {"format": response_format, "verbosity": hint("medium")}
FIELDS: dict[str, Check] = {
    **COMMON,
    **TEMPLATE_FIELDS,
    "input": described(input_schema)(anything),
    "instructions": text(0, 2**24),
    "max_output_tokens": token_limit,
    "tools": tools_of_any_kind,
    "tool_choice": tool_choice,
    "parallel_tool_calls": flag,
    "text": mapping_of(_TEXT),
    "previous_response_id": text(1, 256),
    "store": flag,
    "metadata": mapping,
    "top_logprobs": only("log probabilities", 0),
    "background": only("an answer in the background", False),
    "prompt": only("a prompt that is kept elsewhere"),
    "include": hint([]),
    "truncation": hint("disabled"),
    "max_tool_calls": hint(),
    "client_metadata": hint({}),
}


class Responses(Dialect):
    """See the module. shelf: the answers of whoever asks, None where none are kept.

    One is made for each request (`asked_by`), and knows the answer that it gave: an error that ends its stream is part of it.
    """

    path = "/v1/responses"

    def __init__(self, shelf: Shelf | None = None) -> None:
        self._shelf = shelf
        self._answer: ResponseAnswer | None = None

    def __repr__(self) -> str:
        return f"Responses({self._shelf!r})"

    def asked_by(self, shelf: Shelf) -> "Responses":
        """See `Dialect`."""
        return Responses(shelf)

    def parse(self, body: dict[str, Any], notes: Notes) -> ApiRequest:
        """See `Surface`. Raises NotFound, too, for what was to go on and is not kept."""
        fields = understood(body, FIELDS, notes)
        said = check_all(fields.get("text", {}), _TEXT, notes, "text.")
        if "input" not in fields:
            raise BadRequest("input is missing; send a text or a list of items", param="input")
        before = self._kept_items(fields.get("previous_response_id"))
        items = items_of("input", fields["input"], notes, self._kept_item)
        messages = messages_of(fields.get("instructions"), [*map(decoded, before.values()), *items])
        if not messages:
            raise BadRequest("input holds nothing to answer; send a message", param="input")
        functions = functions_of("tools", fields.get("tools", []), notes)
        tools = chosen(fields.get("tool_choice", AUTO), functions)
        prompt = ChatPrompt(
            messages,
            tools.tools,
            options=template_options(fields, notes),
            one_call=not fields.get("parallel_tool_calls", True),
            forced=tools.forced,
        )
        limit = {"max_tokens": said_by(fields, ("max_output_tokens", "max_tokens", *SYNONYMS["max_tokens"]), notes)}
        asked = api_request(fields | said | limit, prompt, "input", notes, tools.structure)
        keeps = fields.get("store", True)
        return ResponseRequest(
            **msgspec.structs.asdict(asked),
            echoed=_echoed(fields, asked) | _as_asked(body),
            inputs=by_id(before, items) if keeps else {},
            shelf=self._shelf if keeps else None,
        )

    def schema(self) -> Schema:
        """See `Surface`."""
        return understood_schema(FIELDS, ["input"])

    def answer(self, request: ApiRequest, routed: Routed, *, model: str, created: int) -> AnswerFormat:
        """See `Surface`."""
        assert isinstance(request, ResponseRequest), request
        self._answer = ResponseAnswer(request, routed, model=model, created=created)
        return self._answer

    def comment(self, text: str) -> bytes:
        """See `Dialect`; and an event beside it, since clients of this API wait only for events."""
        return super().comment(text) + (b"" if self._answer is None else self._answer.going_on())

    def failure(self, error: ApiError) -> bytes:
        """See `Dialect`."""
        return failed_early(error, int(time.time())) if self._answer is None else self._answer.failed(error)

    def _kept_items(self, answer_id: str | None) -> dict[str, bytes]:
        """What an answer goes on from."""
        if answer_id is None:
            return {}
        kept = None if self._shelf is None else self._shelf.find(answer_id)
        if kept is None:
            error = NotFound(
                f"previous_response_id {answer_id!r} is no response that is kept here; send its items as input",
                param="previous_response_id",
            )
            error.code = "previous_response_not_found"
            raise error
        return kept.items

    def _kept_item(self, item_id: str) -> bytes | None:
        return None if self._shelf is None else self._shelf.item(item_id)


def _as_asked(body: dict[str, Any]) -> dict[str, Any]:
    """What a response says in the words of its request."""
    text_format = (body.get("text") or {}).get("format") or {"type": "text"}
    return {"text": {"format": text_format}, "tool_choice": body.get("tool_choice") or "auto"}


def _echoed(fields: dict[str, Any], asked: ApiRequest) -> dict[str, Any]:
    """What a response says of its request."""
    sampling = asked.generation.sampling
    return {
        "instructions": fields.get("instructions"),
        "max_output_tokens": asked.generation.max_tokens,
        "metadata": fields.get("metadata", {}),
        "parallel_tool_calls": fields.get("parallel_tool_calls", True),
        "previous_response_id": fields.get("previous_response_id"),
        "reasoning": {"effort": fields.get("reasoning", {}).get("effort"), "summary": None},
        "store": fields.get("store", True),
        "temperature": sampling.temperature,
        "tools": fields.get("tools", []),
        "top_p": sampling.top_p,
        "truncation": "disabled",
    }
