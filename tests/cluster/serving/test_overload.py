"""Readers that are behind, deadlines and clients that want much, over a cluster that a test plays."""

import asyncio
from contextlib import aclosing

import pytest

from cluster.serving.requests import Delta, Finished, Routed
from cluster.serving.runs import MAX_BEHIND_TOKENS
from protocol.errors import QueueFull, RequestTimeout, Unavailable, WireError
from tests.support.fake_cluster import Client, FakeCluster, plan_of, requests_of, service_of, settle, tokens_request
from tests.support.virtual_time import run

ANSWER = [20 + number % 100 for number in range(3 * MAX_BEHIND_TOKENS)]


class Reader:
    """Reads a request's events one by one, as the test asks."""

    def __init__(self, service, request):
        self._events = service.generate(request)
        self.ids = []
        self.finished = None

    async def __aenter__(self):
        self.routed = await anext(self._events)
        assert isinstance(self.routed, Routed)
        return self

    async def __aexit__(self, *_):
        await self._events.aclose()

    async def read(self):
        """The next event's tokens."""
        event = await anext(self._events)
        if isinstance(event, Delta):
            self.ids += event.token_ids
        elif isinstance(event, Finished):
            self.finished = event


def long_plan(**changes):
    return plan_of(context_tokens=10_000, **changes)


def asking(**fields):
    return tokens_request(max_tokens=len(ANSWER), **fields)


async def behind(reader, cluster):
    """One token is read, and then too many come."""
    sequence = int(reader.routed.request_id)
    cluster.report(sequence, ANSWER[:1])
    await reader.read()
    for start in range(1, MAX_BEHIND_TOKENS + 50, 10):
        cluster.report(sequence, ANSWER[start : start + 10])


def test_sequence_of_a_reader_that_is_behind_ends_and_goes_on_where_it_stood_when_it_has_caught_up(prompts):
    async def scenario():
        cluster = FakeCluster(long_plan())
        service = service_of(prompts, cluster)
        async with Reader(service, asking()) as reader:
            await behind(reader, cluster)
            assert cluster.cancelled() == [("alpha", int(reader.routed.request_id))]
            assert requests_of(service) | {"finished": 0} == {
                "running": 0, "waiting": 1, "finished": 0, "failed": 0, "resumed": 0,
            }  # fmt: skip
            await reader.read()  # everything that was reported
            going_on = asyncio.create_task(reader.read())
            await settle()
            (_, first), (_, second) = cluster.generates()
            assert cluster.prompts()[1] == [*cluster.prompts()[0], *reader.ids]
            assert (second.seed, second.max_tokens) == (first.seed, len(ANSWER) - len(reader.ids))
            rest = ANSWER[len(reader.ids) :]
            for start in range(0, len(rest), 500):
                cluster.report(
                    second.sequence, rest[start : start + 500], "length" if start + 500 >= len(rest) else None
                )
                await going_on
                going_on = asyncio.create_task(reader.read())
            await going_on
        assert reader.ids == ANSWER
        assert (reader.finished.completion_tokens, reader.finished.resumed) == (len(ANSWER), 0)
        assert (requests_of(service)["finished"], requests_of(service)["running"]) == (1, 0)

    run(scenario())


def test_others_take_the_place_and_the_memory_of_who_does_not_read(prompts):
    async def scenario():
        needed = 15 * (5 + len(ANSWER))  # room for one that is long
        cluster = FakeCluster(long_plan(room=needed))
        service = service_of(prompts, cluster, use_distributed_inference="always")
        async with Reader(service, asking(strategy="distributed-cached")) as reader:
            large = tokens_request(3500, max_tokens=100, strategy="distributed-cached")
            other = Client(service, large)
            await other.routed()
            await behind(reader, cluster)
            await settle()
            assert cluster.cancelled() == [("alpha", 2), ("alpha", 1)]  # it gave way, and has come back
            cluster.report(cluster.generates()[2][1].sequence, [7], "length")
            await other.task
        assert requests_of(service)["waiting"] == 0

    run(scenario())


def test_reader_that_leaves_while_it_is_behind_leaves_nothing(prompts):
    async def scenario():
        cluster = FakeCluster(long_plan())
        service = service_of(prompts, cluster)
        async with Reader(service, asking()) as reader:
            await behind(reader, cluster)
        assert len(cluster.cancelled()) == 1
        assert (requests_of(service)["waiting"], service.is_idle) == (0, True)

    run(scenario())


def test_answer_that_is_complete_is_never_paused(prompts):
    async def scenario():
        cluster = FakeCluster(long_plan())
        service = service_of(prompts, cluster)
        async with Reader(service, asking()) as reader:
            cluster.report(int(reader.routed.request_id), ANSWER, "length")
            while reader.finished is None:
                await reader.read()
        assert reader.ids == ANSWER
        assert len(cluster.generates()) == 1

    run(scenario())


@pytest.mark.parametrize("reason", [None, "length"], ids=["it runs", "it is complete"])
def test_stop_waits_for_who_reads_and_not_for_who_does_not(prompts, reason):
    async def scenario():
        cluster = FakeCluster(long_plan())
        service = service_of(prompts, cluster)
        async with Reader(service, asking()) as reader:
            other = Client(service, asking())
            await other.routed()
            unread, read = (message.sequence for _, message in cluster.generates())
            cluster.report(unread, ANSWER[:5], reason)
            draining = asyncio.create_task(service.drain(60))
            for token in ANSWER[:10]:
                cluster.report(read, [token])
                await asyncio.sleep(1)
            assert not draining.done()
            cluster.report(read, [7], "length")
            began = asyncio.get_running_loop().time()
            await draining
            assert asyncio.get_running_loop().time() - began < 1
            await other.task
            assert other.ids == (*ANSWER[:10], 7)
            if reason is None:
                assert ("alpha", unread) in cluster.cancelled()
                await reader.read()
                with pytest.raises(Unavailable, match="stopping"):
                    await reader.read()
            else:
                while reader.finished is None:
                    await reader.read()

    run(scenario())


@pytest.mark.parametrize("fields", [{"timeout_s": 10}, {}])
def test_request_that_takes_longer_than_it_may_ends_and_is_cancelled(prompts, fields):
    async def scenario():
        cluster = FakeCluster(long_plan())
        service = service_of(prompts, cluster, request_timeout_s=10.0)
        began = asyncio.get_running_loop().time()
        client = Client(service, tokens_request(**fields))
        await client.routed()
        for _ in range(3):
            await asyncio.sleep(2)
            cluster.report(1, [20])
        with pytest.raises(RequestTimeout, match="within 10 s"):
            await client.task
        assert asyncio.get_running_loop().time() - began == pytest.approx(10)
        assert len(client.ids) == 3
        assert cluster.cancelled() == [("alpha", 1)]
        assert requests_of(service)["failed"] == 1

    run(scenario())


def test_time_in_the_queue_counts(prompts):
    async def scenario():
        cluster = FakeCluster(None)
        cluster.missing = ("alpha",)
        service = service_of(prompts, cluster, wait_s=60)
        client = Client(service, tokens_request(timeout_s=7))
        with pytest.raises(RequestTimeout, match="within 7 s"):
            await client.task
        assert client.waited_for == [("alpha",)]
        assert requests_of(service)["waiting"] == 0

    run(scenario())


def test_requests_with_time_enough_are_not_touched(prompts):
    async def scenario():
        cluster = FakeCluster(long_plan())
        client = Client(service_of(prompts, cluster), tokens_request(timeout_s=10))
        await client.routed()
        cluster.report(1, [20], "length")
        await client.task
        await asyncio.sleep(20)
        assert client.finished.finish_reason == "length"

    run(scenario())


@pytest.mark.parametrize("num_clients", [1, 20])
def test_every_refused_request_that_comes_back_when_told_is_answered(prompts, num_clients):
    """A thousand within seconds: some run, some wait, and whoever is refused once is not refused again."""

    async def scenario():
        cluster = FakeCluster(long_plan())
        service = service_of(prompts, cluster, max_queue=256)
        refusals = []

        async def ask(number):
            request = tokens_request(max_tokens=4, client=f"client {number % num_clients}")
            await asyncio.sleep(number / 500)
            for attempt in range(2):
                try:
                    async with aclosing(service.generate(request)) as events:
                        return [event async for event in events][-1]
                except QueueFull as error:
                    refusals.append((number, attempt))
                    await asyncio.sleep(error.retry_after_s)
            return None

        async def head():
            """Answers twenty requests a second."""
            answered = set()
            while not all(task.done() for task in asked):
                await asyncio.sleep(1)
                open_now = [message.sequence for _, message in cluster.generates() if message.sequence not in answered]
                for sequence in open_now[:20]:
                    answered.add(sequence)
                    cluster.report(sequence, [20], "length")

        async with asyncio.TaskGroup() as group:
            asked = [group.create_task(ask(number)) for number in range(1000)]
            group.create_task(head())
        assert all(isinstance(task.result(), Finished) for task in asked)
        assert len(refusals) > 400
        assert {attempt for _, attempt in refusals} == {0}

    run(scenario())


def test_request_that_is_too_large_to_send_fails_and_leaves_nothing(prompts):
    class Small(FakeCluster):
        def send(self, worker, message, buffers=()):
            raise WireError("a Generate of 9 bytes is too large to send")

    async def scenario():
        service = service_of(prompts, Small(long_plan()))
        with pytest.raises(WireError):
            await Client(service, tokens_request()).task
        assert (service.is_idle, service.health().serves) == (True, True)
        assert requests_of(service)["running"] == 0

    run(scenario())
