"""Many texts become vectors over a cluster that a test plays: in order, several at once, and all or none."""

import asyncio
from array import array

import msgspec
import numpy as np
import pytest

from cluster.serving.embedding import AT_ONCE
from cluster.serving.pooling import PoolingChoice
from cluster.serving.requests import EmbeddingRequest, GenerationRequest, TextPrompt, TokensPrompt
from protocol.errors import ApiError, BadRequest, ContextTooLong, QueueFull, RequestTimeout
from protocol.messages import SequenceFailed
from strategy.vocabulary import Route
from tests.support.fake_cluster import (
    CONTEXT_TOKENS,
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

NOTHING_ASKED = GenerationRequest(prompt=TextPrompt(""))


def texts(*lengths, asked=NOTHING_ASKED, **fields):
    """Of so many tokens each."""
    prompts = tuple(TokensPrompt(tuple([20 + place] * count)) for place, count in enumerate(lengths))
    names = tuple(f"input[{place}]" for place in range(len(lengths)))
    return EmbeddingRequest(asked=asked, prompts=prompts, fields=names, **fields)


def asking(**fields):
    return msgspec.structs.replace(NOTHING_ASKED, **fields)


async def embedding(service, request):
    """The request on its way."""
    task = asyncio.create_task(service.embed(request))
    await settle()
    return task


async def embedded(cluster, service, request, *vectors):
    """What comes of a request whose texts become these, one after the other."""
    task = await embedding(service, request)
    for number, vector in enumerate(vectors, start=1):
        cluster.embed(number, vector)
        await settle()
    return await task


def numbers(vector):
    return array("f", vector).tolist()


def test_vectors_come_in_the_order_of_the_texts_and_of_unit_length(prompts):
    async def scenario():
        cluster = FakeCluster(plan_of())
        service = service_of(prompts, cluster)
        task = await embedding(service, texts(5, 6, 7))
        assert len(cluster.generates()) == 3
        for number in (3, 1, 2):
            cluster.embed(number, (3.0 * number, 4.0 * number))
        found = await task
        assert [numbers(vector) for vector in found.vectors] == [pytest.approx([0.6, 0.8])] * 3
        assert found.finished.prompt_tokens == 18
        assert (found.finished.completion_tokens, found.finished.token_ids) == (0, ())
        assert found.routed.strategy == "distributed-no-cache"
        assert cluster.prompts() == [[20] * 5, [21] * 6, [22] * 7]
        assert requests_of(service)["running"] == 0

    run(scenario())


def test_pooling_is_the_model_s_and_nothing_is_generated(prompts):
    async def scenario():
        cluster = FakeCluster(plan_of())
        service = service_of(prompts, cluster)
        await embedding(service, texts(5, asked=asking(client="c", scope="s")))
        ((worker, message),) = cluster.generates()
        assert (message.pooling, message.max_tokens, message.read_by) == ("last", 1, None)
        assert (message.client, message.scope, message.conversation) == ("c", "s", None)
        assert (worker, message.route) == ("alpha", Route(NAMES))

    run(scenario())


def test_text_is_encoded_as_the_model_wants_it(prompts):
    async def scenario():
        cluster = FakeCluster(plan_of())
        request = EmbeddingRequest(asked=NOTHING_ASKED, prompts=(TextPrompt("the cat"),), fields=("input",))
        await embedding(service_of(prompts, cluster), request)
        assert cluster.prompts() == [list(prompts.encode(GenerationRequest(prompt=TextPrompt("the cat"))))]

    run(scenario())


def test_dimensions_cut_and_make_of_unit_length_again(prompts):
    async def scenario():
        cluster = FakeCluster(plan_of())
        found = await embedded(cluster, service_of(prompts, cluster), texts(5, dimensions=2), (3.0, 4.0, 12.0))
        assert numbers(found.vectors[0]) == pytest.approx([0.6, 0.8])

    run(scenario())


def test_more_dimensions_than_there_are_are_refused(prompts):
    async def scenario():
        cluster = FakeCluster(plan_of())
        with pytest.raises(BadRequest, match="have 3 dimensions") as refused:
            await embedded(cluster, service_of(prompts, cluster), texts(5, dimensions=4), (3.0, 4.0, 12.0))
        assert refused.value.param == "dimensions"

    run(scenario())


def test_vector_of_nothing_stays_one(prompts):
    async def scenario():
        cluster = FakeCluster(plan_of())
        found = await embedded(cluster, service_of(prompts, cluster), texts(5), (0.0, 0.0))
        assert numbers(found.vectors[0]) == [0.0, 0.0]

    run(scenario())


@pytest.mark.parametrize("number", [np.nan, np.inf])
def test_what_is_no_number_is_no_vector(prompts, number):
    async def scenario():
        cluster = FakeCluster(plan_of())
        with pytest.raises(ApiError, match=r"no number for input\[1\]"):
            await embedded(cluster, service_of(prompts, cluster), texts(5, 5), (1.0, 0.0), (1.0, number))

    run(scenario())


def test_so_many_run_at_once_and_the_others_follow(prompts):
    async def scenario():
        cluster = FakeCluster(plan_of())
        count = AT_ONCE + 3
        task = await embedding(service_of(prompts, cluster), texts(*[5] * count))
        assert len(cluster.generates()) == AT_ONCE
        cluster.embed(2, (1.0, 0.0))
        await settle()
        assert len(cluster.generates()) == AT_ONCE + 1
        for number in (1, *range(3, count + 1)):
            cluster.embed(number, (0.0, 1.0))
            await settle()
        found = await task
        assert [numbers(vector) for vector in found.vectors] == [[0.0, 1.0], [1.0, 0.0], *[[0.0, 1.0]] * (count - 2)]

    run(scenario())


# --- lengths


def test_text_of_the_whole_context_is_embedded(prompts):
    async def scenario():
        cluster = FakeCluster(plan_of())
        found = await embedded(cluster, service_of(prompts, cluster), texts(CONTEXT_TOKENS), (1.0, 0.0))
        assert found.finished.prompt_tokens == CONTEXT_TOKENS
        assert found.finished.notes == ()

    run(scenario())


def test_text_beyond_the_context_is_refused_by_its_name_before_any_runs(prompts):
    async def scenario():
        cluster = FakeCluster(plan_of())
        service = service_of(prompts, cluster)
        with pytest.raises(ContextTooLong, match=f"{CONTEXT_TOKENS + 1} tokens") as refused:
            await service.embed(texts(5, CONTEXT_TOKENS + 1))
        assert (refused.value.param, refused.value.code) == ("input[1]", "context_length_exceeded")
        assert cluster.generates() == []

    run(scenario())


def test_text_beyond_the_context_is_cut_where_that_was_asked_for(prompts):
    async def scenario():
        cluster = FakeCluster(plan_of())
        service = service_of(prompts, cluster)
        await embedded(cluster, service, texts(CONTEXT_TOKENS + 9, truncate=True), (1.0, 0.0))
        assert [len(prompt) for prompt in cluster.prompts()] == [CONTEXT_TOKENS]

    run(scenario())


def test_text_without_room_for_its_caches_is_refused_by_its_name(prompts):
    async def scenario():
        cluster = FakeCluster(plan_of(room=4000))
        with pytest.raises(ContextTooLong, match="shorten the prompt") as refused:
            await service_of(prompts, cluster).embed(texts(5, 900, asked=asking(strategy="single-device-cached")))
        assert refused.value.param == "input[1]"

    run(scenario())


# --- what cannot be


def test_token_id_outside_the_vocabulary_is_refused_by_its_name(prompts):
    async def scenario():
        request = texts(5, 5)
        request = msgspec.structs.replace(request, prompts=(request.prompts[0], TokensPrompt((20, 10**6))))
        with pytest.raises(BadRequest, match="outside the model's vocabulary") as refused:
            await service_of(prompts, FakeCluster(plan_of())).embed(request)
        assert refused.value.param == "input[1]"

    run(scenario())


def test_model_that_does_not_show_its_hidden_states_is_refused(prompts):
    async def scenario():
        with pytest.raises(BadRequest, match="code for llama does not show its hidden states"):
            await service_of(prompts, FakeCluster(plan_of(embeds=False))).embed(texts(5))

    run(scenario())


def test_model_whose_vectors_are_made_in_another_way_is_refused(prompts, monkeypatch):
    async def scenario():
        monkeypatch.setattr(prompts, "pooling", PoolingChoice(None, "it pools by max"))
        with pytest.raises(BadRequest, match="it pools by max") as refused:
            await service_of(prompts, FakeCluster(plan_of())).embed(texts(5))
        assert refused.value.param == "input"

    run(scenario())


def test_strategy_that_hands_over_is_refused_by_name(prompts):
    async def scenario():
        with pytest.raises(BadRequest, match="nothing is handed over") as refused:
            await service_of(prompts, FakeCluster(plan_of())).embed(
                texts(5, asked=asking(strategy="distributed-prefill"))
            )
        assert refused.value.param == "strategy"

    run(scenario())


@pytest.mark.parametrize("strategy", ["single-device-cached", "distributed-cached", "distributed-no-cache"])
def test_strategy_that_was_asked_for_is_taken(prompts, strategy):
    async def scenario():
        cluster = FakeCluster(plan_of())
        request = texts(5, asked=asking(strategy=strategy))
        found = await embedded(cluster, service_of(prompts, cluster), request, (1.0, 0.0))
        assert found.routed.strategy == strategy
        ((_, message),) = cluster.generates()
        assert message.cached is (strategy != "distributed-no-cache")
        assert message.route == Route(("alpha",) if strategy == "single-device-cached" else NAMES)

    run(scenario())


def test_texts_that_went_another_way_are_told_of(prompts):
    async def scenario():
        cluster = FakeCluster(plan_of())
        found = await embedded(cluster, service_of(prompts, cluster), texts(5, 500), (1.0, 0.0), (1.0, 0.0))
        assert found.routed.strategy == "distributed-no-cache"
        assert found.finished.notes == ("1 of 2 texts ran by single-device-cached",)

    run(scenario())


# --- what befalls them


def test_failure_of_one_text_is_that_of_all(prompts):
    async def scenario():
        cluster = FakeCluster(plan_of())
        service = service_of(prompts, cluster)
        task = await embedding(service, texts(5, 6, 7))
        cluster.listener.failed(SequenceFailed(sequence=2, message="alpha: out of memory"))
        with pytest.raises(ApiError, match="out of memory"):
            await task
        assert {number for _, number in cluster.cancelled()} >= {1, 3}
        assert requests_of(service)["running"] == 0

    run(scenario())


def test_client_that_leaves_cancels_every_text(prompts):
    async def scenario():
        cluster = FakeCluster(plan_of())
        service = service_of(prompts, cluster)
        task = await embedding(service, texts(5, 6, 7))
        task.cancel()
        await asyncio.wait([task])
        assert {number for _, number in cluster.cancelled()} == {1, 2, 3}
        counts = requests_of(service)
        assert (counts["running"], counts["waiting"]) == (0, 0)

    run(scenario())


def test_texts_of_a_lost_plan_are_read_again_on_the_next(prompts):
    async def scenario():
        cluster = FakeCluster(plan_of())
        task = await embedding(service_of(prompts, cluster), texts(5, 6))
        cluster.embed(1, (1.0, 0.0))
        await settle()
        cluster.replan("gamma")
        await settle()
        _, again = cluster.generates()[-1]
        assert (len(cluster.generates()), again.pooling, again.route) == (3, "last", Route(("alpha", "beta")))
        assert cluster.prompts()[-1] == [21] * 6
        cluster.embed(again.sequence, (0.0, 1.0))
        found = await task
        assert [numbers(vector) for vector in found.vectors] == [[1.0, 0.0], [0.0, 1.0]]
        assert found.finished.resumed == 1

    run(scenario())


def test_all_texts_share_one_deadline(prompts):
    async def scenario():
        cluster = FakeCluster(plan_of())
        task = await embedding(service_of(prompts, cluster), texts(*[5] * (AT_ONCE + 1), asked=asking(timeout_s=10.0)))
        await asyncio.sleep(6)
        for number in range(1, AT_ONCE + 1):
            cluster.embed(number, (1.0, 0.0))
        await asyncio.sleep(5)
        with pytest.raises(RequestTimeout, match="within 10 s"):
            await task
        assert {number for _, number in cluster.cancelled()} >= {AT_ONCE + 1}

    run(scenario())


def test_full_queue_refuses_a_newcomer_but_no_text_of_a_request_that_was_let_in(prompts, monkeypatch):
    monkeypatch.setattr("cluster.serving.service.MAX_RUNNING", 1)

    async def scenario():
        cluster = FakeCluster(plan_of())
        service = service_of(prompts, cluster, max_queue=1)
        busy = Client(service, tokens_request())
        await busy.routed()
        task = await embedding(service, texts(5, 6, 7))
        with pytest.raises(QueueFull):
            await service.embed(texts(5, 6))
        await busy.leave()
        for number in (2, 3, 4):
            await settle()
            cluster.embed(number, (1.0, 0.0))
        assert len((await task).vectors) == 3

    run(scenario())


def test_what_is_learned_of_answers_is_not_learned_of_vectors(prompts):
    """Neither where the beginning of a text went nor how long answers become."""

    async def scenario():
        cluster = FakeCluster(plan_of())
        service = service_of(prompts, cluster)
        await embedded(cluster, service, texts(500, asked=asking(strategy="single-device-cached")), (1.0, 0.0))
        assert repr(service._decider).endswith("0 remembered)")

    run(scenario())
