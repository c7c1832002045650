"""What goes back: OpenAI's response objects and stream chunks, as bytes.

A chunk of a stream is three pieces of bytes put together, because thousands are written each second: everything but the
text is encoded once per answer.
"""

from typing import Any, Literal

import msgspec

from cluster.serving.requests import Finished, ModelInfo, Progress, Routed, Waiting

Kind = Literal["chat", "completion"]

DONE = b"data: [DONE]\n\n"
_MARK = "\ue000text\ue000"
# Lines to many clients (Python's str.splitlines), though not to the event stream format: so they go out escaped.
_LINE_SEPARATORS = tuple((mark.encode(), b"\\u%04x" % ord(mark)) for mark in "\x85\u2028\u2029")
_json = msgspec.json.Encoder()


class AnswerFormat:
    """The wire format of one answer, as a whole or as a stream.

    kind: "chat" (/v1/chat/completions) or "completion" (/v1/completions); created: Unix seconds.
    """

    def __init__(self, kind: Kind, routed: Routed, *, model: str, created: int, include_usage: bool) -> None:
        self._kind = kind
        self._routed = routed
        self._usage: dict[str, None] = {"usage": None} if include_usage else {}
        prefix, stream_object = ("chatcmpl", "chat.completion.chunk") if kind == "chat" else ("cmpl", "text_completion")
        self._head = {
            "id": f"{prefix}-{routed.request_id}",
            "object": stream_object,
            "created": created,
            "model": model,
        }
        template = self._chunk({"content": _MARK} if kind == "chat" else _MARK, None)
        self._before_text, self._after_text = template.split(_json.encode(_MARK))

    def opening(self) -> bytes:
        """What a stream begins with: for chat, the role."""
        return self._chunk({"role": "assistant", "content": ""}, None) if self._kind == "chat" else b""

    def text(self, text: str) -> bytes:
        encoded = _json.encode(text)
        if not text.isascii():
            for separator, escaped in _LINE_SEPARATORS:
                encoded = encoded.replace(separator, escaped)
        return self._before_text + encoded + self._after_text

    def closing(self, finished: Finished) -> bytes:
        """The finish reason, usage where it was asked for, and the end mark."""
        last = self._chunk({} if self._kind == "chat" else "", finished.finish_reason)
        return last + (self._usage_chunk(finished) if self._usage else b"") + DONE

    def whole(self, text: str, finished: Finished) -> bytes:
        """The answer as one object, for a request without `stream`."""
        chat = self._kind == "chat"
        content = {"message": {"role": "assistant", "content": text, "refusal": None}} if chat else {"text": text}
        choice = {"index": 0, **content, "logprobs": None, "finish_reason": finished.finish_reason}
        head = self._head | ({"object": "chat.completion"} if chat else {})
        return _json.encode({**head, "choices": [choice], **self._accounts(finished)})

    def _chunk(self, delta: Any, finish_reason: str | None) -> bytes:
        content = {"delta" if self._kind == "chat" else "text": delta}
        choice = {"index": 0, **content, "logprobs": None, "finish_reason": finish_reason}
        return event({**self._head, "choices": [choice], **self._usage})

    def _usage_chunk(self, finished: Finished) -> bytes:
        return event({**self._head, "choices": [], **self._accounts(finished)})

    def _accounts(self, finished: Finished) -> dict[str, Any]:
        return {
            "usage": {
                "prompt_tokens": finished.prompt_tokens,
                "completion_tokens": finished.completion_tokens,
                "total_tokens": finished.prompt_tokens + finished.completion_tokens,
                "prompt_tokens_details": {"cached_tokens": finished.cached_tokens},
            },
            "tandem": {
                "strategy": self._routed.strategy,
                "reason": self._routed.reason,
                "workers": self._routed.workers,
                "ttft_s": finished.ttft_s,
                "decode_tokens_per_s": finished.decode_tokens_per_s,
                "token_ids": finished.token_ids,
                **({"resumed": finished.resumed} if finished.resumed else {}),
                **({"notes": finished.notes} if finished.notes else {}),
            },
        }


def event(data: dict[str, Any]) -> bytes:
    """One server-sent event."""
    return b"data: " + _json.encode(data) + b"\n\n"


def progress_comment(progress: Progress) -> bytes:
    """A comment in the event stream, which clients skip and people see."""
    return b": prefill %d/%d\n\n" % (progress.processed, progress.total)


def waiting_comment(waiting: Waiting) -> bytes:
    """As `progress_comment`."""
    return f": waiting for {', '.join(waiting.workers) or 'a plan'}\n\n".encode()


def model_object(model: ModelInfo) -> dict[str, Any]:
    return {"id": model.id, "object": "model", "created": model.created, "owned_by": "tandem"}
