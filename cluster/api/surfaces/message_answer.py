"""An answer as Anthropic's message: whole, or block by block as a stream of named events; and its errors."""

from collections.abc import Callable
from typing import Any

import msgspec

from cluster.api.accounts import accounts
from cluster.api.events import TextEvent, as_json, event, named_event
from cluster.api.surface import ApiRequest, Dialect
from cluster.serving.requests import Delta, Finished, Routed, ToolCall
from protocol.errors import ApiError, BadRequest, ContextTooLong

_STOP_REASONS = {"stop": "end_turn", "length": "max_tokens", "tool_calls": "tool_use"}
# Of each kind of block: what its pieces are called, and where in them the text is.
_DELTAS = {
    "text": ("text_delta", "text"),
    "thinking": ("thinking_delta", "thinking"),
    "tool_use": ("input_json_delta", "partial_json"),
}
_DELTA_NAME = b"event: content_block_delta\n"
_ERROR_TYPES = {
    400: "invalid_request_error",
    401: "authentication_error",
    403: "permission_error",
    404: "not_found_error",
    405: "invalid_request_error",
    413: "request_too_large",
    429: "rate_limit_error",
    503: "overloaded_error",
    504: "timeout_error",
}


class ThreadRefused(BadRequest):
    """A conversation that the server keeps was asked for; its clients then send all of it each time, if they know this code."""

    code = "thread_unsupported_request"


class Anthropic(Dialect):
    """Anthropic's words for what every stream has, and for errors."""

    def comment(self, text: str) -> bytes:
        """A ping: clients pass over it, and people see what it says."""
        return named_event({"type": "ping", "note": text})

    def failure(self, error: ApiError) -> bytes:
        return named_event(self.refusal(error))

    def refusal(self, error: ApiError) -> dict[str, Any]:
        """Anthropic's error object; the words for too long a prompt are those by which its clients know to shorten it."""
        message = error.body()["error"]["message"]
        if isinstance(error, ContextTooLong):
            message = f"prompt is too long: {message}"
        details = {}
        if isinstance(error, ThreadRefused):
            details = {"details": {"error_code": error.code, "unsupported": [error.param]}}
        kind = _ERROR_TYPES.get(error.status, "api_error")
        return {"type": "error", "error": {"type": kind, "message": message, **details}}


class MessageAnswer:
    """One answer. Of a stream it knows which block is open: text and thoughts go on in it, anything else ends it."""

    def __init__(self, request: ApiRequest, routed: Routed, *, model: str) -> None:
        self._request, self._routed = request, routed
        self._head = {"id": f"msg_{routed.request_id}", "type": "message", "role": "assistant", "model": model}
        self._num_blocks = 0
        self._open: str | None = None
        self._piece: Callable[[str], bytes] = str.encode

    def __repr__(self) -> str:
        return f"MessageAnswer({self._num_blocks} blocks, {self._open} open)"

    def opening(self) -> bytes:
        stop = {"stop_reason": None, "stop_sequence": None}
        message: dict[str, Any] = (
            self._head | {"content": []} | stop | {"usage": _usage(self._routed.prompt_tokens, 0, 0)}
        )
        return named_event({"type": "message_start", "message": message})

    def text(self, text: str) -> bytes:
        """Further text, in a block of text."""
        begun = b"" if self._open == "text" else self._begin({"type": "text", "text": ""})
        return begun + self._further(text)

    def counted(self, text: str, num_tokens: int) -> bytes:  # noqa: ARG002  no event of this API counts before the end
        return self.text(text)

    def beside(self, delta: Delta) -> bytes:
        """Thoughts in a block of their own; each call in one."""
        pieces = []
        if delta.reasoning:
            pieces += (
                [] if self._open == "thinking" else [self._begin({"type": "thinking", "thinking": "", "signature": ""})]
            )
            pieces.append(self._further(delta.reasoning))
        for call in delta.calls:
            pieces.append(self._begin(self._tool_use(call, self._num_blocks) | {"input": {}}))
            pieces.append(self._further(_input(call)))
        return b"".join(pieces)

    def closing(self, finished: Finished) -> bytes:
        """The end of the last block, how it ended and what it used, and the end mark."""
        ended = {"type": "message_delta", "delta": self._stop(finished)} | self._accounts(finished)
        return self._end() + named_event(ended) + named_event({"type": "message_stop"})

    def whole(self, answer: Delta, finished: Finished) -> bytes:
        thoughts = {"type": "thinking", "thinking": answer.reasoning, "signature": ""}
        content = [
            *([thoughts] if answer.reasoning else []),
            *([{"type": "text", "text": answer.text}] if answer.text else []),
            *(
                self._tool_use(call, index) | {"input": msgspec.Raw(_input(call))}
                for index, call in enumerate(answer.calls)
            ),
        ]
        return as_json(self._head | {"content": content} | self._stop(finished) | self._accounts(finished))

    def _begin(self, block: dict[str, Any]) -> bytes:
        """A new block, after the end of the one before."""
        ended, index = self._end(), self._num_blocks
        self._open, self._num_blocks = str(block["type"]), index + 1
        kind, field = _DELTAS[self._open]
        self._piece = TextEvent(
            lambda text: event({"type": "content_block_delta", "index": index, "delta": {"type": kind, field: text}})
        ).of
        return ended + named_event({"type": "content_block_start", "index": index, "content_block": block})

    def _further(self, text: str) -> bytes:
        return _DELTA_NAME + self._piece(text)

    def _end(self) -> bytes:
        if self._open is None:
            return b""
        self._open = None
        return named_event({"type": "content_block_stop", "index": self._num_blocks - 1})

    def _tool_use(self, call: ToolCall, index: int) -> dict[str, Any]:
        return {"type": "tool_use", "id": call.id or f"toolu_{self._routed.request_id}_{index}", "name": call.name}

    def _stop(self, finished: Finished) -> dict[str, Any]:
        """Why it ended. Without a token that ends an answer, a stop string did: which one is known where there was one."""
        strings = self._request.generation.stop
        if finished.finish_reason == "stop" and strings and len(finished.token_ids) == finished.completion_tokens:
            return {"stop_reason": "stop_sequence", "stop_sequence": strings[0] if len(strings) == 1 else None}
        return {"stop_reason": _STOP_REASONS[finished.finish_reason], "stop_sequence": None}

    def _accounts(self, finished: Finished) -> dict[str, Any]:
        used = _usage(finished.prompt_tokens, finished.cached_tokens, finished.completion_tokens)
        return {"usage": used, "tandem": accounts(self._request, self._routed, finished)["tandem"]}


def _usage(prompt_tokens: int, cached_tokens: int, completion_tokens: int) -> dict[str, int]:
    """Tokens, in Anthropic's words: those from the cache are counted apart."""
    return {
        "input_tokens": prompt_tokens - cached_tokens,
        "cache_creation_input_tokens": 0,
        "cache_read_input_tokens": cached_tokens,
        "output_tokens": completion_tokens,
    }


def _input(call: ToolCall) -> str:
    """A call's arguments as the JSON object that clients read; what the model made up instead is the value of one."""
    try:
        is_object = type(msgspec.json.decode(call.arguments or "{}")) is dict
    except (msgspec.DecodeError, RecursionError):
        is_object = False
    return (call.arguments or "{}") if is_object else as_json({"arguments": call.arguments}).decode()
