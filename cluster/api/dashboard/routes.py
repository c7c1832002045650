"""The dashboard's paths, and what it keeps while nobody looks: the last hour."""

import asyncio
import time
from collections.abc import Callable, Iterator
from pathlib import Path

from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route

from cluster.api.dashboard.aside import Aside, RunInThread
from cluster.api.dashboard.broadcast import Broadcast
from cluster.api.dashboard.feed import FeedResponse
from cluster.api.dashboard.files import INDEX, SAFE_HEADERS, file_response, takes_html
from cluster.api.endpoints import Endpoint
from cluster.api.keys import CALLER, Caller
from cluster.serving.findings import Finding
from cluster.serving.history import STEP_S, History
from cluster.serving.machine import machine
from cluster.serving.requests import Service


class Dashboard:
    """Owns the last hour and what open pages are sent. logs: the folder of log files; clock: Unix seconds."""

    def __init__(
        self,
        service: Service,
        logs: Path | None = None,
        *,
        clock: Callable[[], float] = time.time,
        run_in_thread: RunInThread = asyncio.to_thread,
        examine_machine: Callable[[], Iterator[Finding]] = machine,
    ) -> None:
        self.history = History(service.ledger(), clock())
        self.broadcast = Broadcast(service, self.history, Aside(logs, run_in_thread, examine_machine), clock)
        self._clock = clock

    def __repr__(self) -> str:
        return f"Dashboard({self.history}, {self.broadcast})"

    async def run(self, stopping: asyncio.Event) -> None:
        """Note the points of the last hour until `stopping` is set, which ends what is open."""
        while not stopping.is_set():
            try:
                async with asyncio.timeout(STEP_S):
                    await stopping.wait()
            except TimeoutError:
                self.broadcast.tell("point", self.history.note(self._clock()))
        self.broadcast.end()


def dashboard_routes(
    dashboard: Dashboard, guarded: Callable[[Endpoint], Endpoint], *, asks_for_key: bool
) -> list[Route]:
    """guarded: an endpoint whose errors leave as error objects."""
    endpoints = _DashboardEndpoints(dashboard, asks_for_key=asks_for_key)
    return [
        Route("/", guarded(endpoints.page), methods=["GET"]),
        Route("/dashboard/feed", guarded(endpoints.feed), methods=["GET"]),
        Route("/dashboard/{name}", guarded(endpoints.file), methods=["GET"]),
    ]


class _DashboardEndpoints:
    """The endpoints, each a plain function of its request."""

    def __init__(self, dashboard: Dashboard, *, asks_for_key: bool) -> None:
        self._dashboard = dashboard
        self._asks_for_key = asks_for_key

    async def page(self, request: Request) -> Response:
        """For people the page; for programs the words by which Ollama's clients know a server."""
        if takes_html(request.headers.get("Accept")):
            return file_response(INDEX, request)
        return Response("Ollama is running", headers=SAFE_HEADERS | {"Vary": "Accept"}, media_type="text/plain")

    async def file(self, request: Request) -> Response:
        return file_response(request.path_params["name"], request)

    async def feed(self, request: Request) -> Response:
        caller: Caller = request.scope[CALLER]
        return FeedResponse(self._dashboard.broadcast, sees_all=caller.may_act, asks_for_key=self._asks_for_key)
