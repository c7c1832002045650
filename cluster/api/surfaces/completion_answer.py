"""The answer to raw prompts: OpenAI's text completion, which is the same object whole and in pieces."""

from collections import defaultdict
from collections.abc import Sequence
from typing import Any

from cluster.api.accounts import accounts, usage
from cluster.api.events import DONE, as_json, event
from cluster.api.likelihoods import TextOffsets, text_logprobs
from cluster.api.surface import ApiRequest, ChoiceAnswer
from cluster.serving.requests import Delta, Finished, Routed


class TextCompletion:
    """One answer; see `ChoicesFormat`."""

    def __init__(self, request: ApiRequest, routed: Routed, *, model: str, created: int) -> None:
        self._request, self._routed = request, routed
        self._usage: dict[str, None] = {"usage": None} if request.include_usage else {}
        self._shows_logprobs = request.choices is not None and request.choices.logprobs is not None
        self._head = {
            "id": f"cmpl-{routed.request_id}",
            "object": "text_completion",
            "created": created,
            "model": model,
        }
        self._offsets: defaultdict[int, TextOffsets] = defaultdict(TextOffsets)  # by choice

    def __repr__(self) -> str:
        return f"TextCompletion({self._head['id']})"

    def opening(self, index: int, echo: Delta | None = None) -> bytes:
        """The prompt, where it is echoed."""
        if echo is None:
            return b""
        return event(self._chunk(_choice(index, echo.text, self._logprobs(index, echo, is_echo=True))))

    def piece(self, index: int, delta: Delta, used: tuple[int, int] | None = None) -> bytes:
        """Text; there is nothing beside it."""
        counted = {} if used is None else {"usage": usage(*used)}
        return event(self._chunk(_choice(index, delta.text, self._logprobs(index, delta))) | counted)

    def ending(self, index: int, finished: Finished) -> bytes:
        """The finish reason."""
        return event(self._chunk(_choice(index, "", None, finished.finish_reason)))

    def closing(self, total: Finished) -> bytes:
        """Usage where it was asked for, and the end mark."""
        if not self._usage:
            return DONE
        return event(self._head | {"choices": []} | accounts(self._request, self._routed, total)) + DONE

    def whole(self, answers: Sequence[ChoiceAnswer], total: Finished) -> bytes:
        """See `ChoicesFormat`."""
        choices = [self._whole_choice(index, answer) for index, answer in enumerate(answers)]
        return as_json(self._head | {"choices": choices} | accounts(self._request, self._routed, total))

    def _whole_choice(self, index: int, choice: ChoiceAnswer) -> dict[str, Any]:
        answer, echo = choice.answer, choice.echo or Delta(text="", token_ids=())
        before, after = self._logprobs(index, echo, is_echo=True), self._logprobs(index, answer)
        logprobs = None if before is None or after is None else {name: before[name] + after[name] for name in after}
        return _choice(index, echo.text + answer.text, logprobs, choice.finished.finish_reason)

    def _logprobs(self, index: int, delta: Delta, *, is_echo: bool = False) -> dict[str, Any] | None:
        if not self._shows_logprobs:
            return None
        offsets = self._offsets[index]
        return text_logprobs(delta.scores, offsets.of_echo(delta) if is_echo else offsets.of(delta.scores))

    def _chunk(self, choice: dict[str, Any]) -> dict[str, Any]:
        return self._head | {"choices": [choice]} | self._usage


def _choice(index: int, text: str, logprobs: dict[str, Any] | None, finish_reason: str | None = None) -> dict[str, Any]:
    return {"index": index, "text": text, "logprobs": logprobs, "finish_reason": finish_reason}
