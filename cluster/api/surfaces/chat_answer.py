"""The answer to a chat: OpenAI's completion object, whole or in chunks."""

from collections.abc import Sequence
from typing import Any

import msgspec

from cluster.api.accounts import accounts, usage
from cluster.api.events import DONE, as_json, event
from cluster.api.likelihoods import chat_logprobs
from cluster.api.surface import ApiRequest, ChoiceAnswer
from cluster.serving.requests import Delta, Finished, Routed, Scored, ToolCall


class ChatCompletion:
    """One answer; see `ChoicesFormat`. Each choice of a stream begins with the role and goes on with pieces of the content.

    The token that ends an answer is no part of its message, nor is its log probability.
    """

    def __init__(self, request: ApiRequest, routed: Routed, *, model: str, created: int) -> None:
        self._request, self._routed = request, routed
        self._usage: dict[str, None] = {"usage": None} if request.include_usage else {}
        self._shows_logprobs = request.choices is not None and request.choices.logprobs is not None
        self._whole_head = {
            "id": f"chatcmpl-{routed.request_id}",
            "object": "chat.completion",
            "created": created,
            "model": model,
        }
        self._head = self._whole_head | {"object": "chat.completion.chunk"}
        self._num_calls: dict[int, int] = {}  # by choice

    def __repr__(self) -> str:
        return f"ChatCompletion({self._whole_head['id']})"

    def opening(self, index: int, echo: Delta | None = None) -> bytes:  # noqa: ARG002  no chat is echoed
        """See `ChoicesFormat`."""
        return event(self._chunk(index, {"role": "assistant", "content": ""}))

    def piece(self, index: int, delta: Delta, used: tuple[int, int] | None = None) -> bytes:
        """What is said or thought, or calls: first the name of each, then its arguments."""
        counted = {} if used is None else {"usage": usage(*used)}
        scores, pieces = delta.scores[: len(delta.token_ids)], []
        for part in self._parts(index, delta):
            pieces.append(event(self._chunk(index, part, scores=scores) | counted))
            scores = ()
        return b"".join(pieces)

    def ending(self, index: int, finished: Finished) -> bytes:
        """The finish reason."""
        return event(self._chunk(index, {}, finished.finish_reason))

    def closing(self, total: Finished) -> bytes:
        """Usage where it was asked for, and the end mark."""
        if not self._usage:
            return DONE
        return event(self._head | {"choices": []} | accounts(self._request, self._routed, total)) + DONE

    def whole(self, answers: Sequence[ChoiceAnswer], total: Finished) -> bytes:
        """See `ChoicesFormat`."""
        choices = [self._choice(index, answer) for index, answer in enumerate(answers)]
        return as_json(self._whole_head | {"choices": choices} | accounts(self._request, self._routed, total))

    def _choice(self, index: int, choice: ChoiceAnswer) -> dict[str, Any]:
        answer = choice.answer
        content = answer.text or (None if answer.calls else "")
        message: dict[str, Any] = {"role": "assistant", "content": content, "refusal": None}
        if answer.reasoning:
            message["reasoning_content"] = answer.reasoning
        if answer.calls:
            message["tool_calls"] = [_tool_call(call) for call in answer.calls]
        return {
            "index": index,
            "message": message,
            "logprobs": self._logprobs(answer.scores[: len(choice.finished.token_ids)]),
            "finish_reason": choice.finished.finish_reason,
        }

    def _parts(self, index: int, delta: Delta) -> list[dict[str, Any]]:
        if delta.reasoning:
            return [{"reasoning_content": delta.reasoning}]
        if not delta.calls:
            return [{"content": delta.text}]
        parts = []
        for call in delta.calls:
            number = self._num_calls.get(index, 0)
            arguments = {"index": number, "function": {"arguments": call.arguments}}
            begun = {"index": number} | _tool_call(msgspec.structs.replace(call, arguments=""))
            parts += [{"tool_calls": [each]} for each in (begun, arguments)]
            self._num_calls[index] = number + 1
        return parts

    def _chunk(
        self, index: int, delta: dict[str, Any], finish_reason: str | None = None, scores: Sequence[Scored] = ()
    ) -> dict[str, Any]:
        logprobs = self._logprobs(scores) if scores else None
        choice = {"index": index, "delta": delta, "logprobs": logprobs, "finish_reason": finish_reason}
        return self._head | {"choices": [choice]} | self._usage

    def _logprobs(self, scores: Sequence[Scored]) -> dict[str, Any] | None:
        return chat_logprobs(scores) if self._shows_logprobs else None


def _tool_call(call: ToolCall) -> dict[str, Any]:
    return {"id": call.id, "type": "function", "function": {"name": call.name, "arguments": call.arguments}}
