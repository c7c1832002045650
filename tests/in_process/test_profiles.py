"""Speeds from the workers' measuring to the plan in force."""

from cluster.settings import StrategySettings
from protocol.values import Route
from strategy.situation import Strategy
from tests.support.in_process.asked import PROMPT, assert_same, undisturbed

PAIR = ("alpha", "beta")
MEASURED = {"strategy": StrategySettings(policy="measured")}
ROUTES = {Route(PAIR), Route(("alpha",)), Route(("beta",))}


def test_plan_of_measured_routing_knows_what_each_of_its_routes_costs(pair_workshop):
    async def scenario(cluster):
        plan = cluster.plan
        assert set(plan.costs) == ROUTES
        assert all(len(found.stages) == len(found.hops) == len(route) for route, found in plan.costs.items())
        one, two = plan.costs[Route(PAIR)].stages
        whole = plan.costs[Route(("beta",))].stages[0]
        assert max(one.decode_s(1, 0), two.decode_s(1, 0)) < whole.decode_s(1, 0)
        assert one.payload_bytes > 0
        assert {name: len(speeds.decode_s) for name, speeds in plan.layer_speeds.items()} == dict.fromkeys(PAIR, 2)
        assert (await undisturbed(cluster, PROMPT, 5, strategy=Strategy.DISTRIBUTED_CACHED)).is_complete
        cluster.assert_at_rest()

    pair_workshop.run(scenario, *PAIR, settings=MEASURED)


def test_plan_after_a_loss_and_the_next_know_their_costs_and_answers_stay_the_same(pair_workshop):
    async def scenario(cluster):
        expected = await undisturbed(cluster, PROMPT, 5, strategy=Strategy.DISTRIBUTED_CACHED)
        cluster.kill("beta")
        await cluster.until(lambda: cluster.plan is not None and cluster.plan.workers == ("alpha",))
        assert set(cluster.plan.costs) == {Route(("alpha",))}
        await cluster.whole()
        assert set(cluster.plan.costs) == ROUTES
        assert_same(await undisturbed(cluster, PROMPT, 5, strategy=Strategy.DISTRIBUTED_CACHED), expected)

    pair_workshop.run(scenario, *PAIR, settings=MEASURED)


def test_nothing_is_measured_for_thresholds(pair_workshop):
    async def scenario(cluster):
        assert cluster.plan.costs == {}
        assert cluster.plan.layer_speeds == {}
        timers = [cluster.engine(name)._loading._loader._open.profile._timer for name in PAIR]
        assert all(tried.rows == 1 and tried.num_tokens > 1 for timer in timers for _, tried in timer.tried)

    pair_workshop.run(scenario, *PAIR)
