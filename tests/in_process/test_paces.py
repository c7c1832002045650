"""A worker that becomes slower while requests run: they go on, and it has less to do once nothing runs."""

from cluster.settings import StrategySettings
from strategy.situation import Strategy
from tests.support.in_process.asked import COUNT, PROMPT, STRATEGIES, assert_same, undisturbed

PAIR = ("alpha", "beta")
MEASURED = {"strategy": StrategySettings(policy="measured")}


def width(cluster, name):
    """Of its stage; 0 where it has none."""
    if name not in cluster.plan.pipeline:
        return 0
    return next(stage.layers.end - stage.layers.start for stage in cluster.plan.stages if stage.worker == name)


class Slowed:
    """A worker whose steps take so many times as long as they were measured: time stands still here while they run."""

    def __init__(self, times):
        self._times = times

    def observe(self, *_):
        pass

    def value(self, _):
        return self._times


def slow(cluster, name, times):
    cluster.engine(name)._vitals.slowness = Slowed(times)


def test_slowed_worker_loses_layers_when_nothing_runs_and_no_answer_changes(wide_workshop):
    async def scenario(cluster):
        for name in PAIR:
            slow(cluster, name, 1.0)
        expected = {strategy: await undisturbed(cluster, PROMPT, COUNT, strategy=strategy) for strategy in STRATEGIES}
        await cluster.until(lambda: cluster.plan is not None)
        before, epoch = width(cluster, "beta"), cluster.control.epoch
        assert before
        cluster.step_s = 0.2
        replies = [cluster.client.ask(PROMPT, COUNT, strategy=strategy) for strategy in STRATEGIES]
        await cluster.until(lambda: cluster.worker("beta").num_launched > 30)
        slow(cluster, "beta", 3.0)
        for reply in replies:
            await reply.whole()
        assert cluster.control.epoch == epoch, "a plan was replaced while requests ran"
        cluster.step_s = 0.0
        await cluster.until(lambda: cluster.plan is not None and width(cluster, "beta") < before)
        for reply, strategy in zip(replies, STRATEGIES, strict=True):
            assert_same(reply, expected[strategy])
            assert reply.tandem["resumed"] == 0
            assert_same(await undisturbed(cluster, PROMPT, COUNT, strategy=strategy), expected[strategy])
        cluster.assert_at_rest()

    wide_workshop.run(scenario, *PAIR, settings=MEASURED)


def test_worker_without_a_stage_still_answers_alone(wide_workshop):
    async def scenario(cluster):
        expected = await undisturbed(cluster, PROMPT, COUNT, strategy=Strategy.SINGLE_DEVICE_CACHED)
        slow(cluster, "gamma", 60.0)
        await cluster.until(lambda: cluster.plan is not None and width(cluster, "gamma") == 0)
        assert set(cluster.plan.holders) == {*PAIR, "gamma"}
        replies = [cluster.client.ask(PROMPT, COUNT, strategy=Strategy.SINGLE_DEVICE_CACHED) for _ in range(3)]
        for reply in replies:
            await reply.whole()
            assert_same(reply, expected)
        cluster.assert_at_rest()

    wide_workshop.run(scenario, *PAIR, "gamma", settings=MEASURED)
