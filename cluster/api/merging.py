"""Several generations of one request as one run of events, in the order in which they come."""

import asyncio
import logging
from collections.abc import AsyncGenerator, AsyncIterator, Sequence

from cluster.serving.requests import Delta, Event, Finished, GenerationRequest, Routed, Service

logger = logging.getLogger(__name__)

CLOSE_TIMEOUT_S = 5.0

_Said = asyncio.Queue[tuple[int, Event | Exception]]


async def close(events: AsyncIterator[Event]) -> None:
    """End a generation on the workers, if it has not ended."""
    aclose = getattr(events, "aclose", None)
    if aclose is None:
        return
    try:
        await asyncio.wait_for(aclose(), CLOSE_TIMEOUT_S)
    except Exception:  # the request's boundary: a failing clean-up must not replace the answer
        logger.exception("closing a request failed")


async def merged(
    service: Service, requests: Sequence[GenerationRequest], copies: int, routed: Routed, first: AsyncIterator[Event]
) -> AsyncGenerator[tuple[int, Event], None]:
    """The events of all, each with its place among `requests`, until all have finished. Raises what any of them raises.

    first: those of the first after `routed`. Of `copies` in a row, which have one prompt, the first goes ahead: by the time it
    says something what was computed of the prompt is kept, and the others begin with that. Who reads slowly holds up all.
    """
    said: _Said = asyncio.Queue(len(requests))
    ahead = [asyncio.Event() for _ in range(0, len(requests), copies)]

    async def run(place: int) -> None:
        begun = ahead[place // copies]
        if place % copies:
            await begun.wait()
        await _run(place, service.generate(requests[place]) if place else first, said, begun)

    running = [asyncio.create_task(run(place)) for place in range(len(requests))]
    try:
        yield 0, routed
        num_finished = 0
        while num_finished < len(requests):
            place, event = await said.get()
            if isinstance(event, Exception):
                raise event
            num_finished += isinstance(event, Finished)
            yield place, event
    finally:
        for task in running:
            task.cancel()
        await asyncio.gather(*running, return_exceptions=True)


async def _run(place: int, events: AsyncIterator[Event], said: _Said, begun: asyncio.Event) -> None:
    """One generation to its end, or to the error that ends it. begun: to be set once it says something."""
    try:
        async for event in events:
            await said.put((place, event))
            if isinstance(event, Delta | Finished):
                begun.set()
            if isinstance(event, Finished):
                return
        await said.put((place, EOFError("the service ended a request without Finished")))
    except Exception as error:  # noqa: BLE001 - a task's boundary: whoever reads raises it
        await said.put((place, error))
    finally:
        await close(events)
