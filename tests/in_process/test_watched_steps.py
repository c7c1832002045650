"""What whoever looks is told of the steps of a whole cluster, and that nothing is kept where nobody looks."""

import asyncio

from protocol.step_reports import decode_report
from tests.support.in_process.asked import COUNT, PROMPT
from workers.engine.timeline import WATCHED_FOR_S

PAIR = ("alpha", "beta")


class Looker:
    """Hears steps. said: all of them with their workers."""

    def __init__(self, cluster):
        self._service = cluster.coordinator.service
        self.said = []

    def __enter__(self):
        self._watching = self._service.watch_steps(self._hear)
        return self._watching.__enter__() or self

    def __exit__(self, *error):
        return self._watching.__exit__(*error)

    def _hear(self, said):
        report = decode_report(said.report)
        assert report.worker == said.worker
        self.said += [(report.worker, step) for step in report.steps]

    def of(self, worker, **fields):
        return [
            step
            for name, step in self.said
            if name == worker and all(getattr(step, key) == value for key, value in fields.items())
        ]


async def heard(cluster):
    """What is said a few times a second has been said."""
    await asyncio.sleep(1)


def test_every_stage_tells_its_steps_of_a_request(workshop):
    async def scenario(cluster):
        with Looker(cluster) as looker:
            await heard(cluster)
            reply = await cluster.client.answer(PROMPT, COUNT, strategy="distributed-cached")
            alone = await cluster.client.answer(PROMPT, COUNT, strategy="single-device-cached")
            await heard(cluster)
        first, second = (each.events[0]["id"].removeprefix("cmpl-") for each in (reply, alone))
        assert (first, second) == ("1", "2")
        for worker in PAIR:
            steps = looker.of(worker, route="alpha>beta")
            assert [step.n for step in steps] == list(range(1, len(steps) + 1))
            assert {step.requests for step in steps} == {(first,)}
            assert {step.epoch for step in steps} == {cluster.plan.epoch}
            assert sum(step.kind == "decode" for step in steps) == COUNT
            assert sum(step.tokens for step in steps if step.kind == "prefill") == len(PROMPT) - 1
        assert all(step.bytes for step in looker.of("alpha", route="alpha>beta"))
        assert not any(step.bytes for step in looker.of("beta", route="alpha>beta"))
        (holder,) = alone.tandem["workers"]
        assert {step.requests for step in looker.of(holder, route=holder)} == {(second,)}

    workshop.run(scenario, *PAIR)


def test_prompt_that_all_stages_read_for_one_worker_is_of_the_same_request_everywhere(pair_workshop):
    async def scenario(cluster):
        with Looker(cluster) as looker:
            await heard(cluster)
            reply = await cluster.client.answer(tuple(range(10, 110)), 4, strategy="distributed-prefill")
            await heard(cluster)
        assert reply.tandem["strategy"] == "distributed-prefill"
        assert {step.requests for _, step in looker.said} == {("1",)}
        assert {step.kind for _, step in looker.said if step.route == "alpha>beta"} == {"prefill"}
        holders = {step.route for _, step in looker.said if step.kind == "decode"}
        assert len(holders) == 1
        assert holders < set(PAIR)

    pair_workshop.run(scenario, *PAIR)


def test_who_looks_goes_on_looking_through_a_loss(workshop):
    async def scenario(cluster):
        with Looker(cluster) as looker:
            await heard(cluster)
            reply = cluster.client.ask(PROMPT, COUNT, strategy="distributed-cached")
            cluster.worker("beta").at_launch(5, lambda: cluster.kill("beta"))
            await reply.whole()
            await cluster.whole()
            await cluster.client.answer(PROMPT, COUNT, strategy="distributed-cached")
            await heard(cluster)
        epochs = {step.epoch for _, step in looker.said}
        assert len(epochs) >= 2
        assert {step.requests for _, step in looker.said if step.epoch == min(epochs)} == {("1",)}
        assert ("1",) in {step.requests for _, step in looker.said if step.epoch > min(epochs)}
        assert {name for name, step in looker.said if step.epoch == cluster.plan.epoch} == set(PAIR)

    workshop.run(scenario, *PAIR)


def test_nothing_is_kept_where_nobody_looks_or_looked(workshop):
    async def scenario(cluster):
        with Looker(cluster), Looker(cluster):
            await heard(cluster)
            assert all(cluster.engine(name).timeline.is_watched(cluster.now()) for name in PAIR)
        await asyncio.sleep(WATCHED_FOR_S + 1)
        await cluster.client.answer(PROMPT, COUNT)
        for name in PAIR:
            timeline = cluster.engine(name).timeline
            assert not timeline.is_watched(cluster.now())
            assert timeline.take() == ()

    workshop.run(scenario, *PAIR)


def test_sequences_that_ended_leave_no_names_behind(workshop):
    async def scenario(cluster):
        for strategy in ("distributed-cached", "distributed-no-cache", "single-device-cached"):
            await cluster.client.answer(PROMPT, COUNT, strategy=strategy)
        for name in PAIR:
            assert not any(cluster.engine(name).timeline._requests.values())

    workshop.run(scenario, *PAIR)
