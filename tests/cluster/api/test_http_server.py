"""The API on a real loopback socket: the official client, clients that leave, ports, shutdown."""

import asyncio
import json
from collections.abc import Awaitable, Callable
from contextlib import asynccontextmanager

import openai
import pytest

from cluster.api import bind, serve
from cluster.api.fields import Notes
from cluster.api.generation import GenerationResponse
from cluster.api.surfaces.chat import Chat
from cluster.serving.requests import Delta
from protocol.errors import TandemError
from tests.support.fake_service import FINISHED, ROUTED, FakeService, app_over

USER = [{"role": "user", "content": "hi"}]
SAYS = 'Hello "wörld"\n'
PATIENCE_S = 10.0


@asynccontextmanager
async def serving(service, **options):
    """The app on a free port; gives the port, and stops it in order at the end."""
    listener, stopping = bind("127.0.0.1", 0), asyncio.Event()
    port = listener.getsockname()[1]
    server = asyncio.create_task(serve(app_over(service, **options), listener, stopping=stopping, grace_s=1))
    try:
        yield port
    finally:
        stopping.set()
        await asyncio.wait_for(server, PATIENCE_S)


def with_openai(service: FakeService, use: Callable[[openai.AsyncOpenAI], Awaitable], **options):
    async def run():
        async with serving(service, **options) as port:
            client = openai.AsyncOpenAI(base_url=f"http://127.0.0.1:{port}/v1", api_key="secret", max_retries=0)
            async with client:
                return await use(client)

    return asyncio.run(run())


def test_openai_client_chats():
    answer = with_openai(FakeService(), lambda client: client.chat.completions.create(model="tiny", messages=USER))
    assert (answer.choices[0].message.content, answer.choices[0].finish_reason) == (SAYS, "stop")
    assert (answer.usage.total_tokens, answer.usage.prompt_tokens_details.cached_tokens) == (10, 4)
    assert answer.tandem["strategy"] == "distributed-no-cache"


def test_openai_client_streams_chat():
    async def use(client):
        options = {"include_usage": True}
        stream = await client.chat.completions.create(model="tiny", messages=USER, stream=True, stream_options=options)
        return [chunk async for chunk in stream]

    chunks = with_openai(FakeService(), use)
    assert "".join(chunk.choices[0].delta.content or "" for chunk in chunks if chunk.choices) == SAYS
    assert chunks[0].choices[0].delta.role == "assistant"
    assert [chunk.choices[0].finish_reason for chunk in chunks if chunk.choices][-1] == "stop"
    assert (chunks[-1].usage.completion_tokens, chunks[-1].tandem["token_ids"]) == (3, [5, 6])


def test_openai_client_completes():
    answer = with_openai(FakeService(), lambda client: client.completions.create(model="tiny", prompt="hi"))
    assert (answer.choices[0].text, answer.choices[0].finish_reason) == (SAYS, "stop")


def test_openai_client_streams_completion():
    async def use(client):
        return [chunk async for chunk in await client.completions.create(model="tiny", prompt="hi", stream=True)]

    assert "".join(chunk.choices[0].text for chunk in with_openai(FakeService(), use)) == SAYS


def test_openai_client_lists_models():
    async def use(client):
        return [model.id async for model in client.models.list()]

    assert with_openai(FakeService(), use) == ["tiny"]


def test_openai_client_raises_its_own_errors():
    async def wrong_field(client):
        with pytest.raises(openai.BadRequestError) as caught:
            await client.chat.completions.create(model="tiny", messages=USER, temperature=9)
        return caught.value.param

    async def wrong_model(client):
        with pytest.raises(openai.NotFoundError) as caught:
            await client.models.retrieve("gpt-4")
        return caught.value.code

    async def wrong_key(client):
        with pytest.raises(openai.AuthenticationError) as caught:
            await client.models.list()
        return caught.value.code

    assert with_openai(FakeService(), wrong_field) == "temperature"
    assert with_openai(FakeService(), wrong_model) == "model_not_found"
    assert with_openai(FakeService(), wrong_key, api_key="other") == "invalid_api_key"


def post(path: str, body: dict) -> bytes:
    data = json.dumps(body).encode()
    return b"POST %s HTTP/1.1\r\nHost: x\r\nContent-Length: %d\r\n\r\n" % (path.encode(), len(data)) + data


@pytest.mark.parametrize("script", [(...,), (ROUTED, ...), (ROUTED, Delta(text="x", token_ids=(1,)), ...)])
@pytest.mark.parametrize("stream", [False, True])
def test_client_that_leaves_cancels_its_request_while_no_token_flows(script, stream):
    async def run():
        service = FakeService(*script)
        async with serving(service) as port:
            _, writer = await asyncio.open_connection("127.0.0.1", port)
            writer.write(post("/v1/chat/completions", {"messages": USER, "stream": stream}))
            await asyncio.wait_for(service.waiting.wait(), PATIENCE_S)
            assert not service.closed.is_set()
            writer.close()
            await asyncio.wait_for(service.closed.wait(), PATIENCE_S)

    asyncio.run(run())


def test_client_that_leaves_while_its_answer_is_being_written_cancels_its_request():
    """In process: the write does not end, and the disconnect message comes."""

    async def run():
        service, writing = FakeService(ROUTED, FINISHED), asyncio.Event()

        async def receive():
            await writing.wait()
            return {"type": "http.disconnect"}

        async def send(_message):
            writing.set()
            await asyncio.Event().wait()

        chat = Chat()
        response = GenerationResponse(service, chat.parse({"messages": USER, "stream": True}, Notes()), chat, "tiny")
        await asyncio.wait_for(response({"type": "http"}, receive, send), PATIENCE_S)
        assert service.closed.is_set()

    asyncio.run(run())


def test_connection_serves_the_next_request_after_a_refused_one():
    async def run():
        async with serving(FakeService()) as port:
            reader, writer = await asyncio.open_connection("127.0.0.1", port)
            for body, status in (({"messages": []}, b"400"), ({"messages": USER}, b"200")):
                writer.write(post("/v1/chat/completions", body))
                head = await asyncio.wait_for(reader.readuntil(b"\r\n\r\n"), PATIENCE_S)
                assert head.split()[1] == status
                length = int(head.lower().split(b"content-length: ")[1].split(b"\r\n")[0])
                await reader.readexactly(length)
            writer.close()

    asyncio.run(run())


def test_sender_of_50_megabytes_reads_its_refusal():
    async def run():
        async with serving(FakeService()) as port:
            reader, writer = await asyncio.open_connection("127.0.0.1", port)
            writer.write(b"POST /v1/completions HTTP/1.1\r\nHost: x\r\nContent-Length: %d\r\n\r\n" % (50 * 2**20))
            for _ in range(50):
                writer.write(b" " * 2**20)
                await writer.drain()
            head = await asyncio.wait_for(reader.readuntil(b"\r\n\r\n"), PATIENCE_S)
            writer.close()
            assert head.split()[1] == b"413"

    asyncio.run(run())


def test_sender_that_asks_first_is_refused_before_it_sends():
    async def run():
        async with serving(FakeService()) as port:
            reader, writer = await asyncio.open_connection("127.0.0.1", port)
            writer.write(
                b"POST /v1/completions HTTP/1.1\r\nHost: x\r\nExpect: 100-continue\r\n"
                b"Content-Length: %d\r\n\r\n" % (50 * 2**20)
            )
            head = await asyncio.wait_for(reader.readuntil(b"\r\n\r\n"), PATIENCE_S)
            writer.close()
            assert head.split()[1] == b"413"

    asyncio.run(run())


def test_stopping_lets_a_running_stream_end():
    async def run():
        service = FakeService(ROUTED, Delta(text="x", token_ids=(1,)), FINISHED)
        listener, stopping = bind("127.0.0.1", 0), asyncio.Event()
        server = asyncio.create_task(serve(app_over(service), listener, stopping=stopping))
        reader, writer = await asyncio.open_connection(*listener.getsockname())
        writer.write(post("/v1/chat/completions", {"messages": USER, "stream": True}))
        await asyncio.wait_for(reader.readuntil(b"\r\n\r\n"), PATIENCE_S)
        stopping.set()
        rest = await asyncio.wait_for(reader.read(), PATIENCE_S)
        await asyncio.wait_for(server, PATIENCE_S)
        writer.close()
        assert b"[DONE]" in rest

    asyncio.run(run())


def test_stopping_ends_what_will_not_end_and_closes_its_request():
    async def run():
        service = FakeService(ROUTED, ...)
        listener, stopping = bind("127.0.0.1", 0), asyncio.Event()
        server = asyncio.create_task(serve(app_over(service), listener, stopping=stopping, grace_s=0))
        _, writer = await asyncio.open_connection(*listener.getsockname())
        writer.write(post("/v1/chat/completions", {"messages": USER, "stream": True}))
        await asyncio.wait_for(service.waiting.wait(), PATIENCE_S)
        stopping.set()
        await asyncio.wait_for(server, PATIENCE_S)
        await asyncio.wait_for(service.closed.wait(), PATIENCE_S)
        writer.close()

    asyncio.run(run())


def test_port_in_use_and_unknown_host_are_plain_errors():
    with bind("127.0.0.1", 0) as taken:
        port = taken.getsockname()[1]
        with pytest.raises(TandemError, match=f"port {port} on 127.0.0.1 is in use"):
            bind("127.0.0.1", port)
    with pytest.raises(TandemError, match="not known"):
        bind("no.such.host.invalid", 0)
    with pytest.raises(TandemError):
        bind("203.0.113.7", 0)
