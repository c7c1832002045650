"""The service over a cluster that a test plays: routing, limits, endings and what clients are told."""

import asyncio
from array import array
from itertools import pairwise

import msgspec
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from cluster.membership.member import Whereabouts
from cluster.serving.requests import GenerationRequest, Progress, TextPrompt, TokensPrompt
from cluster.serving.tally import Tally
from protocol.errors import ApiError, BadRequest, ContextTooLong, QueueFull, Unavailable, UsageError
from protocol.messages import ForgetConversation, PrefillProgress, Reused, SequenceFailed
from protocol.values import Sampling
from strategy.cache_use import MeasuredUse, PayingRange
from strategy.vocabulary import Route
from tests.support.fake_cluster import (
    CONTEXT_TOKENS,
    NAMES,
    SHORTAGE,
    Client,
    FakeCluster,
    plan_of,
    requests_of,
    service_of,
    settle,
    tokens_request,
)
from tests.support.virtual_time import run

PIPELINE = Route(NAMES)


async def answered(prompts, request, *updates, cluster=None, **strategy) -> Client:
    """A request whose head reports these (tokens, finish reason)."""
    cluster = cluster or FakeCluster(plan_of())
    client = Client(service_of(prompts, cluster, **strategy), request)
    routed = await client.routed()
    for tokens, reason in updates:
        await asyncio.sleep(0.1)
        cluster.report(int(routed.request_id), tokens, reason)
    await client.task
    return client


def words(prompts, text):
    return prompts.encode(GenerationRequest(prompt=TextPrompt(text)))[1:]


# --- tokens


def test_tokens_of_a_prompt_and_its_text_need_no_worker(prompts):
    async def scenario():
        service = service_of(prompts, FakeCluster())
        tokens = await service.encode(GenerationRequest(prompt=TextPrompt("the cat")))
        assert tokens == prompts.encode(GenerationRequest(prompt=TextPrompt("the cat")))
        assert await service.decode(tokens) == "<s>the cat"
        with pytest.raises(BadRequest):
            await service.decode((400,))

    run(scenario())


def test_model_is_said_to_be_what_the_plan_and_the_tokenizer_know(prompts):
    async def scenario():
        (model,) = service_of(prompts, FakeCluster(plan_of())).models()
        assert (model.architecture, model.context_tokens, model.abilities) == ("llama", CONTEXT_TOKENS, ())
        (unknown,) = service_of(prompts, FakeCluster()).models()
        assert unknown.architecture is None

    run(scenario())


# --- routing


@pytest.mark.parametrize(
    ("prompt_tokens", "max_tokens", "strategy", "reason"),
    [
        (100, 50, "distributed-no-cache", "100 prompt tokens and 50 to generate are at most 100 and 50"),
        (101, 50, "single-device-cached", "101 prompt tokens are more than 100"),
        (100, 51, "single-device-cached", "51 tokens to generate are more than 50"),
    ],
)
def test_request_goes_by_the_thresholds_and_its_head_gets_it(prompts, prompt_tokens, max_tokens, strategy, reason):
    async def scenario():
        cluster = FakeCluster(plan_of())
        client = Client(service_of(prompts, cluster), tokens_request(prompt_tokens, max_tokens=max_tokens))
        routed = await client.routed()
        assert (routed.strategy, routed.prompt_tokens) == (strategy, prompt_tokens)
        assert reason in routed.reason
        ((worker, message),) = cluster.generates()
        assert worker == message.route.head == routed.workers[0]
        assert message.route == (Route(("alpha",)) if strategy == "single-device-cached" else PIPELINE)
        assert message.cached == (strategy == "single-device-cached")
        assert message.max_tokens == max_tokens
        assert cluster.sent[0][2] == (array("i", [20] * prompt_tokens).tobytes(),)
        client.task.cancel()

    run(scenario())


def test_single_device_requests_go_to_the_least_busy_holder_of_the_full_model(prompts):
    async def scenario():
        cluster = FakeCluster(plan_of(full=("alpha", "gamma")))
        service = service_of(prompts, cluster, use_distributed_inference="never")
        clients = [Client(service, tokens_request()) for _ in range(4)]
        routes = [(await client.routed()).workers for client in clients]
        assert sorted(routes) == [("alpha",), ("alpha",), ("gamma",), ("gamma",)]
        for client in clients:
            client.task.cancel()
        await asyncio.wait([client.task for client in clients])
        fifth = Client(service, tokens_request())
        assert (await fifth.routed()).workers == ("alpha",)
        await fifth.leave()

    run(scenario())


def test_request_overrides_mode_and_strategy(prompts):
    async def scenario():
        cluster = FakeCluster(plan_of())
        service = service_of(prompts, cluster, use_distributed_inference="never")
        for fields, strategy in [
            ({}, "single-device-cached"),
            ({"mode": "always"}, "distributed-no-cache"),
            ({"strategy": "distributed-cached"}, "distributed-cached"),
            ({"mode": "never", "strategy": "distributed-no-cache"}, "distributed-no-cache"),
        ]:
            client = Client(service, tokens_request(**fields))
            assert (await client.routed()).strategy == strategy
            client.task.cancel()

    run(scenario())


def test_model_that_fits_no_worker_is_distributed_and_cached_beyond_the_thresholds(prompts):
    async def scenario():
        cluster = FakeCluster(plan_of(full=()))
        service = service_of(prompts, cluster)
        for count, strategy in ((100, "distributed-no-cache"), (101, "distributed-cached")):
            client = Client(service, tokens_request(count, max_tokens=50))
            routed = await client.routed()
            assert (routed.strategy, routed.workers) == (strategy, PIPELINE.workers)
            client.task.cancel()

    run(scenario())


def test_mode_that_the_plan_can_never_serve_is_refused_at_the_start_with_the_reason(prompts):
    async def scenario():
        nowhere, uncut = FakeCluster(plan_of(full=())), FakeCluster(plan_of(why_not="a loop"))
        with pytest.raises(UsageError, match=r"9 GB .* 5 GB"):
            service_of(prompts, nowhere, use_distributed_inference="never").check_mode(nowhere.plan)
        with pytest.raises(UsageError, match="cannot be split: a loop"):
            service_of(prompts, uncut, use_distributed_inference="always").check_mode(uncut.plan)
        for cluster in (nowhere, uncut):
            service_of(prompts, cluster, use_distributed_inference="auto").check_mode(cluster.plan)

    run(scenario())


@pytest.mark.parametrize(
    ("plan", "mode", "reason"),
    [(plan_of(full=()), "never", r"9 GB .* 5 GB"), (plan_of(why_not="a loop"), "always", "cannot be split: a loop")],
)
def test_mode_of_a_request_that_cannot_be_had_names_its_field(prompts, plan, mode, reason):
    async def scenario():
        with pytest.raises(BadRequest, match=reason) as refused:
            await answered(prompts, tokens_request(mode=mode), cluster=FakeCluster(plan))
        assert refused.value.param == "use_distributed_inference"

    run(scenario())


def test_strategy_that_cannot_be_had_names_its_field(prompts):
    async def scenario():
        with pytest.raises(BadRequest) as refused:
            await answered(prompts, tokens_request(strategy="tensor-parallel"))
        assert refused.value.param == "strategy"

    run(scenario())


def test_explain_gives_the_choice_and_sends_nothing(prompts):
    async def scenario():
        cluster = FakeCluster(plan_of(full=()))
        explained = await service_of(prompts, cluster).explain(tokens_request(7, max_tokens=3))
        assert (explained.strategy, explained.prompt_tokens, explained.max_tokens) == (
            "distributed-no-cache",
            7,
            3,
        )
        assert {candidate.strategy: candidate.why_not for candidate in explained.candidates}[
            "single-device-cached"
        ] == SHORTAGE
        assert cluster.sent == []

    run(scenario())


# --- lengths


def test_prompt_and_max_tokens_may_fill_the_context_exactly(prompts):
    async def scenario():
        cluster = FakeCluster(plan_of())
        client = Client(service_of(prompts, cluster), tokens_request(CONTEXT_TOKENS - 10, max_tokens=10))
        await client.routed()
        client.task.cancel()

    run(scenario())


def test_max_tokens_beyond_the_context_are_cut_to_what_is_left_and_the_answer_says_so(prompts):
    async def scenario():
        cluster = FakeCluster(plan_of())
        client = Client(service_of(prompts, cluster), tokens_request(CONTEXT_TOKENS - 10, max_tokens=32_000))
        await client.routed()
        assert cluster.generates()[0][1].max_tokens == 10
        cluster.report(1, (20,), "length")
        await client.task
        (note,) = client.finished.notes
        assert note.startswith("max_tokens was cut from 32000 to 10: the model's context of 2000 tokens")

    run(scenario())


@pytest.mark.parametrize("asked", [{"prompt": TokensPrompt((5, 300))}, {"sampling": Sampling(logit_bias={300: 1.0})}])
def test_token_ids_beyond_the_loaded_weights_are_a_bad_request_whatever_the_configuration_says(prompts, asked):
    async def scenario():
        request = GenerationRequest(**{"prompt": TokensPrompt((5,))} | asked)
        with pytest.raises(BadRequest, match="vocabulary of 300"):
            await answered(prompts, request, cluster=FakeCluster(plan_of(vocabulary_size=300)))

    run(scenario())


def test_prompt_that_fills_the_context_is_too_long(prompts):
    async def scenario():
        with pytest.raises(ContextTooLong, match="2000 tokens") as refused:
            await answered(prompts, tokens_request(CONTEXT_TOKENS, prompt_field="input"))
        assert refused.value.param == "input"

    run(scenario())


@pytest.mark.parametrize(
    ("prompt_tokens", "expected"), [(5, CONTEXT_TOKENS - 5), (CONTEXT_TOKENS - 100, 100), (CONTEXT_TOKENS - 1, 1)]
)
def test_without_max_tokens_an_answer_may_go_on_to_what_the_context_leaves(prompts, prompt_tokens, expected):
    async def scenario():
        cluster = FakeCluster(plan_of())
        client = Client(service_of(prompts, cluster), tokens_request(prompt_tokens))
        await client.routed()
        assert cluster.generates()[0][1].max_tokens == expected
        client.task.cancel()

    run(scenario())


def test_model_without_a_context_limit_takes_any_max_tokens(prompts):
    async def scenario():
        cluster = FakeCluster(plan_of(context_tokens=None))
        client = Client(service_of(prompts, cluster), tokens_request(5, max_tokens=100_000))
        await client.routed()
        assert cluster.generates()[0][1].max_tokens == 100_000
        client.task.cancel()

    run(scenario())


# --- seeds


def test_seed_of_the_request_reaches_the_head_and_without_one_each_request_gets_its_own(prompts):
    async def scenario():
        cluster = FakeCluster(plan_of())
        service = service_of(prompts, cluster)
        for sampling in (Sampling(seed=11), Sampling(), Sampling(), Sampling(seed=-1)):
            client = Client(service, tokens_request(sampling=sampling))
            await client.routed()
            client.task.cancel()
        given_seed, first, second, negative = [message.seed for _, message in cluster.generates()]
        assert given_seed == 11
        assert first != second
        assert negative >= 0

    run(scenario())


# --- answers


def test_answer_is_streamed_and_counted_as_mlx_lm_counts(prompts):
    async def scenario():
        ids = words(prompts, "the cat sat on the mat")
        end = min(prompts.eos_token_ids)
        client = await answered(prompts, tokens_request(), (ids[:2], None), ((*ids[2:], end), "stop"))
        assert client.text == "the cat sat on the mat"
        assert client.finished.token_ids == client.ids == ids
        assert client.finished.completion_tokens == len(ids) + 1
        assert client.finished.finish_reason == "stop"
        assert client.finished.prompt_tokens == 5
        assert client.finished.ttft_s == pytest.approx(0.1)
        assert client.finished.decode_tokens_per_s == pytest.approx(len(ids) / 0.1)

    run(scenario())


def test_tally_of_a_request_knows_what_its_answer_has_at_any_time_and_what_it_failed_with(prompts):
    async def scenario():
        cluster = FakeCluster(plan_of())
        service = service_of(prompts, cluster)
        tally = Tally()
        both = [Client(service, msgspec.structs.replace(tokens_request(), tally=tally)) for _ in range(2)]
        assert (tally.strategy, tally.prompt_tokens, tally.is_finished) == (None, 0, False)
        for client in both:
            await client.routed()
        assert (tally.strategy, tally.prompt_tokens, tally.ttft_s) == ("single-device-cached", 10, None)
        cluster.report(1, (20, 21, 22), "length")
        await both[0].task
        assert (tally.completion_tokens, tally.is_finished, tally.error) == (3, False, None)
        cluster.listener.failed(SequenceFailed(sequence=2, message="beta: no memory"))
        with pytest.raises(ApiError, match="beta: no memory") as caught:
            await both[1].task
        assert (tally.completion_tokens, tally.error) == (3, caught.value)

    run(scenario())


def test_answer_cut_by_length_keeps_its_last_token(prompts):
    async def scenario():
        ids = words(prompts, "the cat sat")
        client = await answered(prompts, tokens_request(), (ids, "length"))
        assert (client.text, client.finished.finish_reason) == ("the cat sat", "length")
        assert client.finished.completion_tokens == len(client.finished.token_ids) == len(ids)

    run(scenario())


def test_answer_of_one_token_has_no_rate(prompts):
    async def scenario():
        client = await answered(prompts, tokens_request(), ((20,), "length"))
        assert client.finished.decode_tokens_per_s is None

    run(scenario())


def test_end_token_alone_is_an_empty_answer(prompts):
    async def scenario():
        client = await answered(prompts, tokens_request(), ((min(prompts.eos_token_ids),), "stop"))
        assert (client.text, client.finished.token_ids, client.finished.completion_tokens) == ("", (), 1)

    run(scenario())


def test_progress_of_the_prefill_is_passed_on(prompts):
    async def scenario():
        cluster = FakeCluster(plan_of())
        client = Client(service_of(prompts, cluster), tokens_request())
        await client.routed()
        cluster.listener.progress(PrefillProgress(sequence=1, processed=3, total=5))
        cluster.report(1, (20,), "length")
        await client.task
        assert client.events[1] == Progress(processed=3, total=5)

    run(scenario())


def test_stop_string_ends_the_answer_before_it_and_the_sequence_on_its_worker(prompts):
    async def scenario():
        cluster = FakeCluster(plan_of())
        client = Client(service_of(prompts, cluster), tokens_request(stop=("on the",)))
        await client.routed()
        ids = words(prompts, "the cat sat on the mat")
        for token in ids:
            cluster.report(1, (token,))
            await settle()
        await client.task
        assert client.text == "the cat sat "
        assert client.finished.finish_reason == "stop"
        assert client.finished.completion_tokens == len(client.finished.token_ids) < len(ids)
        assert cluster.cancelled() == [("alpha", 1)]

    run(scenario())


@settings(deadline=None, max_examples=40, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(cuts=st.lists(st.integers(0, 30)), stop=st.sampled_from([(), ("mat",), ("cat", "on"), ("zzz",)]))
def test_answer_does_not_depend_on_how_its_tokens_arrive(prompts, cuts, stop):
    ids = words(prompts, "the cat sat on the mat, naïve 日本語")
    bounds = sorted({0, len(ids), *(cut for cut in cuts if cut < len(ids))})
    parts = [ids[start:end] for start, end in pairwise(bounds)]

    async def scenario(parts):
        updates = [(part, "length" if number == len(parts) - 1 else None) for number, part in enumerate(parts)]
        client = await answered(prompts, tokens_request(stop=stop), *updates)
        assert client.ids == client.finished.token_ids
        return client.text, client.finished.token_ids, client.finished.completion_tokens, client.finished.finish_reason

    assert run(scenario(parts)) == run(scenario([ids]))


# --- what goes wrong


def test_failure_of_a_sequence_is_an_error_of_its_request_and_counted(prompts):
    async def scenario():
        cluster = FakeCluster(plan_of())
        service = service_of(prompts, cluster)
        failing, fine = Client(service, tokens_request()), Client(service, tokens_request())
        await failing.routed()
        await fine.routed()
        cluster.listener.failed(SequenceFailed(sequence=1, message="beta: no memory"))
        cluster.report(2, (20,), "length")
        with pytest.raises(ApiError, match="beta: no memory"):
            await failing.task
        await fine.task
        assert requests_of(service) == {"running": 0, "waiting": 0, "finished": 1, "failed": 1, "resumed": 0}

    run(scenario())


def test_client_that_leaves_cancels_its_sequence_on_the_head(prompts):
    async def scenario():
        cluster = FakeCluster(plan_of())
        service = service_of(prompts, cluster)
        client = Client(service, tokens_request())
        await client.routed()
        assert service.status().requests.running == 1
        client.task.cancel()
        await asyncio.wait([client.task])
        assert cluster.cancelled() == [("alpha", 1)]
        assert service.status().requests.running == 0
        cluster.report(1, (20,))  # a token that was on its way concerns nobody

    run(scenario())


def test_client_that_leaves_while_it_waits_sends_nothing(prompts, monkeypatch):
    monkeypatch.setattr("cluster.serving.service.MAX_RUNNING", 1)

    async def scenario():
        cluster = FakeCluster(plan_of())
        service = service_of(prompts, cluster)
        running, waiting = Client(service, tokens_request()), Client(service, tokens_request())
        await running.routed()
        await settle()
        assert service.status().requests.waiting == 1
        waiting.task.cancel()
        await asyncio.wait([waiting.task])
        assert len(cluster.generates()) == 1
        assert requests_of(service) == {"running": 1, "waiting": 0, "finished": 0, "failed": 0, "resumed": 0}
        running.task.cancel()

    run(scenario())


def test_request_beyond_the_queue_is_refused(prompts, monkeypatch):
    monkeypatch.setattr("cluster.serving.service.MAX_RUNNING", 1)

    async def scenario():
        cluster = FakeCluster(plan_of())
        service = service_of(prompts, cluster, max_queue=1)
        clients = [Client(service, tokens_request()) for _ in range(3)]
        done, waiting = await asyncio.wait([client.task for client in clients], return_when=asyncio.FIRST_COMPLETED)
        (refused,) = done
        assert isinstance(refused.exception(), QueueFull)
        for task in waiting:
            task.cancel()
        await asyncio.wait(waiting)

    run(scenario())


def test_drain_lets_the_running_finish_and_refuses_newcomers(prompts):
    async def scenario():
        cluster = FakeCluster(plan_of())
        service = service_of(prompts, cluster)
        client = Client(service, tokens_request())
        await client.routed()
        draining = asyncio.create_task(service.drain(60))
        await settle()
        assert service.status().state == "stopped"
        with pytest.raises(Unavailable, match="stopping"):
            await Client(service, tokens_request()).task
        assert not draining.done()
        cluster.report(1, (20,), "length")
        await client.task
        await draining

    run(scenario())


def test_drain_fails_what_does_not_finish_in_time(prompts):
    async def scenario():
        cluster = FakeCluster(plan_of())
        service = service_of(prompts, cluster)
        client = Client(service, tokens_request())
        await client.routed()
        await service.drain(0)
        with pytest.raises(Unavailable, match="stopped before the answer"):
            await client.task

    run(scenario())


def test_conversation_that_is_deleted_is_forgotten_by_every_worker(prompts):
    async def scenario():
        cluster = FakeCluster(plan_of())
        service_of(prompts, cluster).forget_conversation("c")
        assert {
            worker for worker, message, _ in cluster.sent if message == ForgetConversation(conversation="c")
        } == set(NAMES)

    run(scenario())


def test_one_worker_of_each_other_host_says_what_lies_on_its_disk(prompts):
    async def scenario():
        cluster = FakeCluster(plan_of())
        for name in ("beta", "gamma"):
            cluster.members[name].place = Whereabouts(host="mac2")
        (host,) = await service_of(prompts, cluster).models_elsewhere()
        assert host.name == "mac2"
        assert len(host.models) == 1
        assert host.models[0].name in ("beta", "gamma")

    run(scenario())


def test_workers_of_the_plan_say_what_they_compute_and_without_one_there_is_nothing_to_ask(prompts):
    async def scenario():
        cluster = FakeCluster(plan_of(("alpha", "beta")))
        service = service_of(prompts, cluster)
        assert [(worker.name, worker.stages) for worker in await service.figures()] == [("alpha", ()), ("beta", ())]
        cluster.end("alpha")
        with pytest.raises(Unavailable):
            await service.figures()

    run(scenario())


def test_request_whose_cache_can_never_fit_is_refused_with_the_figures(prompts):
    async def play():
        service = service_of(prompts, FakeCluster(plan_of(room=10 * 256)), use_distributed_inference="never")
        request = tokens_request(300, max_tokens=100)
        with pytest.raises(ContextTooLong, match=r"400 tokens needs 0.0 MB on alpha"):
            await anext(service.generate(request))

    run(play())


def test_answer_whose_cache_can_never_fit_is_cut_to_what_does(prompts):
    async def scenario():
        cluster = FakeCluster(plan_of(room=10 * 256))
        client = Client(
            service_of(prompts, cluster, use_distributed_inference="never"), tokens_request(200, max_tokens=32_000)
        )
        await client.routed()
        assert cluster.generates()[0][1].max_tokens == 56
        cluster.report(1, (20,), "length")
        await client.task
        assert client.finished.notes[-1].startswith("max_tokens was cut from 1800 to 56: there is memory for no longer")

    run(scenario())


def test_request_whose_cache_does_not_fit_now_waits_for_room(prompts):
    async def scenario():
        cluster = FakeCluster(plan_of(full=("alpha",), room=10 * 256))
        service = service_of(prompts, cluster, use_distributed_inference="never")
        first, second = Client(service, tokens_request(max_tokens=5)), Client(service, tokens_request(max_tokens=5))
        await settle()
        assert (len(cluster.generates()), service.status().requests.waiting) == (1, 1)
        cluster.report(1, (20,), "length")
        await first.task
        await second.routed()
        cluster.report(2, (20,), "length")
        await second.task

    run(scenario())


def test_conversation_comes_back_to_the_worker_that_knows_it_unless_that_is_busy(prompts):
    async def scenario():
        cluster = FakeCluster(plan_of())
        service = service_of(prompts, cluster, use_distributed_inference="never")
        heads = []
        for number in range(1, 6):
            client = Client(service, tokens_request(conversation="c"))
            heads.append((await client.routed()).workers[0])
            if number == 1:
                cluster.report(number, (20,), "length")
                await client.task
        assert heads == ["alpha", "alpha", "alpha", "alpha", "beta"]

    run(scenario())


def test_strategy_whose_cache_does_not_pay_is_told_alike_by_generate_and_explain(prompts):
    async def scenario():
        measured = MeasuredUse(
            machine="m", prompt_tokens=8, single_device=PayingRange(first=20), distributed=PayingRange(first=40)
        )
        cluster = FakeCluster(plan_of())
        service = service_of(prompts, cluster, measured_use=measured)
        asked = [("single-device-cached", 19), ("single-device-cached", 20), ("distributed-cached", 39)]
        for strategy, max_tokens in [*asked, ("distributed-cached", 40)]:
            request = tokens_request(strategy=strategy, max_tokens=max_tokens)
            explained = await service.explain(request)
            routed = await Client(service, request).routed()
            assert (routed.strategy, routed.reason) == (explained.strategy, explained.reason)
            assert ("does not pay" in routed.reason) == (max_tokens in (19, 39))
        assert [message.cached for _, message in cluster.generates()] == [False, True, False, True]
        assert routed.strategy == "distributed-cached"

    run(scenario())


def test_guesses_are_counted_also_of_whom_leaves(prompts):
    async def scenario():
        cluster = FakeCluster(plan_of())
        service = service_of(prompts, cluster, use_distributed_inference="never")
        assert service.status().guesses.acceptance is None
        client = Client(service, tokens_request(10))
        await client.routed()
        cluster.report(1, (20, 21, 22), proposed=3, accepted=2)
        await settle()
        cluster.report(1, (23,), proposed=1, accepted=0)
        await settle()
        await client.leave()
        assert msgspec.to_builtins(service.status().guesses) == {
            "draft": None,
            "proposed": 4,
            "accepted": 2,
            "acceptance": 0.5,
        }

    run(scenario())


def test_reused_tokens_are_told_and_counted(prompts):
    async def scenario():
        cluster = FakeCluster(plan_of())
        service = service_of(prompts, cluster, use_distributed_inference="never")
        client = Client(service, tokens_request(10))
        await client.routed()
        cluster.listener.reused(Reused(sequence=1, num_tokens=4))
        cluster.report(1, (20,), "length")
        await client.task
        assert client.finished.cached_tokens == 4
        assert msgspec.to_builtins(service.status().cache) == {
            "prompt_tokens": 10,
            "cached_tokens": 4,
            "hit_rate": 0.4,
        }

    run(scenario())
