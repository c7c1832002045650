"""The requests that there are and were: what is told of each, in every state."""

import asyncio

import pytest

from cluster.serving.requests import GenerationRequest, TextPrompt
from protocol.errors import NotFound
from protocol.messages import Reused, SequenceFailed
from tests.support.fake_cluster import Client, FakeCluster, plan_of, service_of, settle, tokens_request
from tests.support.virtual_time import run


def only(rows):
    (row,) = rows
    return row


def test_request_is_told_from_its_arrival_to_its_end(prompts):
    async def scenario():
        cluster = FakeCluster()
        service = service_of(prompts, cluster)
        ledger = service.ledger()
        client = Client(service, tokens_request(200, max_tokens=60, key="ann", strategy="single-device-cached"))
        await asyncio.sleep(1)
        row = only(ledger.rows())
        assert (row.id, row.state, row.waits_for, row.key) == ("1", "waiting", "a plan", "ann")
        assert (row.strategy, row.reason, row.workers) == ("single-device-cached", None, ())
        assert (row.prompt_tokens, row.max_tokens, row.completion_tokens) == (200, 60, 0)
        cluster.begin(plan_of())
        await settle()
        row = only(ledger.rows())
        assert (row.id, row.state, row.waits_for, row.workers) == ("1", "running", None, ("alpha",))
        assert row.reason
        service.reused(Reused(sequence=1, num_tokens=64))
        await asyncio.sleep(1)
        cluster.report(1, (20,))
        await asyncio.sleep(1)
        cluster.report(1, (20, 20, 20, 20))
        await settle()
        row = only(ledger.rows())
        assert (row.cached_tokens, row.completion_tokens) == (64, 5)
        assert (row.ttft_s, row.tokens_per_s, row.total_s) == (pytest.approx(2), pytest.approx(4), None)
        assert ledger.read_tokens == 200
        cluster.report(1, (20,), "stop")
        await client.task
        assert ledger.rows() == []
        row = only(ledger.ended_since(0))
        assert (row.id, row.state, row.finish_reason, row.waits_for) == ("1", "finished", "stop", None)
        assert row.total_s == pytest.approx(3)
        assert (ledger.num_ended, ledger.read_tokens) == (1, 200)

    run(scenario())


def test_limit_that_was_cut_is_the_one_that_counts_and_none_is_told_where_none_was_named(prompts):
    async def scenario():
        service = service_of(prompts, FakeCluster(plan_of()))
        clients = [Client(service, tokens_request(1900, max_tokens=limit)) for limit in (500, 10, None)]
        await settle()
        assert [row.max_tokens for row in service.ledger().rows()] == [100, 10, None]
        for client in clients:
            await client.leave()

    run(scenario())


def test_ends_are_told_apart(prompts):
    async def scenario():
        cluster = FakeCluster(plan_of())
        service = service_of(prompts, cluster, request_timeout_s=30)
        clients = [Client(service, tokens_request()) for _ in range(4)]
        await settle()
        await clients[0].leave()
        service.failed(SequenceFailed(sequence=2, message="a kernel failed"))
        service.cancel("3")
        await asyncio.sleep(31)
        assert [(row.id, row.state, row.finish_reason) for row in service.ledger().ended_since(0)] == [
            ("1", "cancelled", "left"),
            ("2", "failed", "internal_error"),
            ("3", "cancelled", "request_cancelled"),
            ("4", "failed", "request_timeout"),
        ]
        assert all(client.task.done() for client in clients)
        await asyncio.gather(*(client.task for client in clients), return_exceptions=True)

    run(scenario())


def test_place_in_the_queue_is_waited_for_and_so_is_memory(prompts):
    async def scenario():
        # Room for the caches of one of them.
        cluster = FakeCluster(plan_of(room=10 * 400))
        service = service_of(prompts, cluster)
        clients = [
            Client(service, tokens_request(200, max_tokens=100, strategy="distributed-cached")) for _ in range(2)
        ]
        await settle()
        assert [(row.state, row.waits_for) for row in service.ledger().rows()] == [
            ("running", None),
            ("waiting", "its turn"),
        ]
        for client in clients:
            await client.leave()

    run(scenario())


def test_what_nobody_reads_waits_for_its_reader(prompts):
    async def scenario():
        cluster = FakeCluster(plan_of())
        service = service_of(prompts, cluster)
        events = service.generate(tokens_request(max_tokens=1900, strategy="distributed-cached"))
        await anext(events)
        cluster.report(1, [20] * 1500)
        assert [(row.state, row.waits_for) for row in service.ledger().rows()] == [("waiting", "its reader")]
        await events.aclose()

    run(scenario())


def test_only_the_last_that_ended_are_kept_and_each_is_told_once(prompts):
    async def scenario():
        cluster = FakeCluster(plan_of())
        service = service_of(prompts, cluster)
        ledger = service.ledger()
        for number in range(1, 301):
            client = Client(service, tokens_request())
            await client.routed()
            cluster.report(number, (20,), "stop")
            await client.task
        assert ledger.num_ended == 300
        assert [row.id for row in ledger.ended_since(297)] == ["298", "299", "300"]
        assert ledger.ended_since(300) == ()
        assert len(ledger.ended_since(0)) == 256

    run(scenario())


def test_what_is_refused_at_once_was_never_there(prompts):
    async def scenario():
        service = service_of(prompts, FakeCluster(plan_of()))
        client = Client(service, GenerationRequest(prompt=TextPrompt("cat " * 3000)))
        with pytest.raises(Exception, match="context"):
            await client.task
        assert service.ledger().rows() == []
        assert service.ledger().ended_since(0) == ()
        with pytest.raises(NotFound):
            service.cancel("1")

    run(scenario())
