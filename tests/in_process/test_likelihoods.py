"""Log probabilities over a whole cluster: mlx-lm's own, by every strategy, and the very same where workers are lost meanwhile."""

import asyncio
import random

import mlx.core as mx
import numpy as np
import pytest
from mlx_lm.utils import load_model

from cluster.serving.requests import Delta, GenerationRequest, PromptScored, TokensPrompt
from protocol.errors import BadRequest
from protocol.values import Sampling
from strategy.situation import Strategy
from tests.support.fake_cluster import Client
from tests.support.in_process.asked import STRATEGIES

PAIR = ("alpha", "beta")
PROMPT = tuple(random.Random(2).choices(range(5, 320), k=70))
COUNT = 6
NEAR = 1e-4


def request_of(strategy, **fields):
    return GenerationRequest(
        prompt=TokensPrompt(PROMPT),
        sampling=Sampling(logprobs=2, seed=1),
        strategy=strategy,
        scores_prompt=True,
        **{"max_tokens": COUNT, "ignores_end_tokens": True, **fields},
    )


async def answered(cluster, request):
    client = Client(cluster.coordinator.service, request)
    await client.task
    return client


def scores_of(client):
    (prompt,) = client.of(PromptScored)
    return [*prompt.scores, *(score for delta in client.of(Delta) for score in delta.scores)]


def rows_of(workshop, ids):
    logits = load_model(workshop.model)[0](mx.array([ids]))[0].astype(mx.float32)
    return np.array(logits - mx.logsumexp(logits, axis=-1, keepdims=True))


def assert_likely(scores, ids, rows):
    assert [score.chosen.token for score in scores] == ids
    assert scores[0].chosen.logprob is None
    for score, row in zip(scores[1:], rows, strict=False):
        assert score.chosen.logprob == pytest.approx(row[score.chosen.token], abs=NEAR)
        assert [each.logprob for each in score.top] == pytest.approx(sorted(row, reverse=True)[:2], abs=NEAR)
        assert [each.logprob for each in score.top] == pytest.approx([row[each.token] for each in score.top], abs=NEAR)


def test_prompt_and_answer_are_as_likely_as_mlx_lm_says(workshop):
    async def scenario(cluster):
        for strategy in STRATEGIES:
            client = await answered(cluster, request_of(strategy))
            ids = [*PROMPT, *client.ids]
            assert len(client.ids) == COUNT
            assert_likely(scores_of(client), ids, rows_of(workshop, ids))
            told = b"".join(score.chosen.text for score in scores_of(client)[len(PROMPT) :])
            text = told.decode(errors="replace").removeprefix(" ")
            assert text.rstrip("\ufffd") == client.text.rstrip("\ufffd")
        cluster.assert_at_rest()

    workshop.run(scenario, "alpha", "beta", "gamma")


@pytest.mark.parametrize("strategy", STRATEGIES)
def test_what_is_told_is_exact_and_complete_wherever_a_worker_is_lost(pair_workshop, strategy):
    async def scenario(cluster):
        expected = await answered(cluster, request_of(strategy))
        rows = rows_of(pair_workshop, [*PROMPT, *expected.ids])
        step, num_resumed = 1, 0
        while True:
            fired = []
            client = Client(cluster.coordinator.service, request_of(strategy))
            cluster.worker("alpha").at_launch(step, lambda fired=fired: (fired.append(1), cluster.kill("alpha")))
            await client.task
            cluster.forget_faults()
            assert client.ids == expected.ids
            assert_likely(scores_of(client), [*PROMPT, *client.ids], rows)
            num_resumed += client.finished.resumed
            if not fired:
                break
            await asyncio.sleep(0)
            await cluster.whole()
            cluster.assert_at_rest()
            step += 1
        assert num_resumed == step - 1 >= COUNT

    pair_workshop.run(scenario, *PAIR)


@pytest.mark.parametrize("strategy", STRATEGIES)
def test_prompt_alone_is_told_of_without_an_answer(pair_workshop, strategy):
    async def scenario(cluster):
        client = await answered(cluster, request_of(strategy, max_tokens=0))
        assert (client.ids, client.finished.completion_tokens, client.finished.finish_reason) == ((), 0, "length")
        assert_likely(scores_of(client), list(PROMPT), rows_of(pair_workshop, PROMPT))
        cluster.assert_at_rest()

    pair_workshop.run(scenario, *PAIR)


def test_strategy_that_cannot_tell_of_a_prompt_is_refused_with_the_reason(pair_workshop):
    async def scenario(cluster):
        with pytest.raises(BadRequest, match="distributed-prefill cannot run: how likely a prompt's own tokens are"):
            await answered(cluster, request_of(Strategy.DISTRIBUTED_PREFILL))
        explained = await cluster.coordinator.service.explain(request_of(None))
        (verdict,) = (each for each in explained.candidates if each.strategy is Strategy.DISTRIBUTED_PREFILL)
        assert not verdict.feasible

    pair_workshop.run(scenario, *PAIR)
