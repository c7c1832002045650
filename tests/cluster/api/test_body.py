"""Bodies: small ones are looked at at once, large ones off the event loop and one at a time."""

import asyncio
import json
import threading

import pytest
from starlette.requests import Request

from cluster.api.body import LARGE_BYTES, parsed_body
from cluster.api.surfaces.completions import raw_prompt
from cluster.serving.requests import TokensPrompt
from protocol.errors import BadRequest

LIMIT_S = 20.0


def request_of(body):
    content = json.dumps(body).encode()
    messages = iter([{"type": "http.request", "body": content, "more_body": False}])

    async def receive():
        return next(messages)

    headers = [(b"content-length", str(len(content)).encode())]
    return Request({"type": "http", "method": "POST", "path": "/", "headers": headers}, receive)


SMALL, LARGE = {"prompt": "x"}, {"prompt": "x" * LARGE_BYTES}


def test_small_body_is_looked_at_at_once():
    async def where():
        return await parsed_body(request_of(SMALL), lambda _: threading.current_thread())

    assert asyncio.run(where()) is threading.main_thread()


def test_large_body_does_not_hold_up_the_loop():
    async def run():
        goes_on = threading.Event()
        found = asyncio.create_task(parsed_body(request_of(LARGE), lambda body: (goes_on.wait(LIMIT_S), body)))
        assert await parsed_body(request_of(SMALL), lambda body: body) == SMALL
        goes_on.set()
        return await found

    assert asyncio.run(run()) == (True, LARGE)


def test_large_bodies_are_looked_at_one_at_a_time():
    async def run():
        at_once, most = [], []

        def parse(_):
            at_once.append(1)
            most.append(len(at_once))
            at_once.pop()

        await asyncio.gather(*(parsed_body(request_of(LARGE), parse) for _ in range(8)))
        return max(most)

    assert asyncio.run(run()) == 1


def test_what_is_wrong_with_a_large_body_is_said_like_that_of_a_small_one():
    def refuse(_):
        raise BadRequest("no")

    async def run():
        await parsed_body(request_of(LARGE), refuse)

    with pytest.raises(BadRequest, match="no"):
        asyncio.run(run())


def test_ids_that_are_all_ids_are_taken_as_they_are():
    assert raw_prompt("prompt", [1, 2, 3]) == TokensPrompt((1, 2, 3))
    with pytest.raises(BadRequest, match=r"prompt\[1\]"):
        raw_prompt("prompt", [1, True, 3])
    with pytest.raises(BadRequest, match=r"prompt\[2\]"):
        raw_prompt("prompt", [1, 2, -3])
