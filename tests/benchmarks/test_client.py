"""The benchmarks' client counts and times what servers send, however it is cut into pieces."""

import asyncio
import contextlib

import pytest

from benchmarks.support.client import Answer, Target, get_json, stream
from benchmarks.support.load import Load, run_round

CHUNK = b'data: {"choices":[{"index":0,"text":"%s"}]}\n\n'
USAGE = b'data: {"choices":[],"usage":{"prompt_tokens":3,"completion_tokens":5},"tandem":{"strategy":"x"}}\n\n'
DONE = b"data: [DONE]\n\n"
OK = b"HTTP/1.1 200 OK\r\nContent-Type: text/event-stream\r\n"


@contextlib.asynccontextmanager
async def server(*pieces):
    """Answers every request with the given bytes, a write each."""

    async def answer(reader, writer):
        head = await reader.readuntil(b"\r\n\r\n")
        length = [line for line in head.lower().split(b"\r\n") if line.startswith(b"content-length")]
        await reader.readexactly(int(length[0].split(b":")[1]))
        for piece in pieces:
            writer.write(piece)
            await writer.drain()
            await asyncio.sleep(0)
        writer.close()

    listening = await asyncio.start_server(answer, "127.0.0.1", 0)
    async with listening:
        yield Target(name="t", url=f"http://127.0.0.1:{listening.sockets[0].getsockname()[1]}", model="m")


def ask(*pieces) -> Answer:
    async def run():
        async with server(*pieces) as target:
            return await stream(target, "hello", 5)

    return asyncio.run(run())


def chunked(data):
    return b"%x\r\n%s\r\n" % (len(data), data)


def test_stream_up_to_the_end_of_the_connection_is_read():
    answer = ask(OK + b"\r\n", CHUNK % b"a", CHUNK % b"b", USAGE, DONE)
    assert answer.error is None
    assert len(answer.text_at) == 2
    assert (answer.prompt_tokens, answer.completion_tokens) == (3, 5)
    assert answer.tandem == {"strategy": "x"}


def test_chunked_stream_is_read_wherever_it_is_cut():
    body = (
        OK + b"Transfer-Encoding: chunked\r\n\r\n" + b"".join(map(chunked, [CHUNK % b"a", CHUNK % b"b" + USAGE, DONE]))
    )
    for cut in range(1, len(body), 7):
        answer = ask(body[:cut], body[cut:])
        assert answer.error is None
        assert (len(answer.text_at), answer.num_tokens) == (2, 5)


def test_tokens_are_the_servers_count_and_pieces_where_it_gives_none():
    assert ask(OK + b"\r\n", CHUNK % b"a b c", USAGE, DONE).num_tokens == 5
    assert ask(OK + b"\r\n", CHUNK % b"a b c", DONE).num_tokens == 1


def test_prefill_comments_are_kept_with_their_times():
    answer = ask(OK + b"\r\n", b": prefill 512/2048\n\n", CHUNK % b"a", DONE)
    assert [processed for _, processed in answer.progress_at] == [512]


@pytest.mark.parametrize(
    ("pieces", "expected"),
    [
        ([b'HTTP/1.1 429 Too Many\r\n\r\n{"error":{"message":"full"}}'], "429"),
        ([OK + b"\r\n", b'data: {"error":{"message":"worker lost"}}\n\n'], "worker lost"),
        ([OK + b"\r\n", CHUNK % b"a"], "without its end mark"),
        ([OK + b"\r\n", b"data: not json\n\n"], "JSON"),
    ],
)
def test_what_goes_wrong_is_the_answers_error(pieces, expected):
    assert expected in ask(*pieces).error


def test_nobody_listening_is_the_answers_error():
    answer = asyncio.run(stream(Target(name="t", url="http://127.0.0.1:9", model="m"), "hello", 5))
    assert answer.error


def test_round_counts_coalesced_tokens_and_errors_apart():
    async def run():
        async with server(OK + b"\r\n", CHUNK % b"a", CHUNK % b"b", USAGE, DONE) as target:
            return await run_round(target, Load(clients=2, requests=3, prompt_tokens=1, max_tokens=5), ["a", "b", "c"])

    found = asyncio.run(run())
    assert (found.output_tokens, found.coalesced_tokens, found.errors) == (15, 9, ())
    assert len(found.ttft_s) == len(found.itl_s) == 3


def test_documents_other_than_200_are_an_error():
    async def run():
        async with server(b"HTTP/1.1 503 No\r\n\r\n{}") as target:
            await get_json(target.url, "/health")

    with pytest.raises(ValueError, match="503"):
        asyncio.run(run())
