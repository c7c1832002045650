"""Streams that say nothing for long are kept alive until they have begun: some clients and proxies end what is silent."""

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable
from typing import TypeVar

from cluster.serving.requests import Delta, Event, Progress, Waiting

# Until the first text of a stream, a comment goes out this often.
KEEP_ALIVE_S = 5.0

_Item = TypeVar("_Item")


def is_text(event: Event) -> bool:
    """Whether a stream of one answer has begun with it."""
    return isinstance(event, Delta)


def for_people(event: Progress | Waiting) -> str:
    """What a comment says of it."""
    if isinstance(event, Progress):
        return f"prefill {event.processed}/{event.total}"
    return f"waiting for {', '.join(event.workers) or 'a plan'}"


async def kept_alive(
    events: AsyncIterator[_Item], begins: Callable[[_Item], bool], beat: Callable[[], Awaitable[None]]
) -> AsyncIterator[_Item]:
    """The events; `beat` is awaited whenever none comes for a while, until one with which the stream `begins`."""
    has_begun = False
    while not has_begun:
        awaited = asyncio.ensure_future(anext(events, None))
        try:
            while not (await asyncio.wait({awaited}, timeout=KEEP_ALIVE_S))[0]:
                await beat()
        finally:
            if awaited.cancel():
                await asyncio.gather(awaited, return_exceptions=True)
        if (item := awaited.result()) is None:
            return
        has_begun = begins(item)
        yield item
    async for item in events:
        yield item
