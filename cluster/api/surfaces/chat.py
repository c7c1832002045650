"""OpenAI's chat completions: POST /v1/chat/completions, messages in, an assistant's message out."""

from typing import Any

from cluster.api.accounts import accounts
from cluster.api.events import DONE, TextEvent, as_json, event
from cluster.api.fields import Check, check_all, flag, ignored, integer, mapping, one_of, only, refuse, text, unknown
from cluster.api.parameters import COMMON, MAX_TOKEN_ID, api_request
from cluster.api.surface import AnswerFormat, ApiRequest
from cluster.serving.requests import ChatPrompt, Finished, Routed
from protocol.errors import ApiError, BadRequest

ROLES = {"system": "system", "developer": "system", "user": "user", "assistant": "assistant"}


def chat_messages(name: str, value: Any) -> tuple[dict[str, str], ...]:
    """A non-empty list of messages, their content flattened to text and "developer" called "system"."""
    if type(value) is not list or not value:
        raise refuse(name, "a list of at least one message", value)
    return tuple(_message(f"{name}[{index}]", item) for index, item in enumerate(value))


def response_format(name: str, value: Any) -> None:
    if value != {"type": "text"}:
        raise BadRequest(f'{name} must be {{"type": "text"}}: other formats are not supported', param=name)


FIELDS: dict[str, Check] = {
    **COMMON,
    "messages": chat_messages,
    "max_completion_tokens": integer(1, MAX_TOKEN_ID),
    "logprobs": only("log probabilities", False),
    "top_logprobs": only("log probabilities", 0),
    "tools": only("tool calls", []),
    "tool_choice": only("tool calls", "none"),
    "parallel_tool_calls": ignored(flag),
    "functions": only("function calls", []),
    "function_call": only("function calls", "none"),
    "response_format": response_format,
    "modalities": only("other modalities than text", ["text"], []),
    "audio": only("audio"),
    "prediction": only("a predicted output"),
    "reasoning_effort": only("reasoning", "none"),
    "verbosity": only("another verbosity", "medium"),
    "web_search_options": only("web search"),
}


class Chat:
    """See the module."""

    path = "/v1/chat/completions"

    def parse(self, body: dict[str, Any]) -> ApiRequest:
        """See `Surface`."""
        fields = check_all(body, FIELDS)
        if "messages" not in fields:
            raise BadRequest("messages is missing; send a list of chat messages", param="messages")
        older, newer = fields.get("max_tokens"), fields.get("max_completion_tokens")
        if older is not None and newer is not None and older != newer:
            raise BadRequest("max_tokens and max_completion_tokens differ; send one of them", param="max_tokens")
        limit = {"max_tokens": older if newer is None else newer}
        return api_request(fields | limit, ChatPrompt(fields["messages"]), "messages")

    def answer(self, request: ApiRequest, routed: Routed, *, model: str, created: int) -> AnswerFormat:
        """See `Surface`."""
        return _ChatCompletion(request, routed, model=model, created=created)

    def failure(self, error: ApiError) -> bytes:
        """See `Surface`."""
        return event(error.body())


class _ChatCompletion:
    """One answer; a stream begins with the role and goes on with pieces of the content."""

    def __init__(self, request: ApiRequest, routed: Routed, *, model: str, created: int) -> None:
        self._routed = routed
        self._usage: dict[str, None] = {"usage": None} if request.include_usage else {}
        self._whole_head = {
            "id": f"chatcmpl-{routed.request_id}",
            "object": "chat.completion",
            "created": created,
            "model": model,
        }
        self._head = self._whole_head | {"object": "chat.completion.chunk"}
        self.text = TextEvent(lambda text: self._chunk({"content": text}, None)).of

    def opening(self) -> bytes:
        return event(self._chunk({"role": "assistant", "content": ""}, None))

    def closing(self, finished: Finished) -> bytes:
        """The finish reason, usage where it was asked for, and the end mark."""
        last = event(self._chunk({}, finished.finish_reason))
        usage = event(self._head | {"choices": []} | accounts(self._routed, finished)) if self._usage else b""
        return last + usage + DONE

    def whole(self, text: str, finished: Finished) -> bytes:
        message = {"role": "assistant", "content": text, "refusal": None}
        choice = {"index": 0, "message": message, "logprobs": None, "finish_reason": finished.finish_reason}
        return as_json(self._whole_head | {"choices": [choice]} | accounts(self._routed, finished))

    def _chunk(self, delta: dict[str, str], finish_reason: str | None) -> dict[str, Any]:
        choice = {"index": 0, "delta": delta, "logprobs": None, "finish_reason": finish_reason}
        return self._head | {"choices": [choice]} | self._usage


_MESSAGE: dict[str, Check] = {
    "role": one_of(*ROLES),
    "content": lambda _name, value: value,
    "name": text(1, 64),
    # What the official client puts into an assistant message that is sent back.
    "refusal": only("a refusal"),
    "audio": only("audio"),
    "function_call": only("function calls"),
    "tool_calls": only("tool calls", []),
    "annotations": only("annotations", []),
}


def _message(name: str, value: Any) -> dict[str, str]:
    fields = check_all(mapping(name, value), _MESSAGE, f"{name}.")
    if "role" not in fields:
        raise BadRequest(f"{name}.role is missing", param=f"{name}.role")
    if "content" not in fields and fields["role"] != "assistant":
        raise BadRequest(f"{name}.content is missing", param=f"{name}.content")
    message = {"role": ROLES[fields["role"]], "content": _content(f"{name}.content", fields.get("content", ""))}
    return message | ({"name": fields["name"]} if "name" in fields else {})


def _content(name: str, value: Any) -> str:
    if type(value) is str:
        return value
    if type(value) is not list:
        raise refuse(name, "a string or a list of text parts", value)
    return "".join(_text_part(f"{name}[{index}]", part) for index, part in enumerate(value))


def _text_part(name: str, part: Any) -> str:
    kind = mapping(name, part).get("type")
    if kind != "text":
        raise BadRequest(f'{name}.type must be "text": images, audio and files are not supported', param=f"{name}.type")
    if type(part.get("text")) is not str:
        raise refuse(f"{name}.text", "a string", part.get("text"))
    for key in part:
        if key not in ("type", "text"):
            raise unknown(key, ("type", "text"), f"{name}.")
    return part["text"]
