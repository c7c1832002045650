"""Answers of every kind, cut by a loss wherever it may come: sampled, stopped by a text, many at once, long prompts."""

import asyncio
import random

import pytest

from cluster.settings import CacheSettings
from protocol.messages import Generate
from strategy.situation import Strategy
from tests.support.in_process.asked import COUNT, PROMPT, STRATEGIES, assert_same, at_every_step, undisturbed

PAIR = ("alpha", "beta")
SAMPLED = {"temperature": 0.8, "top_p": 0.95}
LONG = tuple(random.Random(1).choices(range(5, 320), k=200))


@pytest.mark.parametrize("strategy", STRATEGIES)
def test_sampled_answer_goes_on_as_its_seed_says(pair_workshop, strategy):
    async def scenario(cluster):
        resumed = await at_every_step(
            cluster,
            lambda _: cluster.kill("alpha"),
            counted="alpha",
            count=20,
            every=5,
            strategy=strategy,
            seed=11,
            **SAMPLED,
        )
        assert set(resumed) == {1}

    pair_workshop.run(scenario, *PAIR)


def test_sampled_answer_without_a_seed_keeps_the_one_that_was_drawn(pair_workshop):
    endless = SAMPLED | {"logit_bias": {"1": -100}}  # whatever seed is drawn, the answer does not end before its loss

    async def scenario(cluster):
        for step in range(1, COUNT, 9):
            before = len(cluster.coordinator.mailbox.sent)
            reply = cluster.client.ask(PROMPT, COUNT, strategy="distributed-cached", **endless)
            cluster.worker("beta").at_launch(step, lambda: cluster.kill("beta"))
            await reply.whole()
            seeds = {each.seed for each in cluster.coordinator.mailbox.sent[before:] if isinstance(each, Generate)}
            assert len(seeds) == reply.tandem["resumed"] == 1
            await cluster.whole()
            again = await undisturbed(
                cluster, PROMPT, COUNT, strategy="distributed-cached", seed=seeds.pop(), **endless
            )
            assert_same(reply, again)

    pair_workshop.run(scenario, *PAIR)


@pytest.mark.parametrize("strategy", STRATEGIES)
def test_stop_string_counts_across_the_cut(pair_workshop, strategy):
    async def scenario(cluster):
        text = (await undisturbed(cluster, PROMPT, COUNT, strategy=strategy)).text
        at = next(at for at in range(20, len(text)) if text.find(text[at : at + 4]) == at)
        stop = text[at : at + 4]
        resumed = await at_every_step(
            cluster, lambda _: cluster.kill("alpha"), counted="alpha", every=4, strategy=strategy, stop=[stop]
        )
        assert 2 < len(resumed) < COUNT // 4
        stopped = await undisturbed(cluster, PROMPT, COUNT, strategy=strategy, stop=[stop])
        assert (stopped.finish_reason, stopped.text) == ("stop", text[:at])

    pair_workshop.run(scenario, *PAIR)


@pytest.mark.parametrize("victim", PAIR)
def test_many_answers_at_once_go_on_together(workshop, victim):
    asked = [
        (
            (*PROMPT, index),
            12 + 5 * index,
            {"strategy": STRATEGIES[index % 3], "seed": index, **(SAMPLED if index > 3 else {})},
        )
        for index in range(7)
    ]

    async def scenario(cluster):
        expected = [await undisturbed(cluster, prompt, count, **fields) for prompt, count, fields in asked]
        for step in range(1, 90, 36):
            replies = [cluster.client.ask(prompt, count, **fields) for prompt, count, fields in asked]
            cluster.worker(victim).at_launch(step, lambda: cluster.kill(victim))
            await asyncio.gather(*(reply.task for reply in replies))
            cluster.forget_faults()
            for reply, wanted in zip(replies, expected, strict=True):
                assert_same(reply, wanted)
            await cluster.whole()
            cluster.assert_at_rest()

    workshop.run(scenario, *PAIR, "gamma")


@pytest.mark.parametrize("victim", PAIR)
@pytest.mark.parametrize("strategy", [Strategy.SINGLE_DEVICE_CACHED, Strategy.DISTRIBUTED_CACHED])
def test_long_prompt_that_is_cut_between_its_chunks_is_read_on_the_next_plan(pair_workshop, strategy, victim):
    async def scenario(cluster):
        single = strategy is Strategy.SINGLE_DEVICE_CACHED
        resumed = await at_every_step(
            cluster,
            lambda _: cluster.kill(victim),
            counted="alpha" if single else victim,
            prompt=LONG[:100],
            count=6,
            strategy=strategy,
        )
        assert len(resumed) >= 100 // 16
        assert set(resumed) == {1}

    pair_workshop.run(scenario, *PAIR, settings={"cache": CacheSettings(prefix=False)})


@pytest.mark.parametrize("fault", ["kill", "reset"])
def test_prompt_whose_beginning_is_kept_goes_on_from_it(pair_workshop, fault):
    async def scenario(cluster):
        strategy = Strategy.DISTRIBUTED_CACHED
        first = await undisturbed(cluster, LONG, 8, strategy=strategy)
        assert first.tandem["cached_tokens"] == 0
        longer = (*LONG, *first.ids, 9, 8, 7)

        def disturb(_):
            cluster.kill("beta") if fault == "kill" else cluster.reset("alpha", "beta")

        resumed = await at_every_step(
            cluster, disturb, counted="alpha", prompt=longer, count=12, every=2, strategy=strategy
        )
        assert set(resumed) == {1}
        again = await undisturbed(cluster, longer, 12, strategy=strategy)
        assert again.tandem["cached_tokens"] >= len(LONG) // 64 * 64

    pair_workshop.run(scenario, *PAIR)
