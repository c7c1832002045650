"""Ollama's API for generating: POST /api/chat and POST /api/generate. Their streams are lines of JSON, and the default.

What its clients ask for beside that is in `cluster.api.ollama_routes`.
"""

import contextlib
from collections.abc import Callable
from datetime import UTC, datetime
from typing import Any

import msgspec

from cluster.api.accounts import accounts
from cluster.api.events import TextEvent, as_json, line
from cluster.api.fields import Check, Notes, any_text, check_all, flag, hint, mapping, only, refuse, text
from cluster.api.parameters import COMMON, api_request, understood, understood_schema
from cluster.api.schemas import Schema, described, list_of, object_schema
from cluster.api.structured import ollama_format
from cluster.api.surface import AnswerFormat, ApiRequest, Dialect
from cluster.api.surfaces.chat import MESSAGE, chat_messages, tools_list
from cluster.serving.requests import ChatPrompt, Delta, Finished, Prompt, Routed, TextPrompt, ToolCall
from protocol.errors import ApiError, BadRequest, as_sentence

_EFFORTS = ("low", "medium", "high")
# Of `options`: how a model is loaded and run there, where nothing of it is for the caller to say here.
_OF_THE_RUNNER = (
    "num_batch", "num_gpu", "main_gpu", "num_thread", "num_keep", "numa", "low_vram", "f16_kv", "use_mmap", "use_mlock",
    "draft_num_predict", "mirostat_tau", "mirostat_eta",
)  # fmt: skip

# A part of an answer, as one of the surfaces has it.
_Piece = Callable[[Delta], dict[str, Any]]


def rfc3339(seconds: int) -> str:
    """A point in time, of Unix seconds."""
    return datetime.fromtimestamp(seconds, UTC).strftime("%Y-%m-%dT%H:%M:%SZ")


@described({"enum": [True, False, *_EFFORTS]})
def thinking(name: str, value: Any) -> dict[str, Any]:
    """What the chat template is told of thinking: whether, and how much where that is said."""
    if type(value) is bool:
        return {"enable_thinking": value}
    if type(value) is not str or value not in _EFFORTS:
        raise refuse(name, 'true, false, "low", "medium" or "high"', value)
    return {"enable_thinking": True, "reasoning_effort": value}


@described(lambda: list_of(_message_schema()))
def maybe_messages(name: str, value: Any) -> list[Any]:
    """Messages, or none, which asks for nothing but that the model is there."""
    if type(value) is not list:
        raise refuse(name, "a list of messages", value)
    return value


_SHARED: dict[str, Check] = {
    **COMMON,
    "think": thinking,
    "format": ollama_format,
    "template": only("another template than the model's own", ""),
    "logprobs": only("log probabilities", False),
    "top_logprobs": only("log probabilities", 0),
    "truncate": hint(),
    "shift": hint(),
    **{name: hint() for name in _OF_THE_RUNNER},
}
CHAT_FIELDS: dict[str, Check] = {**_SHARED, "messages": maybe_messages, "tools": tools_list}
GENERATE_FIELDS: dict[str, Check] = {
    **_SHARED,
    "prompt": any_text,
    "system": any_text,
    "raw": flag,
    "suffix": only("text to insert before", ""),
    "images": only("images", []),
    "context": only("the tokens of an earlier answer; send messages to /api/chat", []),
}
# What a message there has and OpenAI's has not.
_OWN_OF_MESSAGES: dict[str, Check] = {
    "images": only("images", []),
    "thinking": hint(""),
    "tool_name": text(1, 64),
}


def _message_schema() -> Schema:
    """OpenAI's, and what such messages have of their own; none needs content."""
    return object_schema({**MESSAGE, **_OWN_OF_MESSAGES}, ["role"])


class OllamaDialect(Dialect):
    """What both have in common."""

    media_type = "application/x-ndjson"

    def comment(self, text: str) -> bytes:  # noqa: ARG002  nothing in lines of JSON is skipped
        return b""

    def failure(self, error: ApiError) -> bytes:
        return line(self.refusal(error))

    def refusal(self, error: ApiError) -> dict[str, Any]:
        return {"error": as_sentence(str(error), error.param)}


class OllamaChat(OllamaDialect):
    """Messages in, an assistant's message out."""

    path = "/api/chat"

    def parse(self, body: dict[str, Any], notes: Notes) -> ApiRequest:
        """See `Surface`."""
        fields = understood(body, CHAT_FIELDS, notes)
        given = [_as_openai(f"messages[{index}]", item, notes) for index, item in enumerate(fields.get("messages", []))]
        prompt = ChatPrompt(chat_messages(given, notes), fields.get("tools", ()), options=fields.get("think", {}))
        return _streamed(fields, prompt, "messages", notes)

    def schema(self) -> Schema:
        """See `Surface`."""
        return understood_schema(CHAT_FIELDS, [])

    def answer(self, request: ApiRequest, routed: Routed, *, model: str, created: int) -> AnswerFormat:
        """See `Surface`."""
        return _OllamaAnswer(request, routed, _in_message, head=_head(model, created))

    def at_once(self, request: ApiRequest, *, model: str, created: int) -> dict[str, Any] | None:
        """See `Surface`."""
        return _loaded(request, _in_message, _head(model, created))


class OllamaGenerate(OllamaDialect):
    """A prompt in, text out: as a user's message, or `raw`."""

    path = "/api/generate"

    def parse(self, body: dict[str, Any], notes: Notes) -> ApiRequest:
        """See `Surface`."""
        fields = understood(body, GENERATE_FIELDS, notes)
        return _streamed(fields, _prompt(fields, notes), "prompt", notes)

    def schema(self) -> Schema:
        """See `Surface`."""
        return understood_schema(GENERATE_FIELDS, [])

    def answer(self, request: ApiRequest, routed: Routed, *, model: str, created: int) -> AnswerFormat:
        """See `Surface`."""
        return _OllamaAnswer(request, routed, _in_response, head=_head(model, created))

    def at_once(self, request: ApiRequest, *, model: str, created: int) -> dict[str, Any] | None:
        """See `Surface`."""
        return _loaded(request, _in_response, _head(model, created))


def _streamed(fields: dict[str, Any], prompt: Prompt, prompt_field: str, notes: Notes) -> ApiRequest:
    """A stream, unless the fields say otherwise."""
    return api_request({"stream": True} | fields, prompt, prompt_field, notes)


def _as_openai(name: str, value: Any, notes: Notes) -> dict[str, Any]:
    """A message in OpenAI's words; what is neither's stays."""
    given = {key: item for key, item in mapping(name, value).items() if item is not None}
    own = check_all(
        {key: item for key, item in given.items() if key in _OWN_OF_MESSAGES}, _OWN_OF_MESSAGES, notes, f"{name}."
    )
    rest = {key: item for key, item in given.items() if key not in _OWN_OF_MESSAGES}
    return {"content": ""} | ({"name": own["tool_name"]} if "tool_name" in own else {}) | rest


def _prompt(fields: dict[str, Any], notes: Notes) -> Prompt:
    prompt, system = fields.get("prompt", ""), fields.get("system", "")
    if not prompt:
        return TextPrompt("")
    if not fields.get("raw", False):
        said = [("system", system), ("user", prompt)] if system else [("user", prompt)]
        messages = tuple({"role": role, "content": content} for role, content in said)
        return ChatPrompt(messages, options=fields.get("think", {}))
    if system:
        raise BadRequest("system has no place in a raw prompt; leave out one of them", param="system")
    if "think" in fields:
        notes.without_effect("think", GENERATE_FIELDS)
    return TextPrompt(prompt)


def _head(model: str, created: int) -> dict[str, Any]:
    return {"model": model, "created_at": rfc3339(created)}


def _loaded(request: ApiRequest, piece: _Piece, head: dict[str, Any]) -> dict[str, Any] | None:
    """The answer to an empty prompt, which there asks for the model to be loaded."""
    prompt = request.generation.prompt
    is_empty = not prompt.messages if isinstance(prompt, ChatPrompt) else prompt == TextPrompt("")
    return head | piece(_said()) | {"done": True, "done_reason": "load"} if is_empty else None


def _said(text: str = "") -> Delta:
    return Delta(text=text, token_ids=())


def _in_message(delta: Delta) -> dict[str, Any]:
    calls = {"tool_calls": [_called(call) for call in delta.calls]} if delta.calls else {}
    return {"message": {"role": "assistant", "content": delta.text} | _thought(delta) | calls}


def _in_response(delta: Delta) -> dict[str, Any]:
    return {"response": delta.text} | _thought(delta)


def _thought(delta: Delta) -> dict[str, str]:
    return {"thinking": delta.reasoning} if delta.reasoning else {}


def _called(call: ToolCall) -> dict[str, Any]:
    """With its arguments as an object, whatever the model made of them."""
    arguments: Any = call.arguments
    with contextlib.suppress(msgspec.DecodeError):
        arguments = msgspec.json.decode(call.arguments)
    named = arguments if type(arguments) is dict else {"arguments": arguments}
    return {"id": call.id, "function": {"name": call.name, "arguments": named}}


class _OllamaAnswer:
    """One answer; whole and in pieces it is the same object. piece: what of it is the surface's own."""

    def __init__(self, request: ApiRequest, routed: Routed, piece: _Piece, *, head: dict[str, Any]) -> None:
        self._request, self._routed = request, routed
        self._piece = piece
        self._head = head
        self.text = TextEvent(lambda text: line(self._part(_said(text)))).of

    def opening(self) -> bytes:
        return b""

    def counted(self, text: str, num_tokens: int) -> bytes:  # noqa: ARG002  only the last object counts there
        return self.text(text)

    def beside(self, delta: Delta) -> bytes:
        """What is thought, and calls, each of them whole."""
        return line(self._part(delta))

    def closing(self, finished: Finished) -> bytes:
        """What the answer took."""
        return line(self._head | self._piece(_said()) | self._ending(finished))

    def whole(self, answer: Delta, finished: Finished) -> bytes:
        return as_json(self._head | self._piece(answer) | self._ending(finished))

    def _part(self, delta: Delta) -> dict[str, Any]:
        return self._head | self._piece(delta) | {"done": False}

    def _ending(self, finished: Finished) -> dict[str, Any]:
        return {
            "done": True,
            "done_reason": "length" if finished.finish_reason == "length" else "stop",
            "total_duration": _nanoseconds(finished.total_s),
            "load_duration": 0,
            "prompt_eval_count": finished.prompt_tokens,
            "prompt_eval_duration": _nanoseconds(finished.ttft_s),
            "eval_count": finished.completion_tokens,
            "eval_duration": _nanoseconds(finished.total_s - finished.ttft_s),
            "tandem": accounts(self._request, self._routed, finished)["tandem"],
        }


def _nanoseconds(seconds: float) -> int:
    """At least one: clients divide by it."""
    return max(round(seconds * 1e9), 1)
