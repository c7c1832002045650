"""Texts to vectors: POST /v1/embeddings, as OpenAI has it, and Ollama's POST /api/embed and POST /api/embeddings."""

import asyncio
import base64
import functools
from array import array
from collections.abc import Awaitable, Callable
from typing import Any

import msgspec
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route
from starlette.types import Receive, Scope, Send

from cluster.api.accounts import accounts
from cluster.api.endpoints import Endpoint, json_answer
from cluster.api.events import as_json
from cluster.api.failures import error_response
from cluster.api.fields import Check, Notes, any_text, check_all, flag, hint, integer, one_of, only, refuse
from cluster.api.generation import DIRECT_SEND, STRATEGY_HEADER, Writer, until_left
from cluster.api.parameters import COMMON
from cluster.api.schemas import Schema, any_of, component, described, list_of, object_schema
from cluster.api.surface import ApiRequest, Dialect
from cluster.api.surfaces.completions import TOKEN, tokens_of
from cluster.api.surfaces.ollama import OllamaDialect
from cluster.serving.requests import (
    EmbeddingRequest,
    Embeddings,
    GenerationRequest,
    Prompt,
    Service,
    TextPrompt,
    TokensPrompt,
)
from protocol.errors import BadRequest

# As many as OpenAI takes.
MAX_INPUTS = 2048
# Beyond any model's.
_MAX_DIMENSIONS = 1 << 20

Parse = Callable[[dict[str, Any], Notes], ApiRequest]
# A validated body with who asks, and the id of the model that answers.
Asked = Callable[[Request, Parse], Awaitable[tuple[ApiRequest, str]]]
Guard = Callable[[Endpoint, Dialect], Endpoint]


class EmbeddingBody(ApiRequest, frozen=True, kw_only=True):
    """A validated body. prompts, fields, dimensions, truncate: as of `EmbeddingRequest`; there may be none. base64: vectors as text."""

    prompts: tuple[Prompt, ...]
    fields: tuple[str, ...]
    dimensions: int | None = None
    truncate: bool = False
    base64: bool = False

    @property
    def request(self) -> EmbeddingRequest:
        return EmbeddingRequest(
            asked=self.generation,
            prompts=self.prompts,
            fields=self.fields,
            dimensions=self.dimensions,
            truncate=self.truncate,
        )


def _texts(name: str, value: Any) -> tuple[tuple[Prompt, ...], tuple[str, ...]]:
    """A text, token ids, or a list of these; each with the name that errors call it by."""
    if type(value) is not list or (value and type(value[0]) in (int, float)):
        return (_text(name, value),), (name,)
    if len(value) > MAX_INPUTS:
        raise BadRequest(f"{name} holds {len(value)} texts; send at most {MAX_INPUTS} in one request", param=name)
    fields = tuple(f"{name}[{index}]" for index in range(len(value)))
    return tuple(map(_text, fields, value)), fields


def _text(name: str, value: Any) -> Prompt:
    if type(value) is str:
        return TextPrompt(value)
    if type(value) is not list or not value:
        raise refuse(name, "a string or a list of token ids", value)
    return TokensPrompt(tokens_of(name, value))


def _texts_schema(least: int) -> Schema:
    one = any_of({"type": "string"}, list_of(TOKEN.schema, minItems=1))
    return any_of(one, list_of(one, minItems=least, maxItems=MAX_INPUTS))


_HOW: dict[str, Check] = {
    name: COMMON[name] for name in ("model", "use_distributed_inference", "request_timeout_s")
} | {"strategy": described(component("EmbeddingStrategy"))(COMMON["strategy"])}
_OPENAI_FIELDS: dict[str, Check] = {
    **_HOW,
    "input": described(lambda: _texts_schema(1))(_texts),
    "encoding_format": one_of("float", "base64"),
    "dimensions": integer(1, _MAX_DIMENSIONS),
    "user": hint(""),
    "truncate_prompt_tokens": only("texts that are cut"),
}
_OF_OLLAMA: dict[str, Check] = {**_HOW, "keep_alive": hint(), "options": hint({})}
_EMBED_FIELDS: dict[str, Check] = {
    **_OF_OLLAMA,
    "input": described(lambda: _texts_schema(0))(_texts),
    "truncate": flag,
    "dimensions": integer(1, _MAX_DIMENSIONS),
}
_EMBEDDINGS_FIELDS: dict[str, Check] = {**_OF_OLLAMA, "prompt": any_text}


# What bodies may be, by names.
EMBEDDING_BODIES: dict[str, Callable[[], Schema]] = {
    "EmbeddingRequest": lambda: object_schema(_OPENAI_FIELDS, ["input"]),
    "OllamaEmbedRequest": lambda: object_schema(_EMBED_FIELDS),
    "OllamaEmbeddingsRequest": lambda: object_schema(_EMBEDDINGS_FIELDS),
}


class OpenAiEmbeddings(Dialect):
    """A list of vectors, as numbers or as their bytes in base64."""

    path = "/v1/embeddings"

    def parse(self, body: dict[str, Any], notes: Notes) -> EmbeddingBody:
        """What a JSON body asks for; what of it has no effect goes to `notes`. Raises BadRequest naming the field."""
        fields = check_all(body, _OPENAI_FIELDS, notes)
        prompts, names = fields.get("input", ((), ()))
        if not prompts:
            raise BadRequest("input is missing; send a text, token ids, or a list of these", param="input")
        return _body(fields, prompts, names, notes, base64=fields.get("encoding_format") == "base64")

    def whole(self, asked: EmbeddingBody, found: Embeddings, model: str) -> dict[str, Any]:
        """The answer, by the model of that id."""
        shown = _in_base64 if asked.base64 else _numbers
        data = [
            {"object": "embedding", "index": index, "embedding": shown(vector)}
            for index, vector in enumerate(found.vectors)
        ]
        count = found.finished.prompt_tokens
        used = {"prompt_tokens": count, "total_tokens": count}
        return {"object": "list", "data": data, "model": model, "usage": used} | _routed(asked, found)


class OllamaEmbed(OllamaDialect):
    """A list of vectors; texts beyond the context are cut unless `truncate` is false."""

    path = "/api/embed"

    def parse(self, body: dict[str, Any], notes: Notes) -> EmbeddingBody:
        """As of `OpenAiEmbeddings`."""
        fields = check_all(body, _EMBED_FIELDS, notes)
        prompts, names = fields.get("input", ((), ()))
        return _body(fields, prompts, names, notes, truncate=fields.get("truncate", True))

    def whole(self, asked: EmbeddingBody, found: Embeddings, model: str) -> dict[str, Any]:
        """As of `OpenAiEmbeddings`."""
        return {
            "model": model,
            "embeddings": [_numbers(vector) for vector in found.vectors],
            "total_duration": max(round(found.finished.total_s * 1e9), 1),
            "load_duration": 0,
            "prompt_eval_count": found.finished.prompt_tokens,
        } | _routed(asked, found)

    def at_once(self, request: ApiRequest, *, model: str, created: int) -> dict[str, Any] | None:  # noqa: ARG002
        """No texts ask for the model to be loaded, there as here."""
        assert isinstance(request, EmbeddingBody)
        return None if request.prompts else {"model": model, "embeddings": []}


class OllamaEmbeddings(OllamaDialect):
    """The older one: one text, one vector."""

    path = "/api/embeddings"

    def parse(self, body: dict[str, Any], notes: Notes) -> EmbeddingBody:
        """As of `OpenAiEmbeddings`."""
        fields = check_all(body, _EMBEDDINGS_FIELDS, notes)
        text = fields.get("prompt", "")
        prompts, names = ((TextPrompt(text),), ("prompt",)) if text else ((), ())
        return _body(fields, prompts, names, notes, truncate=True)

    def whole(self, asked: EmbeddingBody, found: Embeddings, model: str) -> dict[str, Any]:  # noqa: ARG002
        """As of `OpenAiEmbeddings`."""
        return {"embedding": _numbers(found.vectors[0])} | _routed(asked, found)

    def at_once(self, request: ApiRequest, *, model: str, created: int) -> dict[str, Any] | None:  # noqa: ARG002
        """As of `OllamaEmbed`."""
        assert isinstance(request, EmbeddingBody)
        return None if request.prompts else {"embedding": []}


EmbeddingSurface = OpenAiEmbeddings | OllamaEmbed | OllamaEmbeddings
_SURFACES: tuple[EmbeddingSurface, ...] = (OpenAiEmbeddings(), OllamaEmbed(), OllamaEmbeddings())
EMBEDDING_PATHS = tuple(surface.path for surface in _SURFACES)


def embedding_routes(service: Service, asked: Asked, guarded: Guard) -> list[Route]:
    """guarded: an endpoint whose errors leave in the words of a dialect."""

    async def embed(surface: EmbeddingSurface, request: Request) -> Response:
        body, model_id = await asked(request, surface.parse)
        assert isinstance(body, EmbeddingBody)
        if (answer := surface.at_once(body, model=model_id, created=0)) is not None:
            return json_answer(answer)
        return EmbeddingResponse(service, body, surface, model_id)

    return [
        Route(surface.path, guarded(functools.partial(embed, surface), surface), methods=["POST"])
        for surface in _SURFACES
    ]


class EmbeddingResponse(Response):
    """Embeds on `service` when awaited; when the client goes away the texts are cancelled at once."""

    def __init__(self, service: Service, asked: EmbeddingBody, surface: EmbeddingSurface, model: str) -> None:
        super().__init__()
        self._service = service
        self._asked = asked
        self._surface = surface
        self._model = model

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        await until_left(receive, Writer(scope.get(DIRECT_SEND, send)), self._answer(scope, receive, send))

    async def _answer(self, scope: Scope, receive: Receive, send: Send) -> None:
        try:
            found = await self._service.embed(self._asked.request)
            # In a thread, vector by vector: thousands of them as JSON take long enough for others to notice.
            answer = await asyncio.to_thread(self._surface.whole, self._asked, found, self._model)
            response: Response = json_answer(answer)
            response.headers[STRATEGY_HEADER] = found.routed.strategy
        except Exception as error:  # noqa: BLE001 - the request's boundary: every error becomes a response
            response = error_response(error, self._surface.refusal)
        await response(scope, receive, send)


def _body(
    fields: dict[str, Any],
    prompts: tuple[Prompt, ...],
    names: tuple[str, ...],
    notes: Notes,
    *,
    truncate: bool = False,
    base64: bool = False,
) -> EmbeddingBody:
    return EmbeddingBody(
        generation=GenerationRequest(
            prompt=TextPrompt(""),
            mode=fields.get("use_distributed_inference"),
            strategy=fields.get("strategy"),
            timeout_s=fields.get("request_timeout_s"),
        ),
        model=fields.get("model") or None,
        stream=False,
        include_usage=False,
        notes=notes.clauses,
        prompts=prompts,
        fields=names,
        dimensions=fields.get("dimensions"),
        truncate=truncate,
        base64=base64,
    )


def _routed(asked: EmbeddingBody, found: Embeddings) -> dict[str, Any]:
    """How it was routed, as every answer says it."""
    return {"tandem": accounts(asked, found.routed, found.finished)["tandem"]}


def _numbers(vector: bytes) -> msgspec.Raw:
    """As JSON already."""
    return msgspec.Raw(as_json(array("f", vector).tolist()))


def _in_base64(vector: bytes) -> str:
    return base64.b64encode(vector).decode()
