"""Questions to workers: each answer is its question's, and who does not answer has none."""

import asyncio

from cluster.planning.inquiries import WITHIN_S, Inquiries
from protocol.messages import HeldModel, ModelsListed
from tests.support.virtual_time import run

MODEL = HeldModel(digest="d", name="n", held_bytes=1, num_bytes=1, source="hub")


def listed(worker, number, models=(MODEL,)):
    return ModelsListed(worker=worker, number=number, models=models)


def test_answers_are_those_of_the_question_and_silence_is_none():
    async def scenario():
        asked = []
        inquiries = Inquiries(lambda worker, message: asked.append((worker, message.number)))
        waiting = asyncio.create_task(inquiries.models(["alpha", "beta", "gamma"]))
        await asyncio.sleep(0)
        assert [worker for worker, _ in asked] == ["alpha", "beta", "gamma"]
        number = asked[0][1]
        for answer in (listed("alpha", number), listed("alpha", number, ()), listed("beta", number + 1)):
            inquiries.answered(answer)
        began = asyncio.get_running_loop().time()
        assert await waiting == {"alpha": (MODEL,)}
        assert asyncio.get_running_loop().time() - began == WITHIN_S
        inquiries.answered(listed("gamma", number))  # too late, which nobody minds

    run(scenario())


def test_nobody_is_waited_for_once_all_have_answered():
    async def scenario():
        inquiries = Inquiries(lambda worker, message: inquiries.answered(listed(worker, message.number)))
        assert await inquiries.models(["alpha"]) == {"alpha": (MODEL,)}
        assert await inquiries.models([]) == {}
        assert asyncio.get_running_loop().time() < WITHIN_S

    run(scenario())
