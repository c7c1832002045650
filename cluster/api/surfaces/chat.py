"""OpenAI's chat completions: POST /v1/chat/completions, messages in, an assistant's message out."""

from typing import Any

from cluster.api.accounts import accounts, usage
from cluster.api.events import DONE, TextEvent, as_json, event
from cluster.api.fields import Check, Notes, check_all, flag, hint, mapping, one_of, only, refuse, text
from cluster.api.parameters import COMMON, api_request, token_limit, understood
from cluster.api.surface import AnswerFormat, ApiRequest
from cluster.serving.requests import ChatPrompt, Finished, Routed
from protocol.errors import ApiError, BadRequest

ROLES = {"system": "system", "developer": "system", "user": "user", "assistant": "assistant", "tool": "tool"}
_TEXT_PARTS = ("text", "input_text", "output_text")


def messages_list(name: str, value: Any) -> list[Any]:
    if type(value) is not list or not value:
        raise refuse(name, "a list of at least one message", value)
    return value


def chat_messages(messages: list[Any], notes: Notes) -> tuple[dict[str, str], ...]:
    """Messages, their content flattened to text and "developer" called "system"."""
    return tuple(_message(f"messages[{index}]", item, notes) for index, item in enumerate(messages))


def response_format(name: str, value: Any) -> None:
    if value != {"type": "text"}:
        raise BadRequest(f'{name} must be {{"type": "text"}}: other formats are not supported', param=name)


FIELDS: dict[str, Check] = {
    **COMMON,
    "messages": messages_list,
    "max_completion_tokens": token_limit,
    "logprobs": only("log probabilities", False),
    "top_logprobs": only("log probabilities", 0),
    "tools": only("tool calls", []),
    "tool_choice": only("tool calls", "none", "auto"),
    "parallel_tool_calls": flag,
    "functions": only("function calls", []),
    "function_call": only("function calls", "none", "auto"),
    "response_format": response_format,
    "modalities": only("other modalities than text", ["text"], []),
    "audio": only("audio"),
    "reasoning_effort": hint("none"),
    "reasoning": hint({}),
    "web_search_options": only("web search"),
}


class Chat:
    """See the module."""

    path = "/v1/chat/completions"

    def parse(self, body: dict[str, Any], notes: Notes) -> ApiRequest:
        """See `Surface`."""
        fields = check_all(understood(body), FIELDS, notes)
        if "messages" not in fields:
            raise BadRequest("messages is missing; send a list of chat messages", param="messages")
        older, newer = fields.get("max_tokens"), fields.get("max_completion_tokens")
        if older is not None and newer is not None and older != newer:
            raise BadRequest("max_tokens and max_completion_tokens differ; send one of them", param="max_tokens")
        limit = {"max_tokens": older if newer is None else newer}
        return api_request(fields | limit, ChatPrompt(chat_messages(fields["messages"], notes)), "messages", notes)

    def answer(self, request: ApiRequest, routed: Routed, *, model: str, created: int) -> AnswerFormat:
        """See `Surface`."""
        return _ChatCompletion(request, routed, model=model, created=created)

    def failure(self, error: ApiError) -> bytes:
        """See `Surface`."""
        return event(error.body())


class _ChatCompletion:
    """One answer; a stream begins with the role and goes on with pieces of the content."""

    def __init__(self, request: ApiRequest, routed: Routed, *, model: str, created: int) -> None:
        self._request, self._routed = request, routed
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

    def counted(self, text: str, num_tokens: int) -> bytes:
        """See `AnswerFormat`."""
        return event(self._chunk({"content": text}, None) | {"usage": usage(self._routed.prompt_tokens, num_tokens)})

    def closing(self, finished: Finished) -> bytes:
        """The finish reason, usage where it was asked for, and the end mark."""
        last = event(self._chunk({}, finished.finish_reason))
        usage = (
            event(self._head | {"choices": []} | accounts(self._request, self._routed, finished))
            if self._usage
            else b""
        )
        return last + usage + DONE

    def whole(self, text: str, finished: Finished) -> bytes:
        message = {"role": "assistant", "content": text, "refusal": None}
        choice = {"index": 0, "message": message, "logprobs": None, "finish_reason": finished.finish_reason}
        return as_json(self._whole_head | {"choices": [choice]} | accounts(self._request, self._routed, finished))

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
    "tool_call_id": text(0, 256),
    "annotations": hint([]),
    "id": hint(),
    "reasoning_content": hint(""),
    "reasoning": hint(""),
    "cache_control": hint(),
}
_PART: dict[str, Check] = {
    "type": lambda _name, value: value,
    "text": lambda _name, value: value,
    "id": hint(),
    "cache_control": hint(),
    "annotations": hint([]),
}


def _message(name: str, value: Any, notes: Notes) -> dict[str, str]:
    fields = check_all(mapping(name, value), _MESSAGE, notes, f"{name}.")
    if "role" not in fields:
        raise BadRequest(f"{name}.role is missing", param=f"{name}.role")
    if "content" not in fields and fields["role"] != "assistant":
        raise BadRequest(f"{name}.content is missing", param=f"{name}.content")
    message = {"role": ROLES[fields["role"]], "content": _content(f"{name}.content", fields.get("content", ""), notes)}
    return message | {key: fields[key] for key in ("name", "tool_call_id") if key in fields}


def _content(name: str, value: Any, notes: Notes) -> str:
    if type(value) is str:
        return value
    if type(value) is not list:
        raise refuse(name, "a string or a list of text parts", value)
    return "".join(_text_part(f"{name}[{index}]", part, notes) for index, part in enumerate(value))


def _text_part(name: str, part: Any, notes: Notes) -> str:
    kind = mapping(name, part).get("type", "text")
    if kind not in _TEXT_PARTS:
        raise BadRequest(f'{name}.type must be "text": images, audio and files are not supported', param=f"{name}.type")
    fields = check_all(part, _PART, notes, f"{name}.")
    if type(fields.get("text")) is not str:
        raise refuse(f"{name}.text", "a string", fields.get("text"))
    text: str = fields["text"]
    return text
