"""Text to token ids and back, as vLLM's clients ask for it: POST /tokenize and POST /detokenize."""

from collections.abc import Callable
from typing import Any

import msgspec
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route

from cluster.api.accounts import noted
from cluster.api.body import parsed_body
from cluster.api.endpoints import Endpoint, json_answer
from cluster.api.explain import parse_explain
from cluster.api.fields import Check, Notes, check_all, flag, only, refuse, text
from cluster.api.names import Names
from cluster.api.parameters import understood_schema
from cluster.api.schemas import Schema, described, list_of, object_schema
from cluster.api.surface import ApiRequest
from cluster.api.surfaces import chat, completions
from cluster.api.surfaces.completions import TOKEN, completion_schema, one_prompt, tokens_of
from cluster.serving.requests import ChatPrompt, Service, TextPrompt
from protocol.errors import BadRequest

_NOTHING = TextPrompt("", bare=True)


@described(lambda: list_of(TOKEN.schema))
def token_ids(name: str, value: Any) -> tuple[int, ...]:
    if type(value) is not list:
        raise refuse(name, "a list of token ids", value)
    return tokens_of(name, value)


_TOKENIZE_FIELDS: dict[str, Check] = {
    "add_special_tokens": flag,
    "add_generation_prompt": only("messages without the beginning of an answer", True),
    "continue_final_message": only("a last message that goes on", False),
    "return_token_strs": only("the text of each token", False),
}
_DETOKENIZE_FIELDS: dict[str, Check] = {"model": text(0, 4096), "tokens": token_ids}
# What bodies may be, by names.
TOKENIZE_BODIES: dict[str, Callable[[], Schema]] = {
    "TokenizeChatRequest": lambda: understood_schema(
        {**chat.FIELDS, **_TOKENIZE_FIELDS, "prompt": only("one of both"), "add_special_tokens": only("others", False)},
        ["messages"],
    ),
    "TokenizeCompletionRequest": lambda: completion_schema(
        {**completions.FIELDS, **_TOKENIZE_FIELDS, "prompt": one_prompt, "messages": only("one of both")}, ["prompt"]
    ),
}


def detokenize_body() -> Schema:
    return object_schema(_DETOKENIZE_FIELDS, ["tokens"])


def token_routes(
    service: Service, names: Names, guarded: Callable[[Endpoint], Endpoint], *, strict: bool
) -> list[Route]:
    """guarded: an endpoint whose errors leave as OpenAI's error objects. strict: what has no effect is refused, not noted."""
    endpoints = _TokenEndpoints(service, names, strict=strict)
    return [
        Route("/tokenize", guarded(endpoints.tokenize), methods=["POST"]),
        Route("/detokenize", guarded(endpoints.detokenize), methods=["POST"]),
    ]


class _TokenEndpoints:
    """The endpoints, each a plain function of its request."""

    def __init__(self, service: Service, names: Names, *, strict: bool) -> None:
        self._service = service
        self._names = names
        self._strict = strict

    async def tokenize(self, request: Request) -> Response:
        notes = Notes(strict=self._strict)
        parsed = await parsed_body(request, lambda body: parse_tokenize(body, notes))
        model, of_the_name = self._names.found(parsed.model)
        prompt = parsed.generation.prompt
        tokens = () if prompt == _NOTHING else await self._service.encode(parsed.generation)
        found = {"tokens": tokens, "count": len(tokens), "max_model_len": model.context_tokens}
        return json_answer(noted(found, (*notes.clauses, *of_the_name)))

    async def detokenize(self, request: Request) -> Response:
        notes = Notes(strict=self._strict)
        fields = await parsed_body(request, lambda body: parse_detokenize(body, notes))
        _, of_the_name = self._names.found(fields.get("model") or None)
        text = await self._service.decode(fields["tokens"])
        return json_answer(noted({"prompt": text}, (*notes.clauses, *of_the_name)))


def parse_tokenize(body: dict[str, Any], notes: Notes) -> ApiRequest:
    """The request whose prompt is asked about. Raises BadRequest naming the field."""
    own = check_all({name: value for name, value in body.items() if name in _TOKENIZE_FIELDS}, _TOKENIZE_FIELDS, notes)
    if body.get("prompt") is None and body.get("messages") is None:
        raise BadRequest("prompt is missing; send a text, or messages", param="prompt")
    parsed = parse_explain({name: value for name, value in body.items() if name not in _TOKENIZE_FIELDS}, notes)
    prompt = parsed.generation.prompt
    if isinstance(prompt, ChatPrompt) and own.get("add_special_tokens", False):
        raise BadRequest(
            "add_special_tokens has no place beside messages: the chat template puts its own; leave it out",
            param="add_special_tokens",
        )
    if isinstance(prompt, TextPrompt) and not own.get("add_special_tokens", True):
        bare = msgspec.structs.replace(parsed.generation, prompt=TextPrompt(prompt.text, bare=True))
        return msgspec.structs.replace(parsed, generation=bare)
    return parsed


def parse_detokenize(body: dict[str, Any], notes: Notes) -> dict[str, Any]:
    """The checked fields. Raises BadRequest naming the field."""
    fields = check_all(body, _DETOKENIZE_FIELDS, notes)
    if "tokens" not in fields:
        raise BadRequest("tokens is missing; send a list of token ids", param="tokens")
    return fields
