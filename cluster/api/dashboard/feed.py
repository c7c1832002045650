"""GET /dashboard/feed: what one open page is sent, as server-sent events, for as long as it is open and reads."""

from typing import Any

from starlette.responses import Response
from starlette.types import Receive, Scope, Send

from cluster.api.connection import ABORT
from cluster.api.dashboard.broadcast import Broadcast
from cluster.api.dashboard.outbox import Outbox
from cluster.api.failures import error_response
from cluster.api.generation import DIRECT_SEND, Writer, until_left
from protocol.errors import ApiError

_HEADERS = {
    "Content-Type": "text/event-stream",
    "Cache-Control": "no-cache",
    "X-Accel-Buffering": "no",  # a proxy in between must not collect the stream
    "X-Content-Type-Options": "nosniff",
}


class FeedResponse(Response):
    """sees_all: whether its reader may see and do everything."""

    def __init__(self, broadcast: Broadcast, *, sees_all: bool, asks_for_key: bool) -> None:
        super().__init__(headers=_HEADERS)
        self._broadcast = broadcast
        self._sees_all = sees_all
        self._asks_for_key = asks_for_key

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        start: dict[str, Any] = {"type": "http.response.start", "status": 200, "headers": self._stream_headers()}
        if scope["method"] == "HEAD":
            await send(start)
            await send({"type": "http.response.body"})
            return
        try:
            outbox = self._broadcast.open(sees_all=self._sees_all, asks_for_key=self._asks_for_key)
        except ApiError as error:
            await error_response(error)(scope, receive, send)
            return
        try:
            await send(start)
            writer = _FeedWriter(scope.get(DIRECT_SEND, send), outbox)
            if await until_left(receive, writer, _send_all(outbox, writer)) and ABORT in scope:
                scope[ABORT]()
        finally:
            self._broadcast.close(outbox)

    def _stream_headers(self) -> list[tuple[bytes, bytes]]:
        return [(name, value) for name, value in self.raw_headers if name != b"content-length"]


class _FeedWriter(Writer):
    """A reader of a feed has stalled once too much waits for it."""

    def __init__(self, send: Send, outbox: Outbox) -> None:
        super().__init__(send)
        self._outbox = outbox

    async def stalled(self) -> None:
        await self._outbox.overflow.wait()


async def _send_all(outbox: Outbox, writer: Writer) -> None:
    while data := await outbox.take():
        await writer.write(data)
    await writer.write(b"", more=False)
