"""Policy `measured` in the service: what is explained is what runs, what is told of predictions, and what answers teach."""

import asyncio

import msgspec
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from cluster.membership.member import Whereabouts
from protocol.errors import ApiError
from protocol.messages import LinkFigures, PrefillProgress, Reused
from strategy.memory import KvGrowth, KvNeeds
from strategy.situation import Mode, Strategy
from strategy.vocabulary import Route
from tests.strategy.test_cost import route, stage
from tests.support.fake_cluster import Client, FakeCluster, plan_of, service_of, settle, tokens_request
from tests.support.virtual_time import run

WORKERS = ("alpha", "beta")
PIPELINE = Route(WORKERS)


def measured_plan(alpha=1.0, beta=1.0, *, workers=WORKERS, token_bytes=10, **fields):
    """As fast as `stage` at a scale of one; a pipeline shares the layers evenly. token_bytes: of the KV of a token."""
    plan = plan_of(workers, full=workers, room=10**12, **fields)
    needs = KvNeeds(fixed_bytes=0, growth=(KvGrowth(token_bytes, None),), snapshots=False)
    plan = msgspec.structs.replace(plan, needs={each: dict.fromkeys(each, needs) for each in plan.needs})
    scales = {"alpha": alpha, "beta": beta}
    costs = {
        each: msgspec.structs.replace(route(*(stage(scales[name] / len(each)) for name in each)), route=each)
        for each in plan.needs
    }
    return msgspec.structs.replace(plan, costs=costs)


def cluster_of(plan, *, latency_s=None):
    """latency_s: between its workers, which are on one machine where it is None."""
    cluster = FakeCluster(plan)
    if latency_s is not None:
        for name, member in cluster.members.items():
            member.place = Whereabouts(host=name)
            member.links = tuple(_link(to, latency_s) for to in cluster.members if to != name)
    return cluster


def _link(to, latency_s):
    return LinkFigures(
        to=to,
        interface="en5",
        kind="thunderbolt",
        address="tcp://10.0.0.1:1",
        round_trip_us=round(latency_s * 2e6),
        bytes_per_s=10**9,
        in_use=True,
    )


def measuring(prompts, cluster, **fields):
    return service_of(prompts, cluster, policy="measured", **fields)


async def answer(cluster, client, *, num_tokens, ttft_s, step_s):
    routed = await client.routed()
    sequence = int(routed.request_id)
    await asyncio.sleep(ttft_s)
    for number in range(num_tokens):
        cluster.report(sequence, [20 + number % 7], "length" if number == num_tokens - 1 else None)
        await settle()
        await asyncio.sleep(step_s)
    await client.task
    return client


def test_answer_says_what_was_predicted_and_what_it_took(prompts):
    async def scenario():
        cluster = cluster_of(measured_plan())
        service = measuring(prompts, cluster)
        explained = await service.explain(tokens_request(20, max_tokens=100))
        client = await answer(
            cluster, Client(service, tokens_request(20, max_tokens=100)), num_tokens=100, ttft_s=0.3, step_s=0.01
        )
        routed = await client.routed()
        best = explained.candidates[0]
        assert (routed.predicted.ttft_s, routed.predicted.total_s) == (best.predicted_ttft_s, best.predicted_total_s)
        assert routed.strategy == best.strategy == "single-device-cached"
        assert client.finished.ttft_s == pytest.approx(0.3)
        assert client.finished.total_s == pytest.approx(0.3 + 99 * 0.01)

    run(scenario())


def test_worker_that_turns_out_slow_gets_no_more_requests(prompts):
    async def scenario():
        cluster = cluster_of(measured_plan(alpha=0.9), latency_s=1.0)
        service = measuring(prompts, cluster)
        taken = []
        for _ in range(8):
            client = Client(service, tokens_request(20, max_tokens=50))
            (worker,) = (await client.routed()).workers
            taken.append(worker)
            step_s = 0.02 if worker == "alpha" else 0.004
            await answer(cluster, client, num_tokens=50, ttft_s=0.03, step_s=step_s)
        assert taken[0] == "alpha"
        assert set(taken[4:]) == {"beta"}

    run(scenario())


def test_status_says_what_the_plan_promises_whatever_runs(prompts):
    async def scenario():
        cluster = cluster_of(measured_plan(alpha=0.9))
        service = measuring(prompts, cluster)
        idle = service.status().predicted
        explained = await service.explain(tokens_request(idle.prompt_tokens, max_tokens=idle.max_tokens))
        assert [(each.strategy, each.workers, each.ttft_s) for each in idle.strategies] == [
            (each.strategy, each.workers, each.predicted_ttft_s) for each in explained.candidates if each.feasible
        ]
        for each, of in zip(idle.strategies, explained.candidates, strict=False):
            in_all_s = each.ttft_s + (idle.max_tokens - 1) / each.decode_tokens_per_s
            assert in_all_s == pytest.approx(of.predicted_total_s, rel=0.02)
        running = Client(service, tokens_request(20, max_tokens=500))
        await running.routed()
        assert service.status().predicted == idle
        await running.leave()
        cluster.end("alpha")
        assert service.status().predicted is None

    run(scenario())


def test_busy_worker_is_left_for_an_idle_one(prompts):
    async def scenario():
        cluster = cluster_of(measured_plan(alpha=0.9), latency_s=1.0)
        service = measuring(prompts, cluster)
        first = Client(service, tokens_request(20, max_tokens=500))
        assert (await first.routed()).workers == ("alpha",)
        cluster.report(int((await first.routed()).request_id), [20])
        await settle()
        second = Client(service, tokens_request(20, max_tokens=500))
        assert (await second.routed()).workers == ("beta",)
        for client in (first, second):
            await client.leave()
        third = Client(service, tokens_request(20, max_tokens=500))
        assert (await third.routed()).workers == ("alpha",)
        await third.leave()

    run(scenario())


def test_prompt_comes_back_to_the_caches_that_know_it_until_they_do_not(prompts):
    async def scenario():
        cluster = cluster_of(measured_plan(beta=0.99), latency_s=1.0)
        service = measuring(prompts, cluster)
        first = Client(service, tokens_request(640, max_tokens=4, strategy="single-device-cached"))
        assert (await first.routed()).workers == ("beta",)
        await answer(cluster, first, num_tokens=4, ttft_s=0.4, step_s=0.004)
        predicted = [(await service.explain(tokens_request(640, max_tokens=4))).candidates[0] for _ in range(2)]
        assert predicted[0].workers == ("beta",)
        assert predicted[0].predicted_ttft_s < 0.1
        again = Client(service, tokens_request(640, max_tokens=4))
        cluster.listener.reused(Reused(sequence=int((await again.routed()).request_id), num_tokens=0))
        await answer(cluster, again, num_tokens=4, ttft_s=0.4, step_s=0.004)
        later = (await service.explain(tokens_request(640, max_tokens=4))).candidates[0]
        assert later.predicted_ttft_s > 0.2

    run(scenario())


def test_client_whose_answers_end_early_is_not_taken_at_its_word(prompts):
    async def scenario():
        cluster = cluster_of(measured_plan(token_bytes=10**7), latency_s=0.002)
        service = measuring(prompts, cluster)
        before = (await service.explain(tokens_request(1500, max_tokens=400, client="me"))).strategy
        for _ in range(3):
            client = Client(service, tokens_request(5, max_tokens=400, client="me"))
            sequence = int((await client.routed()).request_id)
            cluster.report(sequence, [20, 21, 22], "stop")
            await client.task
        after = (await service.explain(tokens_request(1500, max_tokens=400, client="me"))).strategy
        other = (await service.explain(tokens_request(1500, max_tokens=400, client="you"))).strategy
        assert (before, after, other) == ("single-device-cached", "distributed-cached", "single-device-cached")

    run(scenario())


def test_after_a_loss_it_is_predicted_for_the_plan_in_force(prompts):
    async def scenario():
        cluster = cluster_of(measured_plan(token_bytes=10**7))
        service = measuring(prompts, cluster)
        assert (await service.explain(tokens_request(1500, max_tokens=5))).strategy == "distributed-cached"
        cluster.end("beta")
        cluster.begin(measured_plan(workers=("alpha",), epoch=2))
        explained = await service.explain(tokens_request(1500, max_tokens=5))
        assert explained.candidates[0].workers == ("alpha",)

    run(scenario())


def test_long_prompt_is_read_by_all_for_the_one_that_answers(prompts):
    async def scenario():
        cluster = cluster_of(measured_plan(), latency_s=0.002)
        client = Client(measuring(prompts, cluster), tokens_request(1500, max_tokens=400))
        routed = await client.routed()
        ((worker, message),) = cluster.generates()
        assert (routed.strategy, routed.workers) == ("distributed-prefill", WORKERS)
        assert (message.route, message.read_by) == (Route((worker,)), PIPELINE)
        await client.leave()

    run(scenario())


_REQUESTS = st.tuples(
    st.integers(1, 1500),
    st.integers(1, 400),
    st.none() | st.sampled_from(["auto", "always", "never"]),
    st.none() | st.sampled_from([str(strategy) for strategy in Strategy]),
    st.sampled_from(["me", "you"]),
)


@settings(max_examples=25, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    requests=st.lists(st.tuples(_REQUESTS, st.sampled_from(["run", "read", "end", "lose", "leave"])), max_size=12),
    mode=st.sampled_from(Mode),
    policy=st.sampled_from(["measured", "thresholds"]),
    objective=st.sampled_from(["total", "ttft", "throughput"]),
    scales=st.tuples(st.floats(0.2, 5), st.floats(0.2, 5)),
)
def test_what_is_explained_is_what_then_runs(prompts, requests, mode, policy, objective, scales):
    """Whatever ran before, runs, was lost, and is set."""

    async def scenario():
        cluster = cluster_of(measured_plan(*scales))
        service = service_of(
            prompts, cluster, policy=policy, objective=objective, use_distributed_inference=mode, max_queue=1000
        )
        running = []
        for (prompt, most, own_mode, strategy, client), befalls in requests:
            fields = {"max_tokens": most, "mode": own_mode, "strategy": strategy, "client": client}
            request = tokens_request(prompt, **fields)
            explained, refused = await _explained(service, request)
            if explained is None:
                with pytest.raises(ApiError) as caught:
                    await Client(service, request).routed()
                assert str(caught.value) == refused
                continue
            reader = Client(service, request)
            routed = await reader.routed()
            assert (routed.strategy, routed.reason) == (explained.strategy, explained.reason)
            chosen = next(each for each in explained.candidates if each.strategy == explained.strategy)
            assert routed.workers == chosen.workers
            assert (routed.predicted is None) == (chosen.predicted_total_s is None)
            if routed.predicted is not None:
                assert routed.predicted.total_s == chosen.predicted_total_s
            running.append(reader)
            await _befall(cluster, reader, routed, befalls, scales)
        for reader in running:
            await reader.leave()

    run(scenario())


async def _explained(service, request):
    try:
        return await service.explain(request), None
    except ApiError as error:
        return None, str(error)


async def _befall(cluster, reader, routed, befalls, scales):
    sequence = int(routed.request_id)
    match befalls:
        case "run":
            cluster.report(sequence, [20])
        case "read":
            cluster.listener.progress(PrefillProgress(sequence=sequence, processed=100, total=1000))
        case "end":
            cluster.report(sequence, [20, 21], "length")
        case "lose":
            cluster.end(sentence="a link was lost")
            cluster.begin(measured_plan(*scales, epoch=cluster.epoch + 2))
        case "leave":
            await reader.leave()
    await settle()
