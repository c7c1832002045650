"""GET /openapi.json and GET /docs, both made at their first request."""

import functools
from collections.abc import Callable
from importlib.resources import files

import msgspec
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route

from cluster.api.endpoints import Endpoint
from cluster.api.events import as_json
from cluster.serving.requests import GenerationRequest, Service, TextPrompt
from protocol.errors import ApiError

# The page runs what is in it and asks this server, nobody else.
_PAGE_POLICY = (
    "default-src 'none'; script-src 'unsafe-inline'; style-src 'unsafe-inline'; connect-src 'self'; img-src data:"
)
_NEW_EACH_TIME = {"Cache-Control": "no-cache"}


def document_routes(service: Service, guarded: Callable[[Endpoint], Endpoint], *, asks_for_key: bool) -> list[Route]:
    """guarded: an endpoint whose errors leave as OpenAI's error objects."""
    endpoints = _DocumentEndpoints(service, asks_for_key=asks_for_key)
    return [
        Route("/openapi.json", guarded(endpoints.document), methods=["GET"]),
        Route("/docs", guarded(endpoints.page), methods=["GET"]),
    ]


class _DocumentEndpoints:
    """The endpoints, each a plain function of its request."""

    def __init__(self, service: Service, *, asks_for_key: bool) -> None:
        self._service = service
        self._asks_for_key = asks_for_key

    async def document(self, _request: Request) -> Response:
        models = self._service.models()
        data = _document(
            models[0].vocabulary_size if models else None,
            await self._strategies(),
            asks_for_key=self._asks_for_key,
            inserts=any("insert" in model.abilities for model in models),
        )
        return Response(data, headers=_NEW_EACH_TIME, media_type="application/json")

    async def page(self, _request: Request) -> Response:
        headers = _NEW_EACH_TIME | {"Content-Security-Policy": _PAGE_POLICY}
        return Response(_page(), headers=headers, media_type="text/html")

    async def _strategies(self) -> tuple[str, ...] | None:
        """Those that can run now; None where that is not known."""
        try:
            explained = await self._service.explain(GenerationRequest(prompt=TextPrompt("a"), max_tokens=1))
        except ApiError:
            return None
        return tuple(sorted(verdict.strategy for verdict in explained.candidates if verdict.feasible)) or None


@functools.lru_cache(maxsize=4)
def _document(
    vocabulary_size: int | None, strategies: tuple[str, ...] | None, *, asks_for_key: bool, inserts: bool
) -> bytes:
    from cluster.api.document.building import Known, document

    known = Known(vocabulary_size=vocabulary_size, asks_for_key=asks_for_key, inserts=inserts)
    if strategies is not None:
        known = msgspec.structs.replace(known, strategies=strategies)
    return as_json(document(known))


@functools.cache
def _page() -> bytes:
    return files(__package__).joinpath("docs.html").read_bytes()
