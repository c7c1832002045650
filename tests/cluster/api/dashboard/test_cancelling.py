"""Requests that are cancelled from outside: what their clients are told, in each language, and what is left of them."""

import asyncio
import json

import pytest

from tests.cluster.api.dashboard.watched import watching
from tests.support.fake_cluster import plan_of, requests_of, settle
from tests.support.virtual_time import run

MESSAGES = [{"role": "user", "content": "hi"}]
BODIES = {
    "/v1/chat/completions": {"messages": MESSAGES},
    "/v1/completions": {"prompt": "hi"},
    "/v1/responses": {"input": "hi"},
    "/v1/messages": {"messages": MESSAGES, "max_tokens": 9},
    "/api/chat": {"messages": MESSAGES},
    "/api/generate": {"prompt": "hi"},
}
EMBEDDING_BODIES = {"/v1/embeddings": {"input": "hi"}, "/api/embed": {"input": "hi"}}
SENTENCE = "This request was cancelled by somebody who looks after the cluster"


async def cancelled(watched, request_id="1"):
    """What whoever cancels is told."""
    answer = await watched.http("DELETE", f"/v1/requests/{request_id}")
    await settle()
    return answer.status_code, answer.json()


def require_nothing_left(watched):
    counts = requests_of(watched.service)
    assert (counts["running"], counts["waiting"], counts["finished"], counts["failed"]) == (0, 0, 0, 0)
    assert watched.service.ledger().rows() == []
    (ended,) = watched.service.ledger().ended_since(0)
    assert (ended.state, ended.finish_reason) == ("cancelled", "request_cancelled")
    assert watched.service.measures().outcomes.total() == 1


def message_of(body):
    error = body["error"] if "error" in body else body["response"]["error"]
    return error if isinstance(error, str) else error["message"]


@pytest.mark.parametrize("path", [*BODIES, *EMBEDDING_BODIES])
def test_client_of_a_running_request_gets_an_error_in_its_words(prompts, path):
    @watching
    async def scenario(watched):
        body = (BODIES | EMBEDDING_BODIES)[path]
        asked = asyncio.create_task(
            watched.http("POST", path, body if path in EMBEDDING_BODIES else body | {"stream": False})
        )
        await settle()
        ((worker, begun),) = watched.cluster.generates()
        assert await cancelled(watched) == (200, {"id": "1", "object": "request", "deleted": True})
        answer = await asked
        assert answer.status_code == 499
        assert message_of(answer.json()).startswith(SENTENCE)
        assert watched.cluster.cancelled() == [(worker, begun.sequence)]
        require_nothing_left(watched)

    run(scenario(prompts))


@pytest.mark.parametrize("path", BODIES)
def test_stream_of_a_running_request_keeps_what_came_and_ends_with_an_error(prompts, path):
    @watching
    async def scenario(watched):
        asked = asyncio.create_task(watched.http("POST", path, BODIES[path] | {"stream": True}))
        await settle()
        watched.cluster.report(1, (20,))
        await settle()
        await cancelled(watched)
        answer = await asked
        assert answer.status_code == 200
        pieces = [
            json.loads(line.removeprefix("data: "))
            for line in answer.text.splitlines()
            if line.startswith(("data: {", "{"))
        ]
        assert message_of(pieces[-1]).startswith(SENTENCE)
        assert "[DONE]" not in answer.text
        assert len(watched.cluster.cancelled()) == 1
        require_nothing_left(watched)

    run(scenario(prompts))


@pytest.mark.parametrize("path", [*BODIES, *EMBEDDING_BODIES])
def test_request_that_waits_for_a_plan_can_be_cancelled(prompts, path):
    @watching
    async def scenario(watched):
        body = (BODIES | EMBEDDING_BODIES)[path]
        asked = asyncio.create_task(
            watched.http("POST", path, body if path in EMBEDDING_BODIES else body | {"stream": False})
        )
        await settle()
        assert [row.waits_for for row in watched.service.ledger().rows()] == ["a plan"]
        assert (await cancelled(watched))[0] == 200
        answer = await asked
        assert answer.status_code == 499
        assert message_of(answer.json()).startswith(SENTENCE)
        assert not watched.cluster.sent
        require_nothing_left(watched)

    run(scenario(prompts, plan=None))


def test_stream_that_waits_long_for_a_plan_ends_with_an_error(prompts):
    @watching
    async def scenario(watched):
        asked = asyncio.create_task(
            watched.http("POST", "/v1/completions", BODIES["/v1/completions"] | {"stream": True})
        )
        await asyncio.sleep(11)
        await cancelled(watched)
        answer = await asked
        assert answer.status_code == 200
        assert SENTENCE in answer.text
        require_nothing_left(watched)

    run(scenario(prompts, plan=None))


def test_request_whose_route_was_lost_can_be_cancelled_before_it_goes_on(prompts):
    @watching
    async def scenario(watched):
        client = watched.ask(strategy="distributed-cached")
        await client.routed()
        watched.cluster.end("beta")
        assert (await cancelled(watched))[0] == 200
        with pytest.raises(Exception, match="cancelled"):
            await client.task
        require_nothing_left(watched)

    run(scenario(prompts))


def test_request_whose_route_was_lost_in_the_same_moment_is_cancelled_too(prompts):
    @watching
    async def scenario(watched):
        client = watched.ask(strategy="distributed-cached")
        await client.routed()
        watched.service.cancel("1")
        watched.cluster.replan("beta")
        with pytest.raises(Exception, match="cancelled"):
            await client.task
        assert len(watched.cluster.generates()) == 1
        require_nothing_left(watched)

    run(scenario(prompts))


def test_request_that_was_just_given_a_place_does_not_begin_to_run(prompts):
    @watching
    async def scenario(watched):
        client = watched.ask()
        await settle()
        watched.cluster.begin(plan_of())
        watched.service.cancel("1")
        with pytest.raises(Exception, match="cancelled"):
            await client.task
        assert not watched.cluster.generates()
        require_nothing_left(watched)

    run(scenario(prompts, plan=None))


def test_what_was_complete_before_it_was_cancelled_is_answered(prompts):
    @watching
    async def scenario(watched):
        client = watched.ask()
        await client.routed()
        watched.cluster.report(1, (20, 21), "length")
        watched.service.cancel("1")
        await client.task
        assert client.finished.completion_tokens == 2
        (ended,) = watched.service.ledger().ended_since(0)
        assert (ended.state, ended.finish_reason) == ("finished", "length")

    run(scenario(prompts))


@pytest.mark.parametrize("request_id", ["2", "0", "x", "1%2F2", "-1"])
def test_there_is_nothing_else_to_cancel(prompts, request_id):
    @watching
    async def scenario(watched):
        client = watched.ask()
        await client.routed()
        status, body = await cancelled(watched, request_id)
        assert (status, body["error"]["code"]) == (404, "not_found")
        assert watched.cluster.cancelled() == []
        await client.leave()
        assert (await cancelled(watched))[0] == 404

    run(scenario(prompts))


def test_cancelling_one_of_several_choices_ends_their_request(prompts):
    @watching
    async def scenario(watched):
        asked = asyncio.create_task(watched.http("POST", "/v1/completions", {"prompt": "hi", "n": 3}))
        await settle()
        watched.cluster.report(1, (20,))  # the others begin with what is kept of its prompt
        await settle()
        assert [row.id for row in watched.service.ledger().rows()] == ["1", "2", "3"]
        await cancelled(watched, "2")
        assert (await asked).status_code == 499
        assert watched.service.ledger().rows() == []
        assert sorted(sequence for _, sequence in watched.cluster.cancelled()) == [1, 2, 3]

    run(scenario(prompts))
