"""Plans that give way to others while requests run: newcomers, and a coordinator in the place of another."""

import asyncio
import itertools

from cluster.planning.deployment import PATIENCE_S, SETTLE_S
from cluster.planning.unmet_groups import FIRST_REST_S
from cluster.settings import GroupSettings
from strategy.situation import Strategy
from tests.support.in_process.asked import COUNT, PROMPT, STRATEGIES, assert_same, undisturbed
from workers.tensor.group import NotMet

PAIR = ("alpha", "beta")


def test_newcomer_is_taken_in_soon_when_nothing_runs(pair_workshop):
    async def scenario(cluster):
        cluster.kill("beta")
        await cluster.until(lambda: cluster.plan is not None and cluster.plan.workers == ("alpha",))
        await cluster.until(lambda: cluster.control.members["beta"].is_there)
        came_at = cluster.now()
        await cluster.until(lambda: cluster.plan is not None and cluster.plan.workers == PAIR)
        assert SETTLE_S <= cluster.now() - came_at < SETTLE_S + 1
        for strategy in STRATEGIES:
            assert (await undisturbed(cluster, PROMPT, 5, strategy=strategy)).is_complete

    pair_workshop.run(scenario, *PAIR)


def test_newcomer_is_taken_in_while_a_request_runs_on(pair_workshop):
    async def scenario(cluster):
        count = 200
        expected = await undisturbed(cluster, PROMPT, count, strategy=Strategy.DISTRIBUTED_CACHED)
        cluster.kill("beta")
        await cluster.until(lambda: cluster.plan is not None and cluster.plan.workers == ("alpha",))
        cluster.step_s = 0.2
        reply = cluster.client.ask(PROMPT, count, strategy=Strategy.DISTRIBUTED_CACHED)
        await cluster.until(lambda: cluster.control.members["beta"].is_there)
        came_at = cluster.now()
        await cluster.until(lambda: cluster.plan is not None and cluster.plan.workers == PAIR)
        assert not reply.task.done()
        assert PATIENCE_S <= cluster.now() - came_at <= PATIENCE_S + SETTLE_S + 2
        cluster.step_s = 0.0
        await reply.whole()
        assert_same(reply, expected)
        assert reply.tandem["resumed"] == 1

    pair_workshop.run(scenario, *PAIR)


def test_workers_come_back_to_a_new_coordinator_with_what_they_hold(pair_workshop):
    async def scenario(cluster):
        expected = await undisturbed(cluster, PROMPT, COUNT, strategy=Strategy.DISTRIBUTED_CACHED)
        read = {name: cluster.read_bytes(name) for name in PAIR}
        pids = {name: worker.identity for name, worker in cluster.host.workers.items()}
        epoch = cluster.control.epoch
        abandoned = cluster.client.ask(PROMPT, COUNT, strategy=Strategy.DISTRIBUTED_CACHED)
        cluster.worker("alpha").at_launch(7, cluster.coordinator.die)
        await asyncio.sleep(2)
        abandoned.task.cancel()
        await cluster.start_coordinator()
        await cluster.whole()
        assert cluster.control.epoch >> 32 == (epoch >> 32) + 1
        for strategy in STRATEGIES:
            reply = await undisturbed(cluster, PROMPT, COUNT, strategy=strategy)
            assert_same(reply, expected)
        assert {name: worker.identity for name, worker in cluster.host.workers.items()} == pids
        assert {name: cluster.read_bytes(name) for name in PAIR} == read
        cluster.assert_at_rest()

    pair_workshop.run(scenario, *PAIR)


def test_worker_that_died_with_its_coordinator_is_started_by_the_next(pair_workshop):
    async def scenario(cluster):
        expected = await undisturbed(cluster, PROMPT, COUNT, strategy=Strategy.DISTRIBUTED_CACHED)
        read = cluster.read_bytes("alpha")
        cluster.coordinator.die()
        cluster.host.kill("beta")
        await asyncio.sleep(1)
        await cluster.start_coordinator()
        await cluster.whole()
        reply = await undisturbed(cluster, PROMPT, COUNT, strategy=Strategy.DISTRIBUTED_CACHED)
        assert_same(reply, expected)
        assert cluster.read_bytes("alpha") == read

    pair_workshop.run(scenario, *PAIR)


def test_worker_that_stood_still_for_a_moment_is_not_missed(pair_workshop):
    async def scenario(cluster):
        pids = {name: worker.identity for name, worker in cluster.host.workers.items()}
        expected = await undisturbed(cluster, PROMPT, COUNT, strategy=Strategy.DISTRIBUTED_CACHED)
        reply = cluster.client.ask(PROMPT, COUNT, strategy=Strategy.DISTRIBUTED_CACHED)
        cluster.worker("beta").at_launch(9, lambda: cluster.stop("beta"))
        await asyncio.sleep(2)
        cluster.go_on("beta")
        await reply.whole()
        assert_same(reply, expected)
        assert reply.tandem["resumed"] == 0
        assert {name: worker.identity for name, worker in cluster.host.workers.items()} == pids

    pair_workshop.run(scenario, *PAIR)


def test_cluster_serves_without_a_group_whose_ranks_do_not_meet_and_tries_it_when_nothing_runs(pair_workshop):
    tried = []

    def meet_nobody(plan, name, *_):
        tried.append((asyncio.get_running_loop().time(), name))
        raise NotMet("beta did not reach alpha" if name == "beta" else "")

    async def scenario(cluster):
        assert [name for _, name in tried] == list(PAIR)
        why = "alpha+beta did not meet: beta did not reach alpha"
        status = await cluster.client.status()
        assert (status["state"], status["groups"], status["why_no_group"]) == ("ready", [], why)
        assert "beta did not reach alpha" in [event["what"] for event in status["events"]]
        for strategy in STRATEGIES:
            assert (await undisturbed(cluster, PROMPT, 5, strategy=strategy)).is_complete
        cluster.kill("beta")  # which may be reached when it is back
        await cluster.until(lambda: len(tried) == 8)
        await cluster.whole()
        times = [at for at, _ in tried[2::2]]
        rests = [round((later - before) / FIRST_REST_S, 1) for before, later in itertools.pairwise(times)]
        assert rests == [1.0, 2.0]
        assert (await cluster.client.status())["why_no_group"] == why

    def before(cluster):
        cluster.host.meet = meet_nobody

    pair_workshop.run(scenario, *PAIR, before=before, settings={"groups": (GroupSettings(workers=PAIR),)})
