"""What the tests of whole clusters ask, and what an answer must be whatever befell it."""

import asyncio

from strategy.situation import Strategy

STRATEGIES = (Strategy.SINGLE_DEVICE_CACHED, Strategy.DISTRIBUTED_NO_CACHE, Strategy.DISTRIBUTED_CACHED)

PROMPT = (10, 20, 30, 40, 50)
COUNT = 40


def assert_same(reply, expected):
    """The very answer: ids, text without a token lost or repeated, reason and usage."""
    assert reply.error is None, reply.error
    assert reply.is_complete
    assert reply.ids == expected.ids
    assert reply.text == expected.text
    assert reply.finish_reason == expected.finish_reason
    counts = ("prompt_tokens", "completion_tokens", "total_tokens")
    assert [reply.usage[name] for name in counts] == [expected.usage[name] for name in counts]


async def undisturbed(cluster, prompt, count, **fields):
    reply = await cluster.client.answer(prompt, count, **fields)
    assert reply.error is None, reply.error
    assert reply.tandem["resumed"] == 0
    return reply


async def at_every_step(
    cluster, disturb, *, counted, prompt=PROMPT, count=COUNT, every=1, noticed_within_s=0.0, **fields
):
    """Disturb an answer at each step of a worker (each so many steps); how often it went on, by step.

    noticed_within_s: after the answer, where that does not need what was disturbed.
    """
    expected = await undisturbed(cluster, prompt, count, **fields)
    resumed, step = [], 1
    while True:
        fired = []

        def act(fired=fired, step=step):
            fired.append(step)
            disturb(step)

        reply = cluster.client.ask(prompt, count, **fields)
        cluster.worker(counted).at_launch(step, act)
        await reply.whole()
        cluster.forget_faults()
        assert_same(reply, expected)
        if not fired:
            return resumed
        resumed.append(reply.tandem["resumed"])
        await asyncio.sleep(noticed_within_s)
        await cluster.whole()
        cluster.assert_at_rest()
        step += every
