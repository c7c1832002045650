"""Several keys: who is let in, who is told apart, and what a key that has had its share is told."""

import asyncio
import json

import httpx
import pytest

from cluster.settings import KeySettings
from tests.support.fake_service import FINISHED, ROUTED, FakeService, app_over, ask

CHAT = {"messages": [{"role": "user", "content": "hi"}]}
KEYS = (KeySettings(name="ann", key="key-a"), KeySettings(name="ben", key="key-b"))


def bearing(key):
    return {"Authorization": f"Bearer {key}"}


@pytest.mark.parametrize(
    ("headers", "status"),
    [
        (bearing("key-a"), 200),
        ({"x-api-key": "key-b"}, 200),
        (bearing("first"), 200),
        (bearing("key-"), 401),
        (bearing("ann"), 401),
        ({}, 401),
    ],
)
def test_each_of_several_keys_lets_in_and_no_other(headers, status):
    options = {"api_key": "first", "keys": KEYS}
    assert ask(FakeService(), "GET", "/v1/models", headers=headers, **options).status_code == status


def test_named_keys_alone_ask_for_one():
    assert ask(FakeService(), "GET", "/v1/models", keys=KEYS).status_code == 401
    assert ask(FakeService(), "GET", "/health", keys=KEYS).status_code == 200


def test_requests_know_the_name_of_their_key_and_are_of_different_clients():
    service = FakeService()
    for key in ("key-a", "key-b", "first"):
        ask(service, "POST", "/v1/chat/completions", CHAT, headers=bearing(key), api_key="first", keys=KEYS)
    assert [request.key for request in service.requests] == ["ann", "ben", ""]
    assert len({request.client for request in service.requests}) == 3
    assert not any("key-" in request.client for request in service.requests)


def with_client(service, use, **options):
    async def run():
        transport = httpx.ASGITransport(app_over(service, **options))
        async with httpx.AsyncClient(transport=transport, base_url="http://localhost") as client:
            return await use(client)

    return asyncio.run(run())


def test_further_request_of_a_key_is_told_when_to_come_back_and_other_keys_are_served():
    service = FakeService(ROUTED, ...)
    keys = (KeySettings(name="ann", key="key-a", max_running=1), KEYS[1])

    async def use(client):
        first = asyncio.create_task(client.post("/v1/chat/completions", json=CHAT, headers=bearing("key-a")))
        await service.waiting.wait()
        further = [
            await client.post(path, json=CHAT, headers=bearing("key-a")) for path in ("/v1/messages", "/api/chat")
        ]
        looked = await client.get("/v1/models", headers=bearing("key-a"))
        service.script = (ROUTED, FINISHED)
        other = await client.post("/v1/chat/completions", json=CHAT, headers=bearing("key-b"))
        first.cancel()
        await asyncio.gather(first, return_exceptions=True)
        again = await client.post("/v1/chat/completions", json=CHAT, headers=bearing("key-a"))
        return further, looked, other, again

    further, looked, other, again = with_client(service, use, keys=keys)
    assert [(each.status_code, each.headers["retry-after"]) for each in further] == [(429, "1")] * 2
    assert further[0].json()["error"]["type"] == "rate_limit_error"
    assert "key ann" in further[1].json()["error"]
    assert (looked.status_code, other.status_code, again.status_code) == (200, 200, 200)


def test_tokens_of_a_minute_end_with_429_also_where_they_were_streamed():
    service = FakeService()
    keys = (KeySettings(name="ann", key="key-a", tokens_per_minute=10),)  # one answer has 7 + 3

    async def use(client):
        first = await client.post("/v1/chat/completions", json=CHAT | {"stream": True}, headers=bearing("key-a"))
        return first, await client.post("/v1/chat/completions", json=CHAT, headers=bearing("key-a"))

    first, second = with_client(service, use, keys=keys)
    assert (first.status_code, second.status_code) == (200, 429)
    error = json.loads(second.text)["error"]
    assert (error["type"], error["code"]) == ("rate_limit_error", "rate_limit_exceeded")
    assert 1 <= int(second.headers["retry-after"]) <= 60
    assert len(service.requests) == 1
