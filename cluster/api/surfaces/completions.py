"""OpenAI's completions: POST /v1/completions, a raw prompt in, text out."""

from typing import Any

from cluster.api.accounts import accounts, usage
from cluster.api.events import DONE, TextEvent, as_json, event
from cluster.api.fields import MAX_TOKEN_ID, Check, Notes, only, refuse, whole_number
from cluster.api.parameters import COMMON, api_request, understood, understood_schema
from cluster.api.schemas import Schema, any_of, component, described, list_of
from cluster.api.surface import AnswerFormat, ApiRequest, Dialect
from cluster.serving.requests import Delta, Finished, Prompt, Routed, TextPrompt, TokensPrompt
from protocol.errors import BadRequest

TOKEN = described(component("TokenId"))(whole_number(0, MAX_TOKEN_ID))


def _prompt_schema() -> Schema:
    one = any_of({"type": "string"}, list_of(TOKEN.schema))
    return any_of(one, list_of(one, minItems=1, maxItems=1))


@described(_prompt_schema)
def raw_prompt(name: str, value: Any) -> Prompt:
    """One prompt: a string, a list of token ids, or a list that holds exactly one of these. An empty one, or none, stands for the
    beginning of any text.
    """
    if type(value) is list and len(value) == 1 and type(value[0]) in (str, list):
        value = value[0]
    if type(value) is str:
        return TextPrompt(value)
    if type(value) is not list:
        raise refuse(name, "a string or a list of token ids", value)
    if not value:
        return TextPrompt("")
    if type(value[0]) in (str, list):
        raise BadRequest(f"{name} holds {len(value)} prompts; send one prompt in each request", param=name)
    return TokensPrompt(tokens_of(name, value))


def tokens_of(name: str, values: list[Any]) -> tuple[int, ...]:
    """Token ids. Raises BadRequest where there is none."""
    if all(type(item) is int and 0 <= item <= MAX_TOKEN_ID for item in values):
        return tuple(values)
    return tuple(TOKEN(f"{name}[{index}]", item) for index, item in enumerate(values))


FIELDS: dict[str, Check] = {
    **COMMON,
    "prompt": raw_prompt,
    "logprobs": only("log probabilities"),
    "echo": only("the prompt in the answer", False),
    "suffix": only("text to insert before", ""),
    "best_of": only("several answers", 1),
}


class Completions(Dialect):
    """See the module."""

    path = "/v1/completions"

    def parse(self, body: dict[str, Any], notes: Notes) -> ApiRequest:
        """See `Surface`."""
        fields = understood(body, FIELDS, notes)
        return api_request(fields, fields.get("prompt", TextPrompt("")), "prompt", notes)

    def schema(self) -> Schema:
        """See `Surface`."""
        return understood_schema(FIELDS, [])

    def answer(self, request: ApiRequest, routed: Routed, *, model: str, created: int) -> AnswerFormat:
        """See `Surface`."""
        return _TextCompletion(request, routed, model=model, created=created)


class _TextCompletion:
    """One answer; whole and in pieces it is the same object."""

    def __init__(self, request: ApiRequest, routed: Routed, *, model: str, created: int) -> None:
        self._request, self._routed = request, routed
        self._usage: dict[str, None] = {"usage": None} if request.include_usage else {}
        self._head = {
            "id": f"cmpl-{routed.request_id}",
            "object": "text_completion",
            "created": created,
            "model": model,
        }
        self.text = TextEvent(lambda text: self._chunk(text, None)).of

    def opening(self) -> bytes:
        return b""

    def counted(self, text: str, num_tokens: int) -> bytes:
        """See `AnswerFormat`."""
        return event(self._chunk(text, None) | {"usage": usage(self._routed.prompt_tokens, num_tokens)})

    def closing(self, finished: Finished) -> bytes:
        """The finish reason, usage where it was asked for, and the end mark."""
        last = event(self._chunk("", finished.finish_reason))
        if not self._usage:
            return last + DONE
        return last + event(self._head | {"choices": []} | accounts(self._request, self._routed, finished)) + DONE

    def beside(self, delta: Delta) -> bytes:  # noqa: ARG002  there is nothing beside the text of a raw prompt
        return b""

    def whole(self, answer: Delta, finished: Finished) -> bytes:
        choices = {"choices": [_choice(answer.text, finished.finish_reason)]}
        return as_json(self._head | choices | accounts(self._request, self._routed, finished))

    def _chunk(self, text: str, finish_reason: str | None) -> dict[str, Any]:
        return self._head | {"choices": [_choice(text, finish_reason)]} | self._usage


def _choice(text: str, finish_reason: str | None) -> dict[str, Any]:
    return {"index": 0, "text": text, "logprobs": None, "finish_reason": finish_reason}
