"""A worker, a link or a message lost at every step of an answer: the answer is the one that it would have been."""

import pytest

from cluster.settings import CacheSettings
from strategy.situation import Strategy
from tests.support.in_process.asked import STRATEGIES, at_every_step, undisturbed
from tests.support.in_process.cluster import CHUNK_TOKENS

PAIR = ("alpha", "beta")
LONG_PROMPT = tuple(range(10, 110))
KILLED_AT = 14  # of so many tokens, each; behind the last ones what is read again takes a second chunk


def counter_of(strategy, victim):
    """Whose steps are counted: the victim's where it has any."""
    return "alpha" if strategy is Strategy.SINGLE_DEVICE_CACHED else victim


@pytest.mark.parametrize("victim", PAIR)
@pytest.mark.parametrize("strategy", STRATEGIES)
def test_worker_killed_at_any_step_changes_nothing(pair_workshop, strategy, victim):
    async def scenario(cluster):
        resumed = await at_every_step(
            cluster,
            lambda step: cluster.kill(victim, silently=step % 2 == 0),
            counted=counter_of(strategy, victim),
            count=KILLED_AT,
            strategy=strategy,
        )
        assert len(resumed) >= KILLED_AT
        assert set(resumed) == {1}

    pair_workshop.run(scenario, *PAIR)


@pytest.mark.parametrize("holder", PAIR)
@pytest.mark.parametrize("victim", PAIR)
def test_worker_killed_at_any_step_of_a_prompt_that_both_read_for_one_changes_nothing(pair_workshop, victim, holder):
    async def scenario(cluster):
        other = next(name for name in PAIR if name != holder)
        cluster.coordinator.service._decider._load = {holder: 0, other: 1}
        whole = await undisturbed(cluster, LONG_PROMPT, 1, strategy=Strategy.DISTRIBUTED_PREFILL)
        assert whole.tandem["workers"] == list(PAIR)
        resumed = await at_every_step(
            cluster,
            lambda step: cluster.kill(victim, silently=step % 2 == 0),
            counted=victim,
            prompt=LONG_PROMPT,
            count=6,
            strategy=Strategy.DISTRIBUTED_PREFILL,
        )
        assert len(resumed) >= len(LONG_PROMPT) // CHUNK_TOKENS
        assert set(resumed) == {1}

    pair_workshop.run(scenario, *PAIR, settings={"cache": CacheSettings(prefix=False)})


@pytest.mark.parametrize("victim", PAIR)
@pytest.mark.parametrize("fault", ["stop", "block"])
@pytest.mark.parametrize("strategy", STRATEGIES)
def test_worker_that_stands_still_is_replaced(pair_workshop, strategy, fault, victim):
    async def scenario(cluster):
        def disturb(_):
            if fault == "stop":
                cluster.stop(victim)
            else:
                cluster.worker(victim).hang()

        resumed = await at_every_step(
            cluster, disturb, counted=counter_of(strategy, victim), count=20, every=8, strategy=strategy
        )
        assert set(resumed) <= {0, 1}

    pair_workshop.run(scenario, *PAIR)


LINKS = [
    ("alpha", "beta"),
    ("beta", "alpha"),
    ("coordinator", "alpha"),
    ("coordinator", "beta"),
    ("alpha", ""),
    ("beta", ""),
]


async def at_every_fault_of_a_link(cluster, fault, **fields):
    for owner, name in LINKS:
        await at_every_step(
            cluster,
            lambda _, owner=owner, name=name: getattr(cluster, fault)(owner, name),
            counted="alpha",
            **fields,
        )


@pytest.mark.parametrize("fault", ["reset", "lose_next"])
@pytest.mark.parametrize("strategy", [Strategy.DISTRIBUTED_NO_CACHE, Strategy.DISTRIBUTED_CACHED])
def test_what_a_link_loses_changes_nothing(pair_workshop, strategy, fault):
    async def scenario(cluster):
        await at_every_fault_of_a_link(cluster, fault, count=20, every=9, strategy=strategy)

    pair_workshop.run(scenario, *PAIR)


@pytest.mark.parametrize("fault", ["reset", "lose_next"])
def test_what_a_link_loses_of_a_prompt_that_both_read_for_one_changes_nothing(pair_workshop, fault):
    async def scenario(cluster):
        await at_every_fault_of_a_link(
            cluster,
            fault,
            every=3,
            noticed_within_s=20.0,  # the answer of a prompt's last step is lost, and nobody but its head waits for it
            prompt=LONG_PROMPT,
            count=6,
            strategy=Strategy.DISTRIBUTED_PREFILL,
        )

    pair_workshop.run(scenario, *PAIR, settings={"cache": CacheSettings(prefix=False)})
