"""What a client may send, hold and leave unread, on a real loopback socket."""

import asyncio
import contextlib
import json
import socket
from contextlib import asynccontextmanager

import pytest

from cluster.api import bind, connection, generation, serve
from cluster.api.connection import MAX_HEAD_BYTES, MAX_HEADERS, MAX_PIPELINED
from cluster.serving.requests import Delta
from tests.support.fake_service import ROUTED, FakeService, app_over

PATIENCE_S = 10.0
HOST = b"Host: localhost\r\n"
STREAM = json.dumps({"prompt": "hi", "stream": True}).encode()


@asynccontextmanager
async def serving(service=None, grace_s=1, draining=None, **options):
    """The app on a free port; gives the port, and stops it in order at the end."""
    listener, stopping = bind("127.0.0.1", 0), asyncio.Event()
    port = listener.getsockname()[1]
    app = app_over(service or FakeService(), **options)
    server = asyncio.create_task(serve(app, listener, stopping=stopping, draining=draining, grace_s=grace_s))
    await asyncio.sleep(0.05)
    try:
        yield port
    finally:
        stopping.set()
        await asyncio.wait_for(server, PATIENCE_S)


async def said(port, *parts, close=True):
    """Everything that the server answers to these bytes, up to where it closes the connection."""
    reader, writer = await asyncio.open_connection("127.0.0.1", port)
    with contextlib.suppress(ConnectionError):
        for part in parts:
            writer.write(part)
            await writer.drain()
        if close:
            writer.write_eof()
    with contextlib.suppress(ConnectionError):
        return await asyncio.wait_for(reader.read(), PATIENCE_S)
    return b""


async def health(port):
    """The status of a well-behaved request beside the others."""
    answer = await said(port, b"GET /health HTTP/1.1\r\n" + HOST + b"Connection: close\r\n\r\n", close=False)
    return int(answer.split()[1])


def run(scenario):
    return asyncio.run(asyncio.wait_for(scenario(), 4 * PATIENCE_S))


def get(*headers, version=b"HTTP/1.1"):
    return b"GET /health " + version + b"\r\n" + b"".join(header + b"\r\n" for header in headers) + b"\r\n"


ENDLESS = b"x" * 1024
REFUSED = {
    "no host": (get(), 400),
    "two hosts": (get(b"Host: localhost", b"Host: evil.example"), 400),
    "a large header": (get(HOST.strip(), b"X: " + ENDLESS * 100), 431),
    "many small headers": (get(HOST.strip(), *[b"X-%d: y" % number for number in range(MAX_HEADERS + 1)]), 431),
    "many large headers": (get(HOST.strip(), *[b"X-%d: %s" % (number, ENDLESS) for number in range(80)]), 431),
    "a long path": (b"GET /" + b"x" * (MAX_HEAD_BYTES + 1) + b" HTTP/1.1\r\n" + HOST + b"\r\n", 431),
    "no HTTP": (b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03" + ENDLESS, 400),
    "a header of no name": (get(HOST.strip(), b": y"), 400),
    "lengths that contradict": (
        b"POST /v1/completions HTTP/1.1\r\n" + HOST + b"Content-Length: 2\r\nContent-Length: 3\r\n\r\n{}", 400,
    ),
    "a length and chunks": (
        b"POST /v1/completions HTTP/1.1\r\n" + HOST + b"Content-Length: 2\r\nTransfer-Encoding: chunked\r\n\r\n{}", 400,
    ),
    "a length beyond numbers": (
        b"POST /v1/completions HTTP/1.1\r\n" + HOST + b"Content-Length: %d\r\n\r\n{" % (1 << 70), 400,
    ),
}  # fmt: skip


CLOSED = {
    "a line of no version": b"GET /health\r\n",
    "a chunk beyond numbers": (
        b"POST /v1/completions HTTP/1.1\r\n" + HOST + b"Transfer-Encoding: chunked\r\n\r\n" + b"f" * 17 + b"\r\n"
    ),
    "a chunk of no number": (
        b"POST /v1/completions HTTP/1.1\r\n" + HOST + b"Transfer-Encoding: chunked\r\n\r\n-1\r\n{}\r\n0\r\n\r\n"
    ),
}


@pytest.mark.parametrize("what", CLOSED)
def test_what_goes_wrong_in_the_midst_of_a_request_ends_its_connection_alone(what):
    async def scenario():
        async with serving() as port:
            answer = await said(port, CLOSED[what], close=what == "a line of no version")
            assert await health(port) == 200
        return answer

    assert b" 200 " not in run(scenario)[:20]


@pytest.mark.parametrize("what", REFUSED)
def test_what_is_no_proper_request_is_refused_in_json_and_its_connection_closed(what):
    sent, status = REFUSED[what]

    async def scenario():
        async with serving() as port:
            answer = await said(port, sent)
            assert await health(port) == 200
        return answer

    answer = run(scenario)
    head, _, body = answer.partition(b"\r\n\r\n")
    assert int(head.split()[1]) == status
    assert json.loads(body)["error"]["message"]


def test_headers_without_an_end_are_refused_before_they_take_memory():
    async def scenario():
        async with serving() as port:
            answer = await said(port, b"GET /health HTTP/1.1\r\nX: ", *[ENDLESS * 16] * 200)
            assert await health(port) == 200
        return answer

    assert b" 431 " in run(scenario)[:20] or run(scenario) == b""


@pytest.mark.parametrize("sent", [b"", b"GET /hea", b"GET /health HTTP/1.1\r\nHost:"])
def test_silent_connections_are_closed_and_others_served_meanwhile(monkeypatch, sent):
    monkeypatch.setattr(connection, "HEAD_TIMEOUT_S", 0.5)

    async def scenario():
        async with serving() as port:
            silent = [asyncio.create_task(said(port, sent, close=False)) for _ in range(30)]
            assert await health(port) == 200
            return await asyncio.gather(*silent)

    assert set(run(scenario)) == {b""}


def test_connections_beyond_the_limit_are_told_so_and_the_others_stay(monkeypatch):
    monkeypatch.setattr("cluster.api.server.max_connections", lambda: 16)

    async def scenario():
        async with serving() as port:
            open_ones = [await asyncio.open_connection("127.0.0.1", port) for _ in range(14)]
            await asyncio.sleep(0.1)
            refused = await said(port, close=False)
            reader, writer = open_ones[0]
            writer.write(get(HOST.strip()))
            served = await reader.readline()
            for _, writer in open_ones:
                writer.close()
            await asyncio.sleep(0.1)
            return refused, served, await health(port)

    refused, served, later = run(scenario)
    assert b" 503 " in refused[:20]
    assert b" 200 " in served
    assert later == 200


def test_requests_behind_each_other_are_answered_and_too_many_end_the_connection():
    async def scenario():
        async with serving() as port:
            few = await said(port, get(HOST.strip()) * 3 + get(HOST.strip(), b"Connection: close"), close=False)
            await said(port, get(HOST.strip()) * 4000)
            return few, await health(port)

    few, later = run(scenario)
    assert few.count(b"HTTP/1.1 200") == 4
    assert MAX_PIPELINED >= 4
    assert later == 200


@pytest.mark.parametrize(
    ("headers", "status"),
    [
        ({"Host": "evil.example"}, 403),
        ({"Host": "localhost:8420"}, 200),
        ({"Host": "127.0.0.1:8420"}, 200),
        ({"Host": "[::1]:8420"}, 200),
        ({"Host": "localhost", "Origin": "https://evil.example"}, 403),
        ({"Host": "localhost", "Origin": "null"}, 403),
        ({"Host": "localhost:8420", "Origin": "http://localhost:3000"}, 200),
        ({"Host": "localhost", "Sec-Fetch-Site": "cross-site"}, 403),
        ({"Host": "localhost", "Sec-Fetch-Site": "same-origin"}, 200),
    ],
)
def test_pages_and_names_of_elsewhere_are_refused(headers, status):
    async def scenario():
        async with serving() as port:
            lines = [f"{name}: {value}".encode() for name, value in headers.items()]
            return await said(port, get(*lines, b"Connection: close"), close=False)

    assert int(run(scenario).split()[1]) == status


def test_with_a_key_any_name_will_do_but_no_foreign_page():
    async def scenario():
        async with serving(api_key="k") as port:
            named = await said(port, get(b"Host: mac.example", b"Connection: close"), close=False)
            page = await said(port, get(b"Host: mac.example", b"Origin: https://evil.example", b"Connection: close"))
            return named, page

    named, page = run(scenario)
    assert (int(named.split()[1]), int(page.split()[1])) == (200, 403)


class Endless(FakeService):
    """Streams as fast as it is read."""

    async def generate(self, request):
        try:
            yield ROUTED
            while True:
                yield Delta(text="y" * 1000, token_ids=(1,))
                await asyncio.sleep(0)
        finally:
            self.closed.set()


def test_answer_that_nobody_reads_ends_after_a_while_and_its_connection_too(monkeypatch):
    monkeypatch.setattr(generation, "STALL_S", 0.5)

    async def scenario():
        service = Endless()
        async with serving(service) as port:
            reader, writer = await asyncio.open_connection("127.0.0.1", port, limit=1024)
            head = b"POST /v1/completions HTTP/1.1\r\n" + HOST + b"Content-Length: %d\r\n\r\n" % len(STREAM)
            writer.write(head + STREAM)
            assert b" 200 " in await reader.readline()
            await service.closed.wait()  # once the socket's buffers are full and nobody reads
            with pytest.raises((ConnectionError, asyncio.IncompleteReadError)):
                await reader.readexactly(1 << 30)
            writer.close()
            assert await health(port) == 200

    run(scenario)


class Trickle(FakeService):
    """Streams slowly, each answer as much as the system's buffers take of it."""

    def __init__(self):
        super().__init__()
        self.num_running = 0

    async def generate(self, request):
        self.num_running += 1
        try:
            yield ROUTED
            for _ in range(20):
                yield Delta(text="y" * 1000, token_ids=(1,))
            while True:
                yield Delta(text="z", token_ids=(1,))
                await asyncio.sleep(0.02)
        finally:
            self.num_running -= 1


def connected(port):
    """A connection whose end here takes little by itself."""
    there = socket.socket()
    there.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 2048)
    there.connect(("127.0.0.1", port))
    return there


def test_answer_that_the_system_alone_took_is_left_when_running_ones_are_waited_for():
    async def scenario():
        service, draining = Trickle(), asyncio.Event()
        head = b"POST /v1/completions HTTP/1.1\r\n" + HOST + b"Content-Length: %d\r\n\r\n" % len(STREAM)
        async with serving(service, draining=draining) as port:
            unread = connected(port)
            unread.sendall(head + STREAM)
            reader, writer = await asyncio.open_connection("127.0.0.1", port)
            writer.write(head + STREAM)
            assert b" 200 " in await reader.readline()
            while service.num_running < 2:  # noqa: ASYNC110 - a service tells nobody
                await asyncio.sleep(0.01)
            draining.set()
            while service.num_running > 1:
                await reader.readline()
            for _ in range(300):
                assert await reader.readline()  # who reads goes on
            assert service.num_running == 1
            unread.close()
            writer.close()

    run(scenario)


def test_stop_does_not_wait_for_who_does_not_read(monkeypatch):
    monkeypatch.setattr(connection, "LAST_READ_S", 0.1)

    async def scenario():
        service = Endless()
        async with serving(service, grace_s=3600) as port:
            reader, writer = await asyncio.open_connection("127.0.0.1", port, limit=1024)
            head = b"POST /v1/completions HTTP/1.1\r\n" + HOST + b"Content-Length: %d\r\n\r\n" % len(STREAM)
            writer.write(head + STREAM)
            await reader.readline()
            _, silent = await asyncio.open_connection("127.0.0.1", port)
            await asyncio.sleep(0.5)
        await asyncio.wait_for(service.closed.wait(), PATIENCE_S)
        for to_close in (writer, silent):
            to_close.close()

    run(scenario)
