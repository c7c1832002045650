"""Workers none of which has room for the whole model: what survivors read, and how requests wait for who is needed."""

from cluster.serving.waiting import SAY_EVERY_S
from cluster.settings import RecoverySettings
from strategy.situation import Strategy
from tests.support.in_process.asked import PROMPT, assert_same, undisturbed

COUNT = 12
TRIO = ("alpha", "beta", "gamma")
# Room for four of the six layers of the wide model and their caches, so two workers can hold it and none can alone.
LIMIT = 4_000_000
WAIT_S = 60


def layers_of(cluster):
    return {stage.worker: tuple(stage.layers) for stage in cluster.plan.stages}


def test_survivors_read_only_what_the_dead_worker_alone_had(wide_workshop):
    async def scenario(cluster):
        sizes = cluster.plan.model.sizes
        assert layers_of(cluster) == {"alpha": (0, 2), "beta": (2, 4), "gamma": (4, 6)}
        assert not cluster.plan.holders
        expected = await undisturbed(cluster, PROMPT, COUNT)
        before = {name: cluster.read_bytes(name) for name in TRIO}
        reply = cluster.client.ask(PROMPT, COUNT)
        cluster.worker("beta").at_launch(5, lambda: cluster.kill("beta"))
        await reply.whole()
        assert_same(reply, expected)
        assert reply.tandem["resumed"] == 1
        read = {name: cluster.read_bytes(name) - before[name] for name in ("alpha", "gamma")}
        assert sum(read.values()) == sum(sizes.layers[2:4])
        members = cluster.control.members
        await cluster.until(
            lambda: all(members[name].heartbeat.read_bytes == cluster.read_bytes(name) for name in read)
        )
        await cluster.whole()
        assert_same(await undisturbed(cluster, PROMPT, COUNT), expected)

    wide_workshop.run(scenario, *TRIO, limits=[LIMIT] * 3)


def test_request_waits_for_the_worker_without_whom_nothing_fits_and_says_so(wide_workshop):
    async def scenario(cluster):
        expected = await undisturbed(cluster, PROMPT, COUNT)
        for _ in range(3):  # so that it is away for longer than a moment
            cluster.coordinator.restarts.died("beta", cluster.now())
        reply = cluster.client.ask(PROMPT, COUNT)
        cluster.worker("alpha").at_launch(6, lambda: cluster.kill("beta"))
        lost_at = cluster.now()
        await reply.whole()
        assert_same(reply, expected)
        assert reply.tandem["resumed"] == 1
        said = [at - lost_at for at, text in reply.comments if text == "waiting for beta"]
        assert said == [SAY_EVERY_S * (index + 1) for index in range(len(said))]
        assert len(said) >= 1

    wide_workshop.run(scenario, "alpha", "beta", limits=[LIMIT] * 2)


def test_request_whose_worker_never_comes_back_ends_with_an_error_in_time(wide_workshop):
    async def scenario(cluster):
        for _ in range(4):
            cluster.coordinator.restarts.died("beta", cluster.now())
        stream, whole = (cluster.client.ask(PROMPT, COUNT, stream=stream) for stream in (True, False))
        cluster.worker("alpha").at_launch(6, lambda: cluster.kill("beta"))
        lost_at = cluster.now()
        await stream.whole()
        assert cluster.now() - lost_at == WAIT_S
        await whole.whole()
        assert not stream.is_complete
        assert whole.status == 503
        assert stream.error == whole.error
        assert stream.error.startswith("Beta did not come back within 60 s")
        assert len(stream.comments) == WAIT_S // SAY_EVERY_S - 1
        late = cluster.client.ask(PROMPT, COUNT)
        cluster.coordinator.restarts.forgive("beta")
        cluster.control.mend()
        await late.whole()
        assert late.is_complete
        cluster.assert_at_rest()

    wide_workshop.run(
        scenario, "alpha", "beta", limits=[LIMIT] * 2, settings={"recovery": RecoverySettings(wait_s=WAIT_S)}
    )


def test_strategy_that_no_survivor_can_serve_waits_too(wide_workshop):
    """A full model on one worker only: who asked for it waits for that one, while others are served."""

    async def scenario(cluster):
        single = {"strategy": Strategy.SINGLE_DEVICE_CACHED}
        assert cluster.plan.holders == ("alpha",)
        expected = await undisturbed(cluster, PROMPT, COUNT, **single)
        for _ in range(3):
            cluster.coordinator.restarts.died("alpha", cluster.now())
        waits = cluster.client.ask(PROMPT, COUNT, **single)
        cluster.worker("alpha").at_launch(4, lambda: cluster.kill("alpha"))
        await cluster.until(lambda: cluster.plan is not None and cluster.plan.workers == ("beta", "gamma"))
        other = await cluster.client.answer(PROMPT, COUNT, strategy=Strategy.DISTRIBUTED_CACHED)
        assert other.ids == expected.ids
        assert not waits.task.done()
        await waits.whole()
        assert_same(waits, expected)

    wide_workshop.run(scenario, *TRIO, limits=[12_000_000, LIMIT, LIMIT])
