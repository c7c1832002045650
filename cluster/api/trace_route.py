"""GET /v1/cluster/trace: what the cluster does for the next so many seconds, as a trace that Perfetto opens, sent as it comes."""

from collections.abc import AsyncGenerator
from contextlib import aclosing
from typing import Any

from starlette.requests import Request
from starlette.responses import Response
from starlette.types import Receive, Scope, Send

from cluster.api.connection import ABORT
from cluster.api.fields import integer
from cluster.api.generation import DIRECT_SEND, Writer, until_left
from cluster.api.schemas import Schema
from cluster.serving.requests import Service
from cluster.serving.trace_recording import MOST_SECONDS, record

TRACE_PATH = "/v1/cluster/trace"
_USUAL_SECONDS = 10
_SECONDS = integer(1, MOST_SECONDS)
# Of the query, as it is described.
TRACE_PARAMETERS: dict[str, Schema] = {
    "seconds": {"type": "integer", "minimum": 1, "maximum": MOST_SECONDS, "default": _USUAL_SECONDS}
}
_HEADERS = {
    "Content-Type": "application/json",
    "Content-Disposition": 'attachment; filename="trace.json"',
    "Cache-Control": "no-store",
    "X-Accel-Buffering": "no",  # a proxy in between must not collect the stream
}


def asked_seconds(request: Request) -> int:
    """For how long. Raises BadRequest."""
    return _SECONDS("seconds", request.query_params.get("seconds", _USUAL_SECONDS))


class TraceResponse(Response):
    """Recorded while it is read."""

    def __init__(self, service: Service, seconds: int) -> None:
        super().__init__(headers=_HEADERS)
        self._service = service
        self._seconds = seconds

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        headers = [(name, value) for name, value in self.raw_headers if name != b"content-length"]
        start: dict[str, Any] = {"type": "http.response.start", "status": 200, "headers": headers}
        await send(start)
        if scope["method"] == "HEAD":
            await send({"type": "http.response.body"})
            return
        writer = Writer(scope.get(DIRECT_SEND, send))
        async with aclosing(record(self._service, self._seconds)) as lines:
            if await until_left(receive, writer, _send_all(lines, writer)) and ABORT in scope:
                scope[ABORT]()


async def _send_all(lines: AsyncGenerator[bytes, None], writer: Writer) -> None:
    async for text in lines:
        await writer.write(text)
    await writer.write(b"", more=False)
