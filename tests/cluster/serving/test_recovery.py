"""Requests that outlive their plan: they go on from what was generated, wait for who is missing, and end with a reason."""

import asyncio

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from cluster.serving.requests import GenerationRequest, Routed, TextPrompt
from protocol.errors import ApiError, BadRequest, ContextTooLong, Unavailable
from protocol.messages import Reused
from protocol.values import Route, Sampling
from tests.support.fake_cluster import (
    NAMES,
    Client,
    FakeCluster,
    plan_of,
    requests_of,
    service_of,
    settle,
    tokens_request,
)
from tests.support.virtual_time import run

TEXT = "the cat sat on the mat, naïve 日本語"
STRATEGIES = ["distributed-cached", "distributed-no-cache", "single-device-cached"]


def words(prompts, text):
    return prompts.encode(GenerationRequest(prompt=TextPrompt(text)))[1:]


async def begun(prompts, request, plan=None, **options):
    cluster = FakeCluster(plan or plan_of())
    service = service_of(prompts, cluster, **options)
    client = Client(service, request)
    await client.routed()
    return cluster, service, client


async def play(cluster, client, ids, kills=()):
    """Heads generate `ids` one by one; before the token of each number in `kills` the plan is replaced."""
    for at, token in enumerate(ids):
        for _ in range(kills.count(at)):
            cluster.replan()
            await settle()
        if client.task.done():
            break
        sequence = len(cluster.generates())
        cluster.report(sequence, (token,), "length" if at == len(ids) - 1 else None)
        await settle()
    await client.task


# --- going on


@pytest.mark.parametrize("strategy", STRATEGIES)
def test_answer_is_the_same_whatever_token_the_plan_is_lost_at(prompts, strategy):
    ids = words(prompts, TEXT)

    async def scenario(kills):
        request = tokens_request(5, strategy=strategy, max_tokens=len(ids), sampling=Sampling(temperature=1.0))
        cluster, _, client = await begun(prompts, request)
        await play(cluster, client, ids, kills)
        seeds = {message.seed for _, message in cluster.generates()}
        assert len(seeds) == 1
        assert {message.request_id for _, message in cluster.generates()} == {int(client.of(Routed)[0].request_id)}
        for (_, message), prompt in zip(cluster.generates(), cluster.prompts(), strict=True):
            assert prompt == [20] * 5 + list(ids[: len(prompt) - 5])
            assert message.max_tokens == len(ids) - (len(prompt) - 5)
        return client

    undisturbed = run(scenario(()))
    for at in range(len(ids)):
        client = run(scenario((at,)))
        assert client.text == undisturbed.text == TEXT
        assert client.ids == client.finished.token_ids == ids
        assert (client.finished.prompt_tokens, client.finished.completion_tokens) == (5, len(ids))
        assert (client.finished.finish_reason, client.finished.resumed) == ("length", 1)
        assert len(client.of(Routed)) == 1


@settings(deadline=None, max_examples=40, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(kills=st.lists(st.integers(0, 12), max_size=6), stop=st.sampled_from([("mat",), ("t on", "x"), ("at, n",)]))
def test_stop_string_is_found_across_any_number_of_cuts(prompts, kills, stop):
    ids = words(prompts, TEXT)

    async def scenario(kills):
        cluster, _, client = await begun(prompts, tokens_request(stop=stop, max_tokens=100))
        await play(cluster, client, ids, kills)
        return client

    cut, whole = run(scenario(kills)), run(scenario([]))
    assert cut.text == whole.text == TEXT[: min(TEXT.find(item) for item in stop if item in TEXT)]
    assert cut.finished.token_ids == whole.finished.token_ids
    assert cut.finished.finish_reason == "stop"


def test_tokens_that_came_before_the_loss_are_not_lost_with_it(prompts):
    async def scenario():
        cluster, _, client = await begun(prompts, tokens_request(max_tokens=4))
        cluster.report(1, (21,))
        cluster.report(1, (22,))
        cluster.replan("gamma")
        cluster.report(1, (99,))  # of the plan that ended
        await settle()
        assert cluster.prompts()[-1] == [20] * 5 + [21, 22]
        cluster.report(2, (23, 24), "length")
        await client.task
        assert client.ids == (21, 22, 23, 24)

    run(scenario())


def test_answer_that_was_complete_when_the_plan_ended_is_not_asked_for_again(prompts):
    async def scenario():
        cluster, service, client = await begun(prompts, tokens_request(max_tokens=1))
        cluster.report(1, (21,), "length")
        cluster.replan("gamma")
        await client.task
        assert (client.ids, client.finished.resumed) == ((21,), 0)
        assert len(cluster.generates()) == 1
        assert requests_of(service) == {"running": 0, "waiting": 0, "finished": 1, "failed": 0, "resumed": 0}

    run(scenario())


def test_time_to_the_first_token_and_reused_tokens_stay_those_of_the_beginning(prompts):
    async def scenario():
        cluster, _, client = await begun(prompts, tokens_request(strategy="distributed-cached", max_tokens=2))
        cluster.listener.reused(Reused(sequence=1, num_tokens=3))
        await asyncio.sleep(2)
        cluster.report(1, (21,))
        await settle()
        await asyncio.sleep(2)
        cluster.replan("gamma")
        await settle()
        cluster.listener.reused(Reused(sequence=2, num_tokens=6))
        cluster.report(2, (22,), "length")
        await client.task
        assert client.finished.ttft_s == pytest.approx(2)
        assert client.finished.cached_tokens == 3

    run(scenario())


def test_request_keeps_its_strategy_where_it_can_and_says_so_where_it_cannot(prompts):
    async def scenario():
        request = tokens_request(5, strategy="distributed-cached", max_tokens=3)
        cluster, _, client = await begun(prompts, request, plan_of(full=()))
        assert client.events[0].strategy == "distributed-cached"
        cluster.replan("gamma", full=())
        await settle()
        assert cluster.generates()[-1][1].route.workers == ("alpha", "beta")
        cluster.report(2, (21,), "length")
        await client.task
        assert client.finished.notes == ()

        cluster, _, client = await begun(prompts, tokens_request(500, max_tokens=3))
        assert client.events[0].workers == ("alpha",)
        cluster.replan("alpha", full=())
        await settle()
        cluster.report(2, (21,), "length")
        await client.task
        (note,) = client.finished.notes
        assert note == "after worker alpha was lost the answer went on with distributed-cached on beta>gamma"

    run(scenario())


def test_request_whose_prompt_all_read_for_one_goes_on_there_alone_where_only_that_is_left(prompts):
    async def scenario():
        request = tokens_request(500, strategy="distributed-prefill", max_tokens=3)
        cluster, _, client = await begun(prompts, request)
        assert (client.events[0].strategy, client.events[0].workers) == ("distributed-prefill", NAMES)
        worker, message = cluster.generates()[-1]
        assert (worker, message.route, message.read_by) == ("beta", Route(("beta",)), Route(NAMES))
        cluster.replan("gamma")
        await settle()
        assert cluster.generates()[-1][1].read_by == Route(("alpha", "beta"))
        cluster.report(2, (21,))
        await settle()
        cluster.replan("beta")
        await settle()
        _, message = cluster.generates()[-1]
        assert (message.route, message.read_by) == (Route(("alpha",)), None)
        cluster.report(3, (22, 23), "length")
        await client.task
        assert client.ids == (21, 22, 23)
        (note,) = client.finished.notes
        assert note == "after worker beta was lost the answer went on with single-device-cached on alpha"

    run(scenario())


def test_resumed_requests_are_counted_and_told_once_for_all(prompts):
    async def scenario():
        cluster, service, first = await begun(prompts, tokens_request(max_tokens=3))
        second = Client(service, tokens_request(max_tokens=3))
        await second.routed()
        cluster.replan("gamma")
        await settle()
        assert requests_of(service) == {"running": 2, "waiting": 0, "finished": 0, "failed": 0, "resumed": 2}
        assert [event.what for event in service.status().events] == ["resumed 2 requests"]
        for client in (first, second):
            await client.leave()

    run(scenario())


def test_who_ran_goes_on_before_whoever_waited(prompts, monkeypatch):
    monkeypatch.setattr("cluster.serving.service.MAX_RUNNING", 1)

    async def scenario():
        cluster, service, first = await begun(prompts, tokens_request(3))
        second = Client(service, tokens_request(4))
        await settle()
        cluster.end("gamma")
        await settle()
        cluster.begin(plan_of(("alpha", "beta"), epoch=2))
        await settle()
        assert [len(prompt) for prompt in cluster.prompts()] == [3, 3]
        for client in (first, second):
            await client.leave()

    run(scenario())


# --- not for ever


@pytest.mark.parametrize(
    "silences", [(False, False), (True, True, True, True), (True, False, True)], ids=["died", "silent", "both"]
)
def test_request_under_which_a_worker_died_twice_or_was_silent_often_is_not_tried_again(prompts, silences):
    async def scenario():
        cluster, service, client = await begun(prompts, tokens_request(strategy="distributed-no-cache"))
        for was_silence in silences:
            assert not client.task.done()
            cluster.end("beta", was_silence=was_silence)
            await settle()
            cluster.begin(plan_of(epoch=2))
            await settle()
        with pytest.raises(ApiError, match="beta was lost too often while it worked on this request") as failed:
            await client.task
        assert failed.value.status == 500
        counted = {"running": 0, "waiting": 0, "finished": 0, "failed": 1, "resumed": len(silences) - 1}
        assert requests_of(service) == counted

    run(scenario())


def test_deaths_of_different_workers_or_of_none_or_elsewhere_do_not_count(prompts):
    async def scenario():
        cluster, _, client = await begun(prompts, tokens_request(500, max_tokens=9))
        assert client.events[0].workers == ("alpha",)
        for died in (("gamma",), ("gamma",), (), (), ("beta",), ("gamma",), ("alpha",)):
            cluster.end(*died)
            await settle()
            cluster.begin(plan_of(full=("alpha",), epoch=2))
            await settle()
        cluster.report(len(cluster.generates()), (21,), "length")
        await client.task
        assert client.finished.resumed == 7

    run(scenario())


# --- waiting


def test_request_waits_for_who_is_missing_says_so_and_ends_with_the_reason(prompts):
    async def scenario():
        cluster, service, client = await begun(prompts, tokens_request())
        cluster.end("alpha", "beta")
        await settle()
        began = asyncio.get_running_loop().time()
        assert service.status().requests.waiting == 1
        with pytest.raises(Unavailable, match="alpha, beta did not come back within 60 s"):
            await client.task
        assert asyncio.get_running_loop().time() - began == pytest.approx(60)
        assert client.waited_for == [("alpha", "beta")] * 11
        assert requests_of(service) == {"running": 0, "waiting": 0, "finished": 0, "failed": 1, "resumed": 0}

    run(scenario())


def test_request_that_comes_while_nothing_serves_waits_for_the_first_plan(prompts):
    async def scenario():
        cluster = FakeCluster(None)
        service = service_of(prompts, cluster)
        client = Client(service, tokens_request(max_tokens=1))
        await asyncio.sleep(12)
        assert client.waited_for == [(), ()]
        assert (service.models()[0].id, service.models()[0].context_tokens) == ("tiny", None)
        cluster.begin(plan_of())
        await client.routed()
        assert service.models()[0].context_tokens == 2000
        cluster.report(1, (21,), "length")
        await client.task

    run(scenario())


def test_prompt_that_is_too_long_before_the_first_plan_is_refused_with_it(prompts):
    async def scenario():
        cluster = FakeCluster(None)
        client = Client(service_of(prompts, cluster), tokens_request(2000))
        await settle()
        cluster.begin(plan_of())
        with pytest.raises(ContextTooLong, match="context is 2000 tokens"):
            await client.task

    run(scenario())


def test_nobody_comes_and_nobody_is_missing_is_said_too(prompts):
    async def scenario():
        client = Client(service_of(prompts, FakeCluster(None), wait_s=3), tokens_request())
        with pytest.raises(Unavailable, match="no plan that can serve this request came within 3 s"):
            await client.task
        assert client.events == []

    run(scenario())


def test_what_does_not_fit_the_survivors_waits_until_they_are_all_back_and_others_go_on(prompts):
    async def scenario():
        roomy, small = 3000 * 10, 256 * 10
        request = tokens_request(300, strategy="distributed-cached", max_tokens=100)
        cluster, _, large = await begun(prompts, request, plan_of(room=roomy))
        cluster.report(1, (21,))
        cluster.replan("gamma", room=small)
        service = cluster.listener
        other = Client(service, tokens_request(5, mode="never", max_tokens=5))
        await other.routed()
        assert not service.is_idle
        await asyncio.sleep(31)
        assert large.waited_for == [("gamma",)] * 6
        cluster.end(sentence="gamma joined the plan")
        cluster.begin(plan_of(room=roomy, epoch=3))
        await settle()
        went_on = {
            len(prompt): message for (_, message), prompt in zip(cluster.generates(), cluster.prompts(), strict=True)
        }
        assert (went_on[301].route.head, went_on[301].max_tokens) == ("alpha", 99)
        for client in (large, other):
            await client.leave()

    run(scenario())


def test_wish_that_a_missing_worker_could_fulfil_waits_and_any_other_is_refused_at_once(prompts):
    async def scenario():
        cluster = FakeCluster(plan_of(full=()))
        cluster.missing = ("delta",)
        service = service_of(prompts, cluster, wait_s=30)
        single = Client(service, tokens_request(mode="never"))
        with pytest.raises(BadRequest, match=r"name some in \[\[groups\]\]"):
            await Client(service, tokens_request(strategy="tensor-parallel")).task
        with pytest.raises(Unavailable, match="9 GB"):
            await service.explain(tokens_request(mode="never"))
        with pytest.raises(Unavailable, match="delta did not come back within 30 s"):
            await single.task

    run(scenario())


# --- leaving and stopping


def test_client_that_leaves_while_its_request_waits_to_go_on_leaves_nothing_behind(prompts):
    async def scenario():
        cluster, service, client = await begun(prompts, tokens_request())
        cluster.end("alpha")
        await settle()
        await client.leave()
        assert requests_of(service) == {"running": 0, "waiting": 0, "finished": 0, "failed": 0, "resumed": 0}
        cluster.begin(plan_of(epoch=2))
        await settle()
        assert len(cluster.generates()) == 1
        await asyncio.wait_for(service.drain(60), 1)

    run(scenario())


def test_client_that_reads_slowly_gets_everything_in_order_over_two_plans(prompts):
    async def scenario():
        cluster = FakeCluster(plan_of())
        service = service_of(prompts, cluster)
        events = service.generate(tokens_request(max_tokens=3))
        await anext(events)
        cluster.report(1, (21,))
        cluster.replan()
        cluster.replan()  # it has a place again, and loses it before it noticed
        delta = await anext(events)
        reading = asyncio.create_task(anext(events))
        await settle()
        assert len(cluster.generates()) == 2
        cluster.report(2, (22, 23), "length")
        assert (delta.token_ids, (await reading).token_ids) == ((21,), (22, 23))
        await events.aclose()

    run(scenario())


def test_drain_during_a_replan_waits_for_who_ran_and_refuses_who_did_not(prompts):
    async def scenario():
        cluster, service, client = await begun(prompts, tokens_request(max_tokens=2))
        cluster.end("gamma")
        newcomer = Client(service, tokens_request())
        await settle()
        draining = asyncio.create_task(service.drain(20))
        with pytest.raises(Unavailable, match="stopping"):
            await newcomer.task
        cluster.begin(plan_of(("alpha", "beta"), epoch=2))
        await settle()
        assert not draining.done()
        cluster.report(2, (21,), "length")
        await client.task
        await draining

    run(scenario())


def test_drain_ends_who_waits_for_a_plan_that_does_not_come(prompts):
    async def scenario():
        cluster, service, client = await begun(prompts, tokens_request())
        cluster.end("gamma")
        await service.drain(20)
        with pytest.raises(Unavailable, match="stopped before the answer"):
            await client.task

    run(scenario())
