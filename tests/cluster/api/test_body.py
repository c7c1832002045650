"""Bodies: small ones are looked at at once, large ones off the event loop and one at a time."""

import asyncio
import json
import threading

import pytest
from hypothesis import given
from hypothesis import strategies as st
from starlette.requests import Request

from cluster.api.body import LARGE_BYTES, MAX_CONTAINERS, MAX_NAMES, measured, parsed_body
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


TEXT = st.text(st.characters() | st.sampled_from('"\\[]{}:,'), max_size=8)
ANY_JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | TEXT,
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(TEXT, inner, max_size=4),
)


def counted(value):
    """As `measured` counts, from what was decoded."""
    inner = list(value.values()) if isinstance(value, dict) else value if isinstance(value, list) else []
    of_inner = [counted(item) for item in inner]
    own = (int(isinstance(value, list | dict)), len(value) if isinstance(value, dict) else 0)
    return tuple(map(sum, zip(own, *of_inner, strict=True)))


@given(ANY_JSON, st.booleans())
def test_lists_objects_and_names_are_counted_before_anything_is_decoded(value, ascii_only):
    assert measured(json.dumps(value, ensure_ascii=ascii_only).encode(errors="replace")) == counted(value)


@pytest.mark.parametrize(
    "metadata",
    [[[]] * (MAX_CONTAINERS + 1), [{}] * (MAX_CONTAINERS + 1), {f"{number}": 0 for number in range(MAX_NAMES + 1)}],
    ids=["lists", "objects", "names"],
)
def test_large_body_of_too_many_parts_is_refused_before_it_is_decoded(metadata):
    with pytest.raises(BadRequest, match="send at most"):
        asyncio.run(parsed_body(request_of({"prompt": "x", "metadata": metadata}), lambda body: body))


def test_large_text_may_hold_what_would_be_too_many_parts():
    body = {"prompt": '[{":\\"' * MAX_CONTAINERS}
    assert asyncio.run(parsed_body(request_of(body), lambda body: body)) == body
