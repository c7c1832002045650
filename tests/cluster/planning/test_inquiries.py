"""Questions to workers: each answer is its question's, and who does not answer has none."""

import asyncio

from cluster.planning.inquiries import FIGURES_WITHIN_S, MODELS_WITHIN_S, Inquiries
from protocol.messages import FiguresComputed, HeldModel, ModelsListed
from tests.support.virtual_time import run

MODEL = HeldModel(digest="d", name="n", held_bytes=1, num_bytes=1, source="hub")


def listed(worker, number, models=(MODEL,)):
    return ModelsListed(worker=worker, number=number, models=models)


def not_asked(worker, message):
    raise AssertionError(f"{worker} was asked {message}")


def test_answers_are_those_of_the_question_and_silence_is_none():
    async def scenario():
        asked = []
        inquiries = Inquiries(
            lambda worker, message: asked.append((worker, message.number)), not_asked, lambda worker: False
        )
        waiting = asyncio.create_task(inquiries.models(["alpha", "beta", "gamma"]))
        await asyncio.sleep(0)
        assert [worker for worker, _ in asked] == ["alpha", "beta", "gamma"]
        number = asked[0][1]
        for answer in (listed("alpha", number), listed("alpha", number, ()), listed("beta", number + 1)):
            inquiries.answered(answer)
        began = asyncio.get_running_loop().time()
        assert await waiting == {"alpha": (MODEL,)}
        assert asyncio.get_running_loop().time() - began == MODELS_WITHIN_S
        inquiries.answered(listed("gamma", number))  # too late, which nobody minds

    run(scenario())


def test_nobody_is_waited_for_once_all_have_answered():
    async def scenario():
        inquiries = Inquiries(
            lambda worker, message: inquiries.answered(listed(worker, message.number)), not_asked, lambda worker: False
        )
        assert await inquiries.models(["alpha"]) == {"alpha": (MODEL,)}
        assert await inquiries.models([]) == {}
        assert asyncio.get_running_loop().time() < MODELS_WITHIN_S

    run(scenario())


def test_figures_are_asked_for_over_the_links_of_the_plan():
    async def scenario():
        asked = []
        inquiries = Inquiries(not_asked, lambda worker, message: asked.append(message.number), lambda worker: False)
        waiting = asyncio.create_task(inquiries.figures(["alpha", "beta"]))
        await asyncio.sleep(0)
        inquiries.answered(FiguresComputed(worker="beta", number=asked[0], stages=()))
        assert await waiting == {"beta": ()}
        assert asyncio.get_running_loop().time() == FIGURES_WITHIN_S

    run(scenario())
