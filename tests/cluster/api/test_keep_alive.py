"""Streams that say nothing for long are kept alive until their first text, and only until then."""

import asyncio

import pytest

from cluster.api import keep_alive
from cluster.serving.requests import Delta, Progress
from tests.support.fake_service import FINISHED, ROUTED, FakeService, chat, completion


class SlowService(FakeService):
    """Numbers in the script are seconds to wait."""

    async def generate(self, request):
        for item in self.script:
            if isinstance(item, float):
                await asyncio.sleep(item)
            else:
                yield item


@pytest.fixture(autouse=True)
def impatient(monkeypatch):
    monkeypatch.setattr(keep_alive, "KEEP_ALIVE_S", 0.02)


def comments(*script):
    text = chat(SlowService(*script), stream=True).text
    assert text.endswith("data: [DONE]\n\n")
    return [block for block in text.split("\n\n") if block.startswith(":")]


TEXT = Delta(text="x", token_ids=(1,))


def test_silence_before_the_first_text_is_filled_with_comments():
    assert set(comments(ROUTED, 0.2, TEXT, FINISHED)) == {": keep-alive"}
    assert len(comments(ROUTED, 0.1, Progress(processed=1, total=2), 0.1, TEXT, FINISHED)) >= 3


def test_nothing_is_added_where_text_comes_at_once_or_has_begun():
    assert comments(ROUTED, TEXT, FINISHED) == []
    assert comments(ROUTED, TEXT, 0.1, TEXT, FINISHED) == []


def test_of_several_answers_all_have_to_begin():
    class OneIsSlow(SlowService):
        async def generate(self, request):
            for item in (ROUTED, *((0.2,) if request.prompt.text == "slow" else ()), TEXT, FINISHED):
                if isinstance(item, float):
                    await asyncio.sleep(item)
                else:
                    yield item

    text = completion(OneIsSlow(), prompt=["at once", "slow"], stream=True).text
    assert text.index('"text":"x"') < text.index(": keep-alive")
    assert text.endswith("data: [DONE]\n\n")


def test_client_that_leaves_meanwhile_ends_its_request():
    service = FakeService(ROUTED, ...)

    async def scenario():
        events = service.generate(None)
        written = asyncio.Event()

        async def beat():
            written.set()

        async def read():
            async for _ in keep_alive.kept_alive(events, keep_alive.is_text, beat):
                pass

        reading = asyncio.create_task(read())
        await written.wait()
        reading.cancel()
        await asyncio.gather(reading, return_exceptions=True)
        await events.aclose()
        await asyncio.wait_for(service.closed.wait(), 5)

    asyncio.run(scenario())
