"""The routes of the HTTP API and who may call them.

Endpoints validate, ask the service, and give a response; every error, expected or not, leaves as an error object in the words of its path:
OpenAI's where no surface has others.
"""

import functools
import time
from collections.abc import Callable, Collection
from typing import Any

import msgspec
from starlette.applications import Starlette
from starlette.exceptions import HTTPException
from starlette.middleware import Middleware
from starlette.requests import ClientDisconnect, Request
from starlette.responses import Response
from starlette.routing import Match, Route

from cluster.api.answered import Answered
from cluster.api.body import parsed_body
from cluster.api.dashboard import Dashboard, dashboard_routes
from cluster.api.document import document_routes
from cluster.api.embedding_routes import EMBEDDING_PATHS, embedding_routes
from cluster.api.endpoints import Endpoint, json_answer
from cluster.api.explain import parse_explain
from cluster.api.failures import TALLY, error_response
from cluster.api.fields import Notes
from cluster.api.generation import GenerationResponse
from cluster.api.kept_responses import KeptResponses
from cluster.api.keys import CALLER, Caller, Dialects, KeyGate
from cluster.api.names import Names
from cluster.api.ollama_routes import ollama_routes
from cluster.api.origins import origin_rules
from cluster.api.request_log import RequestLog
from cluster.api.surface import ApiRequest, Dialect, Surface
from cluster.api.surfaces import SURFACES
from cluster.api.surfaces.ollama import OllamaDialect
from cluster.api.token_routes import token_routes
from cluster.api.trace_route import TRACE_PATH, TraceResponse, asked_seconds
from cluster.serving.requests import ModelInfo, Service
from cluster.settings import ApiSettings
from protocol.errors import ApiError, BadRequest, NotFound

_OURS = Dialect()
_OLLAMA = OllamaDialect()

Parse = Callable[[dict[str, Any], Notes], ApiRequest]


def build_app(
    service: Service,
    api: ApiSettings,
    *,
    model_ids: Collection[str] = (),
    scope_by_key: bool = False,
    surfaces: Collection[Surface] = SURFACES,
    dashboard: Dashboard | None = None,
) -> Starlette:
    """The ASGI application over `service`, with a path for each of the `surfaces`.

    model_ids: further names of the loaded model (its directory), besides its id and "default". scope_by_key: requests with
    different keys share no cached prefix. dashboard: one whose history somebody keeps; where None, one without.
    """
    names = Names(service, api, model_ids)
    answered = Answered()
    dialect = functools.partial(_dialect, surfaces)
    endpoints = _Endpoints(service, names, answered, strict=api.strict, scope_by_key=scope_by_key)
    app = Starlette(
        routes=[
            *_routes(endpoints, surfaces),
            *_kept_routes(answered),
            *token_routes(service, names, _guarded, strict=api.strict),
            *ollama_routes(service, names, _guarded, strict=api.strict),
            *document_routes(service, _guarded, asks_for_key=api.asks_for_key),
            *embedding_routes(service, endpoints.asked, _guarded),
            *dashboard_routes(dashboard or Dashboard(service), _guarded, asks_for_key=api.asks_for_key),
        ],
        middleware=[
            Middleware(RequestLog),
            *origin_rules(api),
            Middleware(
                KeyGate, api=api, dialect=dialect, limited=[*(surface.path for surface in surfaces), *EMBEDDING_PATHS]
            ),
        ],
        exception_handlers={HTTPException: functools.partial(_routing_error, dialect)},
    )
    app.router.redirect_slashes = False
    return app


def _routes(endpoints: "_Endpoints", surfaces: Collection[Surface]) -> list[Route]:
    return [
        *(
            Route(surface.path, _guarded(functools.partial(endpoints.generate, surface), surface), methods=["POST"])
            for surface in surfaces
        ),
        *(
            Route(
                surface.counting_path, _guarded(functools.partial(endpoints.count, surface), surface), methods=["POST"]
            )
            for surface in surfaces
            if surface.counting_path is not None
        ),
        Route("/v1/explain", _guarded(endpoints.explain), methods=["POST"]),
        Route("/v1/conversations/{conversation}", _guarded(endpoints.forget), methods=["DELETE"]),
        Route("/v1/requests/{request_id}", _guarded(endpoints.cancel), methods=["DELETE"]),
        Route("/v1/cluster/mend", _guarded(endpoints.mend), methods=["POST"]),
        Route("/v1/cluster/figures", _guarded(endpoints.figures), methods=["POST"]),
        Route(TRACE_PATH, _guarded(endpoints.trace), methods=["GET"]),
        Route("/v1/cluster/models", _guarded(endpoints.models_elsewhere), methods=["GET"]),
        Route("/v1/models", _guarded(endpoints.models), methods=["GET"]),
        Route("/v1/models/{model_id:path}", _guarded(endpoints.model), methods=["GET"]),
        Route("/health", _guarded(endpoints.health), methods=["GET"]),
        Route("/status", _guarded(endpoints.status), methods=["GET"]),
        Route("/metrics", _guarded(endpoints.metrics), methods=["GET"]),
    ]


def _kept_routes(answered: Answered) -> list[Route]:
    kept = KeptResponses(lambda request: answered.shelf(_caller(request).digest))
    path = "/v1/responses/{response_id}"
    return [
        Route(path, _guarded(kept.get), methods=["GET"]),
        Route(path, _guarded(kept.forget), methods=["DELETE"]),
        Route(f"{path}/input_items", _guarded(kept.input_items), methods=["GET"]),
    ]


class _Endpoints:
    """The endpoints, each a plain function of its request."""

    def __init__(self, service: Service, names: Names, answered: Answered, *, strict: bool, scope_by_key: bool) -> None:
        self._service = service
        self._names = names
        self._answered = answered
        self._strict = strict
        self._scope_by_key = scope_by_key

    async def generate(self, surface: Surface, request: Request) -> Response:
        surface = surface.asked_by(self._answered.shelf(_caller(request).digest))
        parsed, model_id = await self.asked(request, surface.parse)
        if (answer := surface.at_once(parsed, model=model_id, created=int(time.time()))) is not None:
            return json_answer(answer)
        return GenerationResponse(self._service, parsed, surface, model_id)

    async def asked(self, request: Request, parse: Parse) -> tuple[ApiRequest, str]:
        """What a body asks for, with who asks, and the name of the model that answers."""
        return self._names.served(self._asked_by(await self._parsed(request, parse), request))

    async def _parsed(self, request: Request, parse: Parse) -> ApiRequest:
        notes = Notes(strict=self._strict)
        return await parsed_body(request, lambda body: parse(body, notes))

    def _asked_by(self, parsed: ApiRequest, request: Request) -> ApiRequest:
        """With who asks."""
        caller = _caller(request)
        generation = msgspec.structs.replace(
            parsed.generation,
            scope=caller.digest if self._scope_by_key else "",
            client=caller.client,
            key=caller.name,
            tally=request.scope[TALLY],
        )
        return msgspec.structs.replace(parsed, generation=generation)

    async def forget(self, request: Request) -> Response:
        conversation = request.path_params["conversation"]
        self._service.forget_conversation(conversation)
        return json_answer({"id": conversation, "object": "conversation", "deleted": True})

    async def cancel(self, request: Request) -> Response:
        request_id = request.path_params["request_id"]
        self._service.cancel(request_id)
        return json_answer({"id": request_id, "object": "request", "deleted": True})

    async def mend(self, _request: Request) -> Response:
        return json_answer({"mending": list(self._service.mend())}, 202)

    async def models_elsewhere(self, _request: Request) -> Response:
        return json_answer({"hosts": await self._service.models_elsewhere()})

    async def figures(self, _request: Request) -> Response:
        return json_answer({"workers": await self._service.figures()})

    async def trace(self, request: Request) -> Response:
        return TraceResponse(self._service, asked_seconds(request))

    async def explain(self, request: Request) -> Response:
        parsed = await self._parsed(request, parse_explain)
        self._names.find(parsed.model)
        return json_answer(await self._service.explain(parsed.generation))

    async def count(self, surface: Surface, request: Request) -> Response:
        parsed = await self._parsed(request, surface.parse)
        self._names.find(parsed.model)
        return json_answer(surface.count(len(await self._service.encode(parsed.generation))))

    async def models(self, _request: Request) -> Response:
        return json_answer({"object": "list", "data": [_model_object(*each) for each in self._names.listed()]})

    async def model(self, request: Request) -> Response:
        asked = request.path_params["model_id"]
        model = self._names.find_exactly(asked)
        return json_answer(_model_object(asked if (asked, model) in self._names.listed() else model.id, model))

    async def health(self, _request: Request) -> Response:
        report = self._service.health()
        return json_answer(report, 200 if report.serves else 503)

    async def status(self, _request: Request) -> Response:
        return json_answer(self._service.status())

    async def metrics(self, _request: Request) -> Response:
        from cluster.api.metrics import CONTENT_TYPE, exposition  # its library takes a while, and not everybody asks

        return Response(exposition(self._service), headers={"Content-Type": CONTENT_TYPE})


def _caller(request: Request) -> Caller:
    caller: Caller = request.scope[CALLER]
    return caller


def _model_object(name: str, model: ModelInfo) -> dict[str, Any]:
    """A model under one of its names. root: its own."""
    about = {"id": name, "object": "model", "created": model.created, "owned_by": "tandem", "root": model.id}
    return about | {"max_model_len": model.context_tokens, "capabilities": model.capabilities}


def _dialect(surfaces: Collection[Surface], path: str) -> Surface | Dialect:
    """In whose words errors of a path are told: those of the surface there, or above it."""
    above = next((surface for surface in surfaces if f"{path}/".startswith(f"{surface.path}/")), None)
    return above or (_OLLAMA if path.startswith("/api/") else _OURS)


def _guarded(endpoint: Endpoint, dialect: Surface | Dialect = _OURS) -> Endpoint:
    async def answer(request: Request) -> Response:
        try:
            return await endpoint(request)
        except ClientDisconnect:
            return Response(status_code=400)  # nobody is there to read it
        except RecursionError:
            too_deep = BadRequest("the body is not usable JSON: it is nested too deeply")
            return error_response(too_deep, dialect.refusal)
        except Exception as error:  # noqa: BLE001 - the request's boundary: every error becomes a response
            return error_response(error, dialect.refusal)

    return answer


async def _routing_error(dialect: Dialects, request: Request, error: Exception) -> Response:
    """Starlette's own errors: no such path, or a path that does not take this method."""
    assert isinstance(error, HTTPException)
    if error.status_code == 405:
        api_error = ApiError(f"{request.url.path} does not take {request.method}")
        api_error.error_type, api_error.code = "invalid_request_error", "method_not_allowed"
    else:
        api_error = NotFound(f"there is no {request.url.path[:200]}")
    api_error.status = error.status_code
    response = error_response(api_error, dialect(request.url.path).refusal)
    response.headers.update(error.headers or {})
    if error.status_code == 405:
        response.headers["Allow"] = ", ".join(sorted(_methods(request)))
    return response


def _methods(request: Request) -> set[str]:
    """Those that a path takes, by whichever of its routes."""
    routes = [route for route in request.app.routes if route.matches(request.scope)[0] is not Match.NONE]
    return {method for route in routes for method in route.methods or ()}
