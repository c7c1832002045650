"""The OpenAPI document: operations, bodies and answers put together, for the model that is loaded.

Where a key is set, each operation but the open ones asks for it.
"""

import re
from typing import Any

import msgspec

from cluster.api.document.answers import openai_schemas, response_schemas, struct_schemas
from cluster.api.document.operations import EVENTS, JSON, Operation, bodies, operations
from cluster.api.document.other_answers import anthropic_schemas, ollama_schemas, tandem_schemas
from cluster.api.fields import MAX_TOKEN_ID
from cluster.api.generation import STRATEGY_HEADER
from cluster.api.number_texts import integer_pattern
from cluster.api.request_log import ID_HEADER
from cluster.api.schemas import Schema, any_of, component
from cluster.api.surfaces.completions import SUFFIX, suffix_schema
from protocol.version import tandem_version
from strategy.situation import Strategy

_ABOUT = """Tandem's HTTP API. It speaks OpenAI's, Anthropic's and Ollama's languages, each at its own paths.

Every field of a body may be null, which says nothing, and further fields may be sent: what has no effect is named in `tandem.notes` of
the answer. Numbers may be sent as text, and 4.0 stands for 4. Bodies are read as JSON whatever their Content-Type says."""
_ERRORS = {
    400: "What was sent cannot be done; `param` names the field",
    401: "A key is set here and was not sent",
    403: "A name or a page that may not use this API",
    404: "No such model, response or item",
    413: "The body is larger than may be",
    429: "As many requests wait as may",
    499: "The request was cancelled, by who looks after the cluster",
    500: "An error of the server, which its log explains",
    503: "No plan can serve the request now",
    504: "The time that the request may take is over",
}
_ALWAYS = (403, 500)


class Known(msgspec.Struct, frozen=True):
    """What the document says of this cluster. vocabulary_size: of the model, None where it is not known; strategies: those that can
    run now, by their names; asks_for_key: whether one is set; inserts: whether the model fills in between texts.
    """

    vocabulary_size: int | None = None
    strategies: tuple[str, ...] = tuple(Strategy)
    asks_for_key: bool = False
    inserts: bool = False


def document(known: Known) -> dict[str, Any]:
    """The document, as JSON has it."""
    paths: dict[str, dict[str, Any]] = {}
    for operation in operations():
        paths.setdefault(operation.path, {})[operation.method] = _described(operation, known)
    schemes = {
        "bearer": {"type": "http", "scheme": "bearer"},
        "key": {"type": "apiKey", "in": "header", "name": "x-api-key"},
    }
    secured: dict[str, Any] = {"security": [{name: []} for name in schemes]} if known.asks_for_key else {}
    return {
        "openapi": "3.1.0",
        "info": {"title": "Tandem", "version": tandem_version(), "description": _ABOUT},
        "servers": [{"url": "/"}],
        "paths": paths,
        "components": {"schemas": _schemas(known)} | ({"securitySchemes": schemes} if secured else {}),
    } | secured


def _schemas(known: Known) -> dict[str, Schema]:
    last = MAX_TOKEN_ID if known.vocabulary_size is None else known.vocabulary_size - 1
    return {
        **bodies(),
        **openai_schemas(),
        **response_schemas(),
        **anthropic_schemas(),
        **ollama_schemas(),
        **tandem_schemas(),
        **struct_schemas(),
        "TokenId": {"type": "integer", "minimum": 0, "maximum": last},
        "TokenIdText": {"type": "string", "pattern": integer_pattern(0, last, is_bare=True)},
        "Suffix": SUFFIX.schema if known.inserts else {"enum": [""]},
        "SuffixOfText": suffix_schema() if known.inserts else {},
        "FeasibleStrategy": {"enum": list(known.strategies)},
        "EmbeddingStrategy": {"enum": [each for each in known.strategies if each != Strategy.DISTRIBUTED_PREFILL]},
    }


def _described(operation: Operation, known: Known) -> dict[str, Any]:
    name = re.sub(r"\W+", "_", f"{operation.method}{operation.path}").strip("_")
    about: dict[str, Any] = {"operationId": name, "summary": operation.summary, "tags": [operation.tag]}
    if parameters := _parameters(operation):
        about["parameters"] = parameters
    if operation.body:
        body = any_of(*map(component, operation.body))
        about["requestBody"] = {"required": True, "content": {JSON: {"schema": body}}}
    if operation.is_open and known.asks_for_key:
        about["security"] = []
    return about | {"responses": _responses(operation, known)}


def _parameters(operation: Operation) -> list[dict[str, Any]]:
    inside = re.findall(r"{(\w+)}", operation.path)
    text = {"type": "string", "minLength": 1}
    return [
        *({"name": name, "in": "path", "required": True, "schema": text} for name in inside),
        *({"name": name, "in": "query", "schema": schema} for name, schema in operation.parameters.items()),
    ]


def _responses(operation: Operation, known: Known) -> dict[str, Any]:
    answer: dict[str, Any] = {"description": operation.summary, "content": _content(operation)}
    if operation.streamed is not None:
        about = "How it is routed; not where that is not known yet when a stream begins"
        answer["headers"] = {STRATEGY_HEADER: {"description": about, "schema": {"type": "string"}}}
    failures = {*_ALWAYS, *operation.statuses, *((401,) if known.asks_for_key and not operation.is_open else ())}
    responses = {
        **{str(status): answer for status in (operation.status, *operation.also)},
        **{str(status): _failure(status, operation) for status in sorted(failures)},
    }
    named = {
        ID_HEADER: {"description": "The request's name in the log", "required": True, "schema": {"type": "string"}}
    }
    return {status: about | {"headers": named | about.get("headers", {})} for status, about in responses.items()}


def _content(operation: Operation) -> dict[str, Any]:
    if operation.answer == JSON:
        return {JSON: {"schema": {"type": "object"}}}
    if "/" in operation.answer:
        return {operation.answer: {"schema": {"type": "string"}}}
    whole = {JSON: {"schema": component(operation.answer)}}
    if operation.streamed is None:
        return whole
    kind, piece = operation.streamed
    return whole | {kind: {"schema": _piece_schema(kind, any_of(component(piece), component(operation.error)))}}


def _piece_schema(kind: str, piece: Schema) -> Schema:
    """Of an event of a stream, or of its lines."""
    told = {"type": "string", "contentMediaType": JSON, "contentSchema": piece}
    if kind != EVENTS:
        return told | {"description": "Each line is this."}
    data = any_of({"const": "[DONE]"}, told)
    return {"type": "object", "properties": {"event": {"type": "string"}, "data": data}, "required": ["data"]}


def _failure(status: int, operation: Operation) -> dict[str, Any]:
    # Who may ask at all is decided before it is known what is asked.
    error = "Error" if status == 403 else operation.error
    about: dict[str, Any] = {"description": _ERRORS[status], "content": {JSON: {"schema": component(error)}}}
    headers = {401: ("WWW-Authenticate", "string"), 429: ("Retry-After", "integer")}
    if status in headers:
        header, kind = headers[status]
        about["headers"] = {header: {"required": True, "schema": {"type": kind}}}
    return about
