"""What Ollama's clients ask for beside answers: which models there are, and what is known of them.

What would fetch, make or delete models there is not served.
"""

import hashlib
from collections.abc import Callable
from typing import Any

from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route

from cluster.api.accounts import noted
from cluster.api.body import parsed_body
from cluster.api.endpoints import Endpoint, json_answer
from cluster.api.fields import Check, Notes, check_all, hint, text
from cluster.api.names import Names
from cluster.api.schemas import Schema, object_schema
from cluster.api.surface import Dialect
from cluster.api.surfaces.ollama import OllamaDialect, rfc3339
from cluster.serving.requests import ModelInfo, Service
from protocol.version import tandem_version

Guard = Callable[[Endpoint, Dialect], Endpoint]

# When a model is unloaded that stays: so far away that clients show it as never.
_NEVER = 9_999_999_999

_SHOW_FIELDS: dict[str, Check] = {
    "model": text(0, 4096),
    "name": text(0, 4096),
    "verbose": hint(False),
    "system": hint(""),
    "template": hint(""),
    "options": hint({}),
}


def show_body() -> Schema:
    return object_schema(_SHOW_FIELDS)


def ollama_routes(service: Service, names: Names, guarded: Guard, *, strict: bool) -> list[Route]:
    """guarded: an endpoint whose errors leave in the words of a dialect. strict: what has no effect is refused, not noted."""
    endpoints, dialect = _OllamaEndpoints(service, names, strict=strict), OllamaDialect()
    return [
        Route("/api/tags", guarded(endpoints.tags, dialect), methods=["GET"]),
        Route("/api/ps", guarded(endpoints.ps, dialect), methods=["GET"]),
        Route("/api/version", guarded(endpoints.version, dialect), methods=["GET"]),
        Route("/api/show", guarded(endpoints.show, dialect), methods=["POST"]),
    ]


class _OllamaEndpoints:
    """The endpoints, each a plain function of its request."""

    def __init__(self, service: Service, names: Names, *, strict: bool) -> None:
        self._service = service
        self._names = names
        self._strict = strict

    async def tags(self, _request: Request) -> Response:
        return json_answer({"models": [_listed(*each) for each in self._names.listed()]})

    async def ps(self, _request: Request) -> Response:
        return json_answer({"models": [_running(model) for model in self._service.models()]})

    async def version(self, _request: Request) -> Response:
        return json_answer({"version": tandem_version()})

    async def show(self, request: Request) -> Response:
        notes = Notes(strict=self._strict)
        fields = await parsed_body(request, lambda body: parse_show(body, notes))
        model, of_the_name = self._names.found(fields.get("model") or fields.get("name") or None)
        return json_answer(noted(_shown(model), (*notes.clauses, *of_the_name)))


def parse_show(body: dict[str, Any], notes: Notes) -> dict[str, Any]:
    """The checked fields. Raises BadRequest naming the field."""
    return check_all(body, _SHOW_FIELDS, notes)


def _named(name: str, model: ModelInfo) -> dict[str, Any]:
    """What every list says of a model, under one of its names. Its digest is one of its name: clients show it and ask for nothing by it."""
    return {
        "name": name,
        "model": name,
        "size": model.bytes or 0,
        "digest": hashlib.sha256(model.id.encode()).hexdigest(),
        "details": _details(model),
    }


def _details(model: ModelInfo) -> dict[str, Any]:
    """The text of what is not known is empty there."""
    family = model.architecture or ""
    return {
        "parent_model": "",
        "format": "safetensors",
        "family": family,
        "families": [family] if family else [],
        "parameter_size": "",
        "quantization_level": "",
    }


def _listed(name: str, model: ModelInfo) -> dict[str, Any]:
    return _named(name, model) | {"modified_at": rfc3339(model.created)}


def _running(model: ModelInfo) -> dict[str, Any]:
    context = {} if model.context_tokens is None else {"context_length": model.context_tokens}
    return _named(model.id, model) | {"expires_at": rfc3339(_NEVER), "size_vram": model.bytes or 0} | context


def _shown(model: ModelInfo) -> dict[str, Any]:
    known: dict[str, Any] = {}
    if (family := model.architecture) is not None:
        known = {
            "general.architecture": family,
            f"{family}.block_count": model.layers,
            f"{family}.context_length": model.context_tokens,
        }
    return {
        "details": _details(model),
        "model_info": known,
        "capabilities": ["completion", *model.abilities],
        "modified_at": rfc3339(model.created),
    }
