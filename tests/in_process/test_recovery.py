"""A second fault at every moment of the recovery from a first: while plans are made, loaded, and newcomers taken in."""

import asyncio

import pytest

from protocol.errors import TandemError
from strategy.situation import Strategy
from tests.support.in_process.asked import PROMPT, assert_same, undisturbed

TRIO = ("alpha", "beta", "gamma")
COUNT = 10
# A loss is told, a plan sent, loaded and begun within the first; a worker that died joins, reads and is part of a plan again
# within the others.
RECOVERY_TURNS = range(9)
RETURN_TURNS = (*range(1, 19), *range(44, 57))
SECOND = ("kill", "stop", "block", "reset", "reset from the coordinator", "reset to the coordinator", "leave")


@pytest.mark.parametrize("second", SECOND)
def test_second_fault_at_any_moment_of_a_recovery(workshop, second):
    strategy = Strategy.DISTRIBUTED_CACHED
    faults = {
        "kill": lambda cluster, _: cluster.kill("gamma"),
        "stop": lambda cluster, _: cluster.stop("gamma"),
        "block": lambda cluster, _: cluster.worker("gamma").block(),
        "reset": lambda cluster, _: cluster.reset("alpha", "gamma"),
        "reset from the coordinator": lambda cluster, _: cluster.reset("coordinator", "gamma"),
        "reset to the coordinator": lambda cluster, _: cluster.reset("alpha", ""),
        "leave": lambda _, reply: reply.task.cancel(),
    }

    async def scenario(cluster):
        expected = await undisturbed(cluster, PROMPT, COUNT, strategy=strategy)
        for turns in RECOVERY_TURNS:
            reply = cluster.client.ask(PROMPT, COUNT, strategy=strategy)
            other = cluster.client.ask(PROMPT, COUNT, strategy=strategy)

            def fall(turns=turns, reply=reply):
                cluster.kill("beta")
                cluster.at_turn(turns, lambda: faults[second](cluster, reply))

            cluster.worker("alpha").at_launch(4, fall)
            await asyncio.wait([reply.task, other.task])
            if not reply.task.cancelled():
                assert_same(reply, expected)
            assert_same(other, expected)
            await cluster.whole()
            cluster.forget_faults()
            cluster.assert_at_rest()

    workshop.run(scenario, *TRIO)


@pytest.mark.parametrize(
    ("second", "turns"),
    [("kill beta", RETURN_TURNS[::2]), ("kill alpha", RETURN_TURNS[1::2]), ("reset", RETURN_TURNS[::2])],
    ids=["kill beta", "kill alpha", "reset"],
)
def test_second_fault_while_a_worker_is_taken_in_again(workshop, second, turns):
    faults = {
        "kill beta": lambda cluster: cluster.host.workers.get("beta") and cluster.kill("beta"),
        "kill alpha": lambda cluster: cluster.kill("alpha"),
        "reset": lambda cluster: cluster.reset("coordinator", "alpha"),
    }

    async def scenario(cluster):
        expected = await undisturbed(cluster, PROMPT, COUNT, strategy=Strategy.DISTRIBUTED_CACHED)
        for turn in turns:
            cluster.kill("beta")
            await cluster.until(lambda: cluster.plan is not None and "beta" not in cluster.plan.workers)
            cluster.at_turn(turn, lambda: faults[second](cluster))
            await cluster.until(lambda: not cluster._at_turn)
            reply = cluster.client.ask(PROMPT, COUNT, strategy=Strategy.DISTRIBUTED_CACHED)
            await reply.whole()
            assert_same(reply, expected)
            await cluster.whole()
            cluster.assert_at_rest()

    workshop.run(scenario, *TRIO)


def test_coordinator_killed_at_any_moment_of_a_recovery_finds_its_workers_again(workshop):
    async def scenario(cluster):
        expected = await undisturbed(cluster, PROMPT, COUNT, strategy=Strategy.DISTRIBUTED_CACHED)
        for turns in RETURN_TURNS[1::2]:
            cluster.kill("beta")
            cluster.at_turn(turns, cluster.coordinator.die)
            await cluster.until(lambda: not cluster._at_turn)
            await asyncio.sleep(turns % 7)
            await cluster.start_coordinator()
            await cluster.whole()
            assert_same(await undisturbed(cluster, PROMPT, COUNT, strategy=Strategy.DISTRIBUTED_CACHED), expected)
            cluster.assert_at_rest()

    workshop.run(scenario, *TRIO)


@pytest.mark.parametrize("turns", range(1, 5))
def test_start_that_loses_a_worker_ends_with_its_sentence(workshop, turns):
    async def never(_):
        raise AssertionError("it started")

    def lose_one(cluster):
        cluster.at_turn(turns, lambda: cluster.kill("beta"))

    with pytest.raises(TandemError, match="worker beta"):
        workshop.run(never, *TRIO, before=lose_one)
