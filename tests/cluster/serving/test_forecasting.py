"""Policy `measured` in the service: what is explained is what runs, what is told of predictions, and what answers teach."""

import asyncio
from collections import Counter

import msgspec
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from cluster.membership.member import Whereabouts
from cluster.planning.route_costs import LinkedCosts
from cluster.serving.forecasting import Forecasting
from protocol.errors import ApiError
from protocol.messages import LinkFigures, PrefillProgress, Reused
from strategy.learning import ENOUGH_TOKENS
from strategy.memory import KvGrowth, KvNeeds
from strategy.situation import Strategy
from strategy.vocabulary import Route
from strategy.wishes import Mode, Objective
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


def cluster_of(plan, *, latency_s=None, bytes_per_s=10**9):
    """latency_s: between its workers, which are on one machine where it is None."""
    cluster = FakeCluster(plan)
    if latency_s is not None:
        for name, member in cluster.members.items():
            member.place = Whereabouts(host=name)
            member.links = tuple(_link(to, latency_s, bytes_per_s) for to in cluster.members if to != name)
    return cluster


def _link(to, latency_s, bytes_per_s=10**9):
    return LinkFigures(
        to=to,
        interface="en5",
        kind="thunderbolt",
        address="tcp://10.0.0.1:1",
        round_trip_us=round(latency_s * 2e6),
        bytes_per_s=bytes_per_s,
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
        by_workers = {each.workers: each for each in idle.routes}
        assert list(by_workers) == [("alpha",), ("beta",), WORKERS]
        assert by_workers["alpha",].decode_tokens_per_s == pytest.approx(
            by_workers["beta",].decode_tokens_per_s / 0.9, rel=0.01
        )
        (together,) = (each for each in idle.strategies if each.strategy == "distributed-cached")
        assert by_workers[WORKERS].strategy == together.strategy
        assert by_workers[WORKERS].decode_tokens_per_s == pytest.approx(together.decode_tokens_per_s, rel=0.01)
        assert idle.prompt_tokens / by_workers[WORKERS].prefill_tokens_per_s == pytest.approx(together.ttft_s, rel=0.01)
        running = Client(service, tokens_request(20, max_tokens=500))
        await running.routed()
        assert service.status().predicted == idle
        await running.leave()
        cluster.end("alpha")
        assert service.status().predicted is None

    run(scenario())


def test_status_says_of_every_route_who_generates_there(prompts):
    async def scenario():
        plan, group = measured_plan(), Route(WORKERS, 2)
        together = msgspec.structs.replace(route(stage(0.6)), route=group)
        service = measuring(prompts, cluster_of(msgspec.structs.replace(plan, costs={**plan.costs, group: together})))
        found = [(each.strategy, each.workers) for each in service.status().predicted.routes]
        assert found[0] == ("tensor-parallel", WORKERS)
        assert set(found[1:]) == {
            ("single-device-cached", ("alpha",)),
            ("single-device-cached", ("beta",)),
            ("distributed-cached", WORKERS),
        }

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


def test_prompt_whose_kv_would_come_late_over_a_throttled_link_is_not_read_by_all(prompts):
    async def scenario():
        token_bytes, asked = 100_000, tokens_request(1500, max_tokens=400)
        found = {}
        for bytes_per_s in (10**9, 10**7):
            cluster = cluster_of(measured_plan(token_bytes=token_bytes), latency_s=0.002, bytes_per_s=bytes_per_s)
            explained = await measuring(prompts, cluster).explain(asked)
            found[bytes_per_s] = explained.strategy
            (late,) = (each for each in explained.candidates if each.strategy == "distributed-prefill")
        assert found == {10**9: "distributed-prefill", 10**7: "single-device-cached"}
        assert late.feasible
        assert late.predicted_ttft_s > 1500 * token_bytes / 10**7
        assert "predicted where single-device-cached takes" in late.reason

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


def test_prompts_that_all_read_at_once_are_answered_by_different_workers(prompts):
    async def scenario():
        cluster = cluster_of(measured_plan(), latency_s=0.002)
        service = measuring(prompts, cluster)
        asked = {"max_tokens": 400, "strategy": "distributed-prefill"}
        clients = [Client(service, tokens_request(300, **asked)) for _ in range(4)]
        for client in clients:
            await client.routed()
        holders = [worker for worker, _ in cluster.generates()]
        assert set(holders) == set(WORKERS)
        for client in clients:
            await client.leave()

    run(scenario())


@pytest.mark.parametrize("strategy", ["single-device-cached", "distributed-prefill"])
def test_requests_that_come_in_the_same_moment_know_of_each_other(prompts, strategy):
    async def scenario():
        cluster = cluster_of(measured_plan(), latency_s=0.002)
        service = measuring(prompts, cluster)
        asked = {"max_tokens": 400, "strategy": strategy}
        clients = [Client(service, tokens_request(300, scope=f"{number}", **asked)) for number in range(8)]
        await asyncio.gather(*(client.routed() for client in clients))
        assert min(Counter(worker for worker, _ in cluster.generates()).values()) in (3, 4)
        for client in clients:
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


def test_answers_teach_how_many_tokens_a_step_gives_where_next_ones_are_guessed(prompts):
    async def scenario():
        cluster = cluster_of(measured_plan(alpha=0.9), latency_s=1.0)
        service = measuring(prompts, cluster)
        asked = tokens_request(20, max_tokens=41)
        client = Client(service, asked)
        sequence = int((await client.routed()).request_id)
        await asyncio.sleep(0.03)
        for number in range(11):  # one step without guesses, ten with four tokens each
            right = 3 if number else 0
            reason = "length" if number == 10 else None
            cluster.report(sequence, [20] * (1 + right), reason, proposed=right, accepted=right)
            await settle()
            await asyncio.sleep(0.01)
        await client.task
        best = await service.explain(asked)
        assert "; with guesses, 3.73 tokens a step)" in best.reason
        assert best.candidates[0].predicted_total_s == pytest.approx(client.finished.total_s, rel=0.15)

    run(scenario())


@pytest.mark.parametrize(
    ("objective", "running", "waiting", "expected"),
    [
        ("total", 0, 1, ("total", 1)),
        ("total", 8, 1, ("total", 9)),
        ("total", 3, 4, ("throughput", 7)),
        ("throughput", 2, 0, ("throughput", 3)),
    ],
)
def test_all_together_count_where_more_wait_than_run(objective, running, waiting, expected):
    found = Forecasting(Objective(objective)).conditions(LinkedCosts(), {}, running, waiting)
    assert (found.objective, found.streams) == expected


def test_as_many_streams_are_expected_as_there_were_at_once_shortly_before():
    forecasting = Forecasting(Objective.THROUGHPUT)
    for number in range(1, 9):
        forecasting.began(number)
    assert forecasting.conditions(LinkedCosts(), {}, 0, 1).streams == 8
    for _ in range(60):
        forecasting.began(1)
    assert forecasting.conditions(LinkedCosts(), {}, 0, 1).streams == 1


def test_answer_beside_which_many_more_came_teaches_nothing_of_one_like_it(prompts):
    num_tokens = ENOUGH_TOKENS + 1

    async def predicted_s(num_beside):
        """For a request alone, after one whose tokens came at a quarter of their pace, beside which so many more came."""
        cluster = cluster_of(measured_plan(workers=("alpha",)))
        service = measuring(prompts, cluster)
        asked = tokens_request(20, max_tokens=num_tokens)
        before = (await service.explain(asked)).candidates[0]
        first = Client(service, asked)
        sequence = int((await first.routed()).request_id)
        others = [Client(service, asked) for _ in range(num_beside)]
        for other in others:
            await other.routed()
        for number in range(num_tokens):
            cluster.report(sequence, [20], "length" if number == num_tokens - 1 else None)
            await settle()
            await asyncio.sleep(4 * before.predicted_total_s / num_tokens)
        await first.task
        for other in others:
            await other.leave()
        await settle()
        return before.predicted_total_s, (await service.explain(asked)).candidates[0].predicted_total_s

    async def scenario():
        before_s, after_s = await predicted_s(0)
        assert after_s > 1.2 * before_s
        before_s, after_s = await predicted_s(3)
        assert after_s == before_s

    run(scenario())


def test_steps_are_held_against_those_that_are_predicted_beside_as_many_as_there_were(prompts):
    num_tokens = ENOUGH_TOKENS + 1
    asked = tokens_request(20, max_tokens=num_tokens)

    async def step_s(service):
        first = (await service.explain(asked)).candidates[0]
        return (first.predicted_total_s - first.predicted_ttft_s) / (num_tokens - 1)

    async def scenario():
        cluster = cluster_of(measured_plan(workers=("alpha",)))
        service = measuring(prompts, cluster)
        before_s = await step_s(service)
        clients = [Client(service, asked) for _ in range(4)]
        sequences = [int((await client.routed()).request_id) for client in clients]
        for number in range(num_tokens):
            for sequence in sequences:
                cluster.report(sequence, [20], "length" if number == num_tokens - 1 else None)
            await settle()
            await asyncio.sleep(stage().decode_s(4, 20 + number))
        for client in clients:
            await client.task
        assert await step_s(service) == pytest.approx(before_s, rel=0.02), (
            "three were there when the third came, four when it ran"
        )

    run(scenario())


def test_what_a_short_answer_met_once_says_nothing_of_its_steps(prompts):
    num_tokens = 9
    asked = tokens_request(20, max_tokens=num_tokens)

    async def scenario():
        cluster = cluster_of(measured_plan(workers=("alpha",)))
        service = measuring(prompts, cluster)
        before = (await service.explain(asked)).candidates[0]
        client = Client(service, asked)
        sequence = int((await client.routed()).request_id)
        await asyncio.sleep(before.predicted_ttft_s)
        for number in range(num_tokens):
            cluster.report(sequence, [20], "length" if number == num_tokens - 1 else None)
            await settle()
            await asyncio.sleep(stage().decode_s(1, 20 + number) + (0.1 if number == 3 else 0.0))
        await client.task
        after = (await service.explain(asked)).candidates[0]
        assert after.predicted_total_s == pytest.approx(before.predicted_total_s, rel=0.01)

    run(scenario())
