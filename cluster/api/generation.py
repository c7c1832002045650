"""One generation as an ASGI response: the service's events out to the client, as a stream or as one object.

The first event is awaited before any header goes out, so that an error gets its own status; a stream that has to wait for
a plan begins all the same, so that its client sees why. The client is watched all the while, also when no token flows:
when it goes away, or reads nothing for long, the events are closed at once, which cancels the request.
"""

import asyncio
import time
from collections.abc import AsyncIterator, Coroutine
from typing import Any

from starlette.responses import Response
from starlette.types import Receive, Scope, Send

from cluster.api.choices import generations
from cluster.api.connection import ABORT
from cluster.api.failures import as_api_error, error_response
from cluster.api.keep_alive import for_people, is_text, kept_alive
from cluster.api.merging import close
from cluster.api.several import Several, Write
from cluster.api.surface import AnswerFormat, ApiRequest, Surface, joined
from cluster.serving.requests import Delta, Event, Finished, Progress, Routed, Service, Waiting

# How long an answer waits for a reader that takes nothing.
STALL_S = 60.0
# In a request's scope: the server's own `send`, without what the framework wraps around it.
DIRECT_SEND = "tandem.send"
STRATEGY_HEADER = "X-Tandem-Strategy"


class GenerationResponse(Response):
    """Runs `request` on `service` when awaited. surface: how the answer is written; model: the id to answer with."""

    def __init__(self, service: Service, request: ApiRequest, surface: Surface, model: str) -> None:
        super().__init__()
        self._service = service
        self._request = request
        self._generations = generations(request)
        self._surface = surface
        self._model = model

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        writer = Writer(scope.get(DIRECT_SEND, send))
        if await until_left(receive, writer, self._answer(scope, receive, send, writer)) and ABORT in scope:
            scope[ABORT]()

    async def _answer(self, scope: Scope, receive: Receive, send: Send, writer: "Writer") -> None:
        events = self._service.generate(self._generations[0])
        try:
            response = await self._begin(events, send, writer)
        except Exception as error:  # noqa: BLE001 - the request's boundary: every error becomes a response
            response = error_response(error, self._surface.refusal)
        finally:
            await close(events)
        if response is not None:
            await response(scope, receive, send)

    async def _begin(self, events: AsyncIterator[Event], send: Send, writer: "Writer") -> Response | None:
        """The response to send, or None when it was streamed. Raises what the service raises before the first byte."""
        first = await anext(events)
        if self._request.stream:
            await send({"type": "http.response.start", "status": 200, "headers": self._stream_headers(first)})
            await self._stream(first, events, writer.write)
            return None
        while isinstance(first, Waiting):
            first = await anext(events)
        routed = _routed(first)
        several = self._several(routed)
        body = await (_collect(events, self._format(routed)) if several is None else several.collect(events))
        return Response(body, 200, {STRATEGY_HEADER: routed.strategy}, "application/json")

    async def _stream(self, first: Event, events: AsyncIterator[Event], write: Write) -> None:
        """A write for each event. An error goes out as an event, and the stream ends without its end mark."""
        try:
            while isinstance(first, Waiting):
                await write(self._surface.comment(for_people(first)))
                first = await anext(events)
            if (several := self._several(_routed(first))) is not None:
                await several.stream(events, write)
                return
            answer = self._format(_routed(first))
            await write(answer.opening())
            await self._stream_events(events, answer, write)
        except Exception as error:  # noqa: BLE001 - the request's boundary: every error becomes an event
            await write(self._surface.failure(as_api_error(error)), more=False)

    async def _stream_events(self, events: AsyncIterator[Event], answer: AnswerFormat, write: Write) -> None:
        num_tokens = 0
        async for item in kept_alive(events, is_text, lambda: write(self._surface.comment("keep-alive"))):
            if isinstance(item, Delta):
                num_tokens += len(item.token_ids)
                if item.text:
                    counts = self._request.counts_each
                    await write(answer.counted(item.text, num_tokens) if counts else answer.text(item.text))
                elif item.reasoning or item.calls:
                    await write(answer.beside(item))
            elif isinstance(item, Progress | Waiting):
                await write(self._surface.comment(for_people(item)))
            elif isinstance(item, Finished):
                await write(answer.closing(item), more=False)
                return
        raise EOFError("the service ended a request without Finished")

    def _stream_headers(self, first: Event) -> list[tuple[bytes, bytes]]:
        """With the strategy, where it is known before the request has to wait."""
        headers = _STREAM_HEADERS | {"Content-Type": self._surface.media_type}
        if isinstance(first, Routed):
            headers[STRATEGY_HEADER] = first.strategy
        return [(name.lower().encode(), value.encode()) for name, value in headers.items()]

    def _format(self, routed: Routed) -> AnswerFormat:
        return self._surface.answer(self._request, routed, model=self._model, created=int(time.time()))

    def _several(self, routed: Routed) -> Several | None:
        """What writes the answer where choices are asked for."""
        if self._request.choices is None:
            return None
        answer = self._surface.choices(self._request, routed, model=self._model, created=int(time.time()))
        return Several(self._service, self._request, self._generations, routed, answer, self._surface.comment)


def _routed(event: Event) -> Routed:
    assert isinstance(event, Routed), event
    return event


async def _collect(events: AsyncIterator[Event], answer: AnswerFormat) -> bytes:
    deltas: list[Delta] = []
    async for item in events:
        if isinstance(item, Delta):
            deltas.append(item)
        elif isinstance(item, Finished):
            return answer.whole(joined(deltas), item)
    raise EOFError("the service ended a request without Finished")


_STREAM_HEADERS = {
    "Cache-Control": "no-cache",
    "X-Accel-Buffering": "no",  # a proxy in between must not collect the stream
}


class Writer:
    """Writes an answer, and knows since when its reader has taken nothing of it."""

    def __init__(self, send: Send) -> None:
        self._send = send
        self._since: float | None = None

    async def write(self, data: bytes, *, more: bool = True) -> None:
        self._since = time.monotonic()
        await self._send({"type": "http.response.body", "body": data, "more_body": more})
        self._since = None

    async def stalled(self) -> None:
        """Returns once a part of the answer has waited for its reader for STALL_S."""
        while True:
            left_s = STALL_S if self._since is None else self._since + STALL_S - time.monotonic()
            if left_s <= 0:
                return
            await asyncio.sleep(left_s)


async def until_left(receive: Receive, writer: Writer, work: Coroutine[Any, Any, None]) -> bool:
    """Run `work` to its end, or cancel it as soon as the client goes away or has read nothing for long, and wait until it
    has cleaned up. Whether the client is still there and does not read.
    """
    working = asyncio.create_task(work)
    leaving, stalling = asyncio.create_task(_disconnected(receive)), asyncio.create_task(writer.stalled())
    try:
        await asyncio.wait({working, leaving, stalling}, return_when=asyncio.FIRST_COMPLETED)
        has_stalled = stalling.done() and not working.done()
    finally:
        leaving.cancel()
        stalling.cancel()
        working.cancel()
        results = await asyncio.gather(working, return_exceptions=True)
    for error in results:
        if isinstance(error, Exception):
            raise error
    return has_stalled


async def _disconnected(receive: Receive) -> None:
    while (await receive())["type"] != "http.disconnect":
        pass
