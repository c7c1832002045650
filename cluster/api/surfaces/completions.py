"""OpenAI's completions: POST /v1/completions, raw prompts in, text out."""

from collections.abc import Iterable
from typing import Any

import msgspec

from cluster.api.choices import (
    MOST_CHOICES,
    MOST_EACH,
    MOST_PROMPTS_WITH_SEVERAL,
    OneChoice,
    choices_of,
    num_choices,
    num_logprobs,
)
from cluster.api.fields import MAX_TOKEN_ID, Check, Notes, flag, refuse, text, whole_number
from cluster.api.parameters import COMMON, api_request, token_limit, understood, understood_schema
from cluster.api.schemas import Schema, any_of, component, described, list_of, or_null
from cluster.api.surface import AnswerFormat, ApiRequest, ChoicesFormat, Dialect
from cluster.api.surfaces.completion_answer import TextCompletion
from cluster.serving.requests import Prompt, Routed, TextPrompt, TokensPrompt
from protocol.errors import BadRequest

SUFFIX = text(0, 1 << 24)
TOKEN = described(component("TokenId"))(whole_number(0, MAX_TOKEN_ID))


def _prompt_schema(most: int) -> Schema:
    one = any_of({"type": "string"}, list_of(TOKEN.schema))
    return any_of(one, list_of(one, minItems=1, maxItems=most))


@described(lambda: _prompt_schema(MOST_CHOICES))
def raw_prompts(name: str, value: Any) -> tuple[Prompt, ...]:
    """Strings or lists of token ids: one of them, or a list. An empty one, or none, stands for the beginning of any text."""
    if type(value) is not list or not value or type(value[0]) not in (str, list):
        return (raw_prompt(name, value),)
    if len(value) > MOST_CHOICES:
        raise BadRequest(f"{name} holds {len(value)} prompts; send at most {MOST_CHOICES} at once", param=name)
    if len(value) == 1:
        return (raw_prompt(name, value[0]),)
    return tuple(raw_prompt(f"{name}[{index}]", item) for index, item in enumerate(value))


# Where only one may be sent.
one_prompt = described(lambda: _prompt_schema(1))(raw_prompts)


def raw_prompt(name: str, value: Any) -> Prompt:
    """One prompt."""
    if type(value) is str:
        return TextPrompt(value)
    if type(value) is not list:
        raise refuse(name, "a string or a list of token ids", value)
    if not value:
        return TextPrompt("")
    return TokensPrompt(tokens_of(name, value))


def tokens_of(name: str, values: list[Any]) -> tuple[int, ...]:
    """Token ids. Raises BadRequest where there is none."""
    if all(type(item) is int and 0 <= item <= MAX_TOKEN_ID for item in values):
        return tuple(values)
    return tuple(TOKEN(f"{name}[{index}]", item) for index, item in enumerate(values))


@described(lambda: any_of({"enum": [0]}, token_limit.schema))
def limit_or_none(name: str, value: Any) -> int | None:
    """As `token_limit`; and 0, which asks for nothing but the prompt."""
    return 0 if type(value) in (int, float) and value == 0 else token_limit(name, value)


FIELDS: dict[str, Check] = {
    **COMMON,
    "prompt": raw_prompts,
    "max_tokens": limit_or_none,
    "n": num_choices,
    "best_of": num_choices,
    "logprobs": num_logprobs,
    "echo": flag,
    # Not every model has tokens for that.
    "suffix": described(component("Suffix"))(SUFFIX),
}


def completion_schema(checks: dict[str, Check], required: Iterable[str] = ()) -> Schema:
    """What a body with these fields may be, with what one of them wants of others: for each such want, what else holds."""
    wants = [
        [
            _with(max_tokens={"not": {"const": 0}}),
            {"type": "object", "properties": {"echo": {"const": True}}, "required": ["echo"]},
        ],
        [_with(stream={"const": False}), _with(best_of=_few(1))],
        [
            _with(prompt=any_of({"type": "string"}, list_of({"type": "integer"}), _prompts(1))),
            _with(prompt=_prompts(MOST_PROMPTS_WITH_SEVERAL), **_at_most(MOST_EACH)),
            _with(**_at_most(1)),
        ],
    ]
    return understood_schema(checks, required) | {
        "allOf": [*(any_of(*ways) for ways in wants), component("SuffixOfText")]
    }


def suffix_schema() -> Schema:
    """What a body of a model that fills in between texts may be: a suffix wants prompts that are text."""
    texts = any_of({"type": "string"}, list_of(any_of({"type": "string"}, {"type": "array", "maxItems": 0})))
    return any_of(_with(suffix={"const": ""}), _with(prompt=texts))


def _with(**fields: Schema) -> Schema:
    """An object with these fields as said, where they are there and not null."""
    return {"type": "object", "properties": {name: or_null(schema) for name, schema in fields.items()}}


def _prompts(most: int) -> Schema:
    return {"type": "array", "maxItems": most}


def _at_most(answers: int) -> dict[str, Schema]:
    return dict.fromkeys(("n", "best_of"), _few(answers))


def _few(most: int) -> Schema:
    """Numbers from 1 on, listed: two patterns for one text are too much for who makes bodies from this."""
    return {"enum": [*range(1, most + 1), *map(str, range(1, most + 1))]}


class Completions(Dialect):
    """See the module."""

    path = "/v1/completions"

    def parse(self, body: dict[str, Any], notes: Notes) -> ApiRequest:
        """See `Surface`."""
        fields = understood(body, FIELDS, notes)
        echo = fields.get("echo", False)
        if fields.get("max_tokens") == 0 and not echo:
            raise BadRequest("max_tokens must be at least 1 without echo; send more, or echo", param="max_tokens")
        prompts = _with_suffix(fields.get("prompt", (TextPrompt(""),)), fields.get("suffix", ""))
        choices = choices_of(fields, prompts, fields.get("logprobs"), notes, echo=echo)
        return msgspec.structs.replace(api_request(fields, prompts[0], "prompt", notes), choices=choices)

    def schema(self) -> Schema:
        """See `Surface`."""
        return completion_schema(FIELDS)

    def answer(self, request: ApiRequest, routed: Routed, *, model: str, created: int) -> AnswerFormat:
        """See `Surface`."""
        return OneChoice(TextCompletion(request, routed, model=model, created=created), routed)

    def choices(self, request: ApiRequest, routed: Routed, *, model: str, created: int) -> ChoicesFormat:
        """See `Surface`."""
        return TextCompletion(request, routed, model=model, created=created)


def _with_suffix(prompts: tuple[Prompt, ...], suffix: str) -> tuple[Prompt, ...]:
    """Text prompts after which further text stands."""
    if not suffix:
        return prompts
    if not all(isinstance(prompt, TextPrompt) for prompt in prompts):
        raise BadRequest("suffix stands after text; send the prompt as text, not as token ids", param="suffix")
    return tuple(msgspec.structs.replace(prompt, suffix=suffix) for prompt in prompts)
