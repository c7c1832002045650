"""A request that is cancelled at any step leaves nothing on any worker, and whoever runs beside it does not notice."""

import asyncio

import pytest

from tests.support.in_process.asked import PROMPT, STRATEGIES, assert_same, undisturbed

PAIR = ("alpha", "beta")
COUNT = 8


@pytest.mark.parametrize("strategy", STRATEGIES)
def test_request_that_is_cancelled_at_any_step_leaves_nothing(pair_workshop, strategy):
    async def scenario(cluster):
        service = cluster.coordinator.service
        expected = await undisturbed(cluster, PROMPT, COUNT, strategy=strategy)
        num_cancelled = 0
        for step in range(1, 2 * COUNT):
            cancelled, beside = (cluster.client.ask(PROMPT, COUNT, strategy=strategy) for _ in range(2))
            cluster.worker("alpha").at_launch(step, lambda: service.cancel(service.ledger().rows()[0].id))
            await asyncio.gather(cancelled.task, beside.task)
            cluster.forget_faults()
            ended = service.ledger().ended_since(service.ledger().num_ended - 2)
            if all(row.state == "finished" for row in ended):
                break
            num_cancelled += 1
            assert sorted(row.state for row in ended) == ["cancelled", "finished"]
            assert "cancelled" in cancelled.error
            assert_same(beside, expected)
            await asyncio.sleep(1)
            cluster.assert_at_rest()
        assert num_cancelled >= COUNT - 1

    pair_workshop.run(scenario, *PAIR)
