"""Who waits for whom while prompts become token ids."""

import asyncio

from cluster.serving.encoding import Encoding
from cluster.serving.requests import LONG_CHARACTERS, ChatPrompt, GenerationRequest, TextPrompt
from tests.support.fake_cluster import settle
from tests.support.virtual_time import run

SHORT = GenerationRequest(prompt=TextPrompt("hi"))
LONG = GenerationRequest(prompt=ChatPrompt(({"role": "user", "content": "x" * (LONG_CHARACTERS + 1)},)))


class Threads:
    """Each call waits until it is let go."""

    def __init__(self):
        self.began = []
        self._ends = []

    async def __call__(self, function, *arguments):
        self.began.append(arguments[0] if arguments else function.args[0])
        self._ends.append(asyncio.get_running_loop().create_future())
        return await self._ends[-1]

    def end(self, index):
        self._ends[index].set_result((1, 2))

    def encode(self, request, context_tokens, contexts):
        raise NotImplementedError

    def decode(self, tokens, *, are_many):
        raise NotImplementedError


def begin(threads, *requests):
    encoding = Encoding(threads, threads)
    return [asyncio.create_task(encoding.encode(request, 100)) for request in requests]


def test_short_prompt_does_not_wait_for_a_long_one_and_long_ones_wait_for_each_other():
    async def scenario():
        threads = Threads()
        tasks = begin(threads, LONG, LONG, SHORT)
        await settle()
        assert threads.began == [LONG, SHORT]
        threads.end(1)
        assert await tasks[2] == (1, 2)
        threads.end(0)
        await settle()
        assert threads.began == [LONG, SHORT, LONG]
        threads.end(2)
        await asyncio.gather(*tasks)

    run(scenario())


def test_who_leaves_while_others_are_before_it_is_never_encoded():
    async def scenario():
        threads = Threads()
        first, second, third = begin(threads, LONG, LONG, LONG)
        await settle()
        second.cancel()
        threads.end(0)
        await settle()
        assert len(threads.began) == 2
        threads.end(1)
        await asyncio.gather(first, third)

    run(scenario())


def test_few_tokens_become_text_while_a_long_prompt_is_encoded_and_many_wait_for_it():
    async def scenario():
        threads = Threads()
        encoding = Encoding(threads, threads)
        few, many = (5, 6), (5,) * (LONG_CHARACTERS + 1)
        tasks = [
            asyncio.create_task(work)
            for work in (encoding.encode(LONG, 100), encoding.decode(many), encoding.decode(few))
        ]
        await settle()
        assert threads.began == [LONG, few]
        threads.end(0)
        await settle()
        assert threads.began == [LONG, few, many]
        threads.end(1)
        threads.end(2)
        await asyncio.gather(*tasks)

    run(scenario())
