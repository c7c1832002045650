"""Answers of a whole undisturbed cluster over its API: those that mlx-lm gives, by every strategy."""

import pytest

from strategy.situation import Strategy
from tests.support.in_process.asked import COUNT, PROMPT, STRATEGIES
from tests.support.in_process_cluster import alone

NAMES = ("alpha", "beta", "gamma", "delta")


@pytest.mark.parametrize("num_workers", [2, 3, 4])
def test_answers_are_those_of_mlx_lm_streamed_and_whole(workshop, num_workers):
    expected = alone(workshop.model, PROMPT, COUNT)

    async def scenario(cluster):
        for strategy in STRATEGIES:
            for stream in (True, False):
                reply = await cluster.client.answer(PROMPT, COUNT, strategy=strategy, stream=stream)
                assert reply.ids == expected
                assert reply.tandem["strategy"] == strategy
                assert reply.tandem["resumed"] == 0
                assert (reply.usage["prompt_tokens"], reply.usage["completion_tokens"]) == (len(PROMPT), COUNT)
                workers = 1 if strategy is Strategy.SINGLE_DEVICE_CACHED else num_workers
                assert len(reply.tandem["workers"]) == workers
        cluster.assert_at_rest()

    workshop.run(scenario, *NAMES[:num_workers])
