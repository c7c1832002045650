"""OpenAI's chat completions: POST /v1/chat/completions, messages in, an assistant's message out."""

import contextlib
from collections.abc import Mapping
from typing import Any

import msgspec

from cluster.api.choices import OneChoice, choices_of, num_choices, num_logprobs
from cluster.api.fields import (
    Check,
    Notes,
    any_text,
    anything,
    check_all,
    flag,
    hint,
    mapping,
    one_of,
    only,
    refuse,
    text,
)
from cluster.api.forced_tools import AUTO, chosen, tool_choice
from cluster.api.parameters import COMMON, SYNONYMS, api_request, said_by, token_limit, understood, understood_schema
from cluster.api.schemas import Schema, any_of, described, list_of, object_schema
from cluster.api.surface import AnswerFormat, ApiRequest, ChoicesFormat, Dialect
from cluster.api.surfaces.chat_answer import ChatCompletion
from cluster.api.template_options import TEMPLATE_FIELDS, template_options
from cluster.serving.requests import ChatPrompt, Routed
from protocol.errors import BadRequest

ROLES = {"system": "system", "developer": "system", "user": "user", "assistant": "assistant", "tool": "tool"}
_MOST_TOOLS = 256
_NAME = text(1, 256)
_TEXT_PARTS = ("text", "input_text", "output_text")


@described(lambda: list_of(message_schema(MESSAGE), minItems=1))
def messages_list(name: str, value: Any) -> list[Any]:
    if type(value) is not list or not value:
        raise refuse(name, "a list of at least one message", value)
    return value


def chat_messages(messages: list[Any], notes: Notes) -> tuple[dict[str, Any], ...]:
    """Messages, their content flattened to text and "developer" called "system"."""
    return tuple(_message(f"messages[{index}]", item, notes) for index, item in enumerate(messages))


@described(lambda: list_of({"type": "object", "properties": {"function": _called_schema()}, "required": ["function"]}))
def earlier_calls(name: str, value: Any) -> list[dict[str, Any]]:
    """Calls that the model made, as its template takes them: with their arguments as an object, where they are one."""
    if type(value) is not list:
        raise refuse(name, "a list of calls", value)
    return [_earlier_call(f"{name}[{index}]", call) for index, call in enumerate(value)]


def _called_schema() -> Schema:
    return {"type": "object", "properties": {"name": _NAME.schema}, "required": ["name"]}


def _earlier_call(name: str, value: Any) -> dict[str, Any]:
    function = mapping(f"{name}.function", mapping(name, value).get("function"))
    _NAME(f"{name}.function.name", function.get("name"))
    arguments = function.get("arguments") or {}
    if type(arguments) is str:
        with contextlib.suppress(msgspec.DecodeError):  # what a model made up stays as it was
            arguments = msgspec.json.decode(arguments)
    called = {"type": "function", "function": {"name": function["name"], "arguments": arguments}}
    return called | ({"id": value["id"]} if type(value.get("id")) is str else {})


@described({"type": "array", "maxItems": _MOST_TOOLS})
def any_tools(name: str, value: Any) -> list[Any]:
    """A list of tools, whatever their form."""
    if type(value) is not list or len(value) > _MOST_TOOLS:
        raise refuse(name, f"a list of at most {_MOST_TOOLS} tools", value)
    return value


def _tool_schema() -> Schema:
    properties = {"type": {"enum": ["function", None]}, "function": _called_schema()}
    return {"type": "object", "properties": properties, "required": ["function"]}


@described(lambda: any_tools.schema | {"items": _tool_schema()})
def tools_list(name: str, value: Any) -> tuple[dict[str, Any], ...]:
    """Functions that may be called, each {"type": "function", "function": {"name": ...}}."""
    for index, tool in enumerate(any_tools(name, value)):
        function = mapping(f"{name}[{index}]", tool).get("function")
        if tool.get("type") not in (None, "function"):
            raise refuse(f"{name}[{index}].type", '"function"', tool.get("type"))
        _NAME(f"{name}[{index}].function.name", mapping(f"{name}[{index}].function", function).get("name"))
    return tuple(value)


FIELDS: dict[str, Check] = {
    **COMMON,
    "messages": messages_list,
    "max_completion_tokens": token_limit,
    "n": num_choices,
    "logprobs": flag,
    "top_logprobs": num_logprobs,
    "tools": tools_list,
    "tool_choice": tool_choice,
    "parallel_tool_calls": flag,
    "functions": only("function calls in their old form; send tools", []),
    "function_call": only("function calls in their old form; send tool_choice", "none", "auto"),
    "modalities": only("other modalities than text", ["text"], []),
    "audio": only("audio"),
    "web_search_options": only("web search"),
    **TEMPLATE_FIELDS,
}


_PART: dict[str, Check] = {
    "type": one_of(*_TEXT_PARTS),
    "text": any_text,
    "id": hint(),
    "cache_control": hint(),
    "annotations": hint([]),
    "logprobs": hint([]),
}


def content_schema() -> Schema:
    """A string, or a list of parts that are text."""
    return any_of({"type": "string"}, list_of(object_schema(_PART, ["text"])))


MESSAGE: dict[str, Check] = {
    "role": one_of(*ROLES),
    "content": described(content_schema)(anything),
    "name": text(1, 64),
    # What the official client puts into an assistant message that is sent back.
    "refusal": only("a refusal"),
    "audio": only("audio"),
    "function_call": only("function calls"),
    "tool_calls": earlier_calls,
    "tool_call_id": text(0, 256),
    "annotations": hint([]),
    "id": hint(),
    "reasoning_content": hint(""),
    "reasoning": hint(""),
    "cache_control": hint(),
}


def message_schema(checks: Mapping[str, Check]) -> Schema:
    """A message of these fields; only the assistant's may be without content."""
    others = [role for role in ROLES if role != "assistant"]
    return any_of(
        object_schema({**checks, "role": one_of(*others)}, ["role", "content"]),
        object_schema({**checks, "role": one_of("assistant")}, ["role"]),
    )


class Chat(Dialect):
    """See the module."""

    path = "/v1/chat/completions"

    def parse(self, body: dict[str, Any], notes: Notes) -> ApiRequest:
        """See `Surface`."""
        fields = understood(body, FIELDS, notes)
        if "messages" not in fields:
            raise BadRequest("messages is missing; send a list of chat messages", param="messages")
        limit = {"max_tokens": said_by(fields, ("max_completion_tokens", "max_tokens", *SYNONYMS["max_tokens"]), notes)}
        tools = chosen(fields.get("tool_choice", AUTO), fields.get("tools", ()))
        prompt = ChatPrompt(
            chat_messages(fields["messages"], notes),
            tools.tools,
            options=template_options(fields, notes),
            one_call=not fields.get("parallel_tool_calls", True),
            forced=tools.forced,
        )
        choices = choices_of(fields, [prompt], _num_likeliest(fields, notes), notes)
        asked = api_request(fields | limit, prompt, "messages", notes, tools.structure)
        return msgspec.structs.replace(asked, choices=choices)

    def schema(self) -> Schema:
        """See `Surface`."""
        return understood_schema(FIELDS, ["messages"])

    def answer(self, request: ApiRequest, routed: Routed, *, model: str, created: int) -> AnswerFormat:
        """See `Surface`."""
        return OneChoice(ChatCompletion(request, routed, model=model, created=created), routed)

    def choices(self, request: ApiRequest, routed: Routed, *, model: str, created: int) -> ChoicesFormat:
        """See `Surface`."""
        return ChatCompletion(request, routed, model=model, created=created)


def _num_likeliest(fields: dict[str, Any], notes: Notes) -> int | None:
    """How many of the likeliest tokens stand beside each one's log probability, None for none at all."""
    num_likeliest: int = fields.get("top_logprobs", 0)
    if fields.get("logprobs", False):
        return num_likeliest
    if num_likeliest:
        notes.without_effect("top_logprobs", ())  # what they would stand beside is not asked for
    return None


def _message(name: str, value: Any, notes: Notes) -> dict[str, Any]:
    fields = check_all(mapping(name, value), MESSAGE, notes, f"{name}.")
    if "role" not in fields:
        raise BadRequest(f"{name}.role is missing", param=f"{name}.role")
    if "content" not in fields and fields["role"] != "assistant":
        raise BadRequest(f"{name}.content is missing", param=f"{name}.content")
    content = content_text(f"{name}.content", fields.get("content", ""), notes)
    message: dict[str, Any] = {"role": ROLES[fields["role"]], "content": content}
    return message | {key: fields[key] for key in ("name", "tool_call_id", "tool_calls") if fields.get(key)}


def content_text(name: str, value: Any, notes: Notes) -> str:
    """A string, or the parts of a list as one. Raises BadRequest for what is no text."""
    if type(value) is str:
        return value
    if type(value) is not list:
        raise refuse(name, "a string or a list of text parts", value)
    return "".join(_text_part(f"{name}[{index}]", part, notes) for index, part in enumerate(value))


def _text_part(name: str, part: Any, notes: Notes) -> str:
    kind = mapping(name, part).get("type")
    if kind is not None and kind not in _TEXT_PARTS:
        raise BadRequest(
            f"{name}.type must be that of text: images, audio and files are not supported", param=f"{name}.type"
        )
    fields = check_all(part, _PART, notes, f"{name}.")
    return any_text(f"{name}.text", fields.get("text"))
