"""The two ends of a hop: a payload goes to the other process and comes back, by three ways of sending it.

Each way is a `Link`: `send` and `receive` in the process that made it. An echo process answers each message with the same
payload. A hop is half of a round trip; both processes do the same work in it.
"""

import queue
import socket
import struct
from typing import Any, Protocol

import mlx.core as mx
import msgspec
import numpy as np
import zmq  # to measure what encryption costs: the transport has no way without it

from protocol.codec import Envelope
from protocol.messages import Row, Step
from protocol.transport import LOOPBACK, ZmqDataLinks, ZmqInbox
from protocol.transport.addressing import endpoint_of
from protocol.values import Peer, Route
from workers.model import payload

_LENGTH = struct.Struct(">Q")
WAYS = ("tandem", "zeromq", "tcp")
BETWEEN_HOSTS = "tandem between hosts"
_TIMEOUT_S = 30


class Address(msgspec.Struct, frozen=True, kw_only=True):
    """Where the other process receives, and what it is to do: `way`, one of WAYS or BETWEEN_HOSTS, the last at address `at`."""

    way: str
    peer: Peer
    at: str = LOOPBACK


class Link(Protocol):
    """One end. An item is an array (1, tokens, width), for raw TCP its bytes."""

    peer: Peer

    def connect(self, peer: Peer) -> None: ...

    def send(self, item: Any) -> None: ...

    def receive(self) -> Any: ...


class TandemLink:
    """As workers do it: the transport's encrypted sockets, its reading thread, and the payload's encoding. at: where it listens."""

    def __init__(self, at: str = LOOPBACK) -> None:
        self._arrivals: queue.SimpleQueue[Envelope] = queue.SimpleQueue()
        self._inbox = ZmqInbox(self._arrivals.put, listen=(at,))
        self._links = ZmqDataLinks(_fail)
        peer = self._inbox.peer
        port = int(peer.endpoint.rpartition(":")[2])
        self.peer = Peer(endpoint=endpoint_of(at, port), public_key=peer.public_key)
        self._inbox.start()

    def connect(self, peer: Peer) -> None:
        self._links.renew(1, 0, {"other": peer})

    def send(self, array: mx.array) -> None:
        spec, buffers = payload.encode(array)
        tokens = np.zeros((1, array.shape[1]), np.int32)
        step = Step(
            number=1,
            route=Route(("worker-0", "worker-1")),
            slot=None,
            cached=True,
            rows=(Row(1, 0, num_sampled=0),),
            num_tokens=array.shape[1],
            payload=spec,
        )
        self._links.send("other", step, [tokens.tobytes(), *buffers])

    def receive(self) -> mx.array:
        envelope = self._arrivals.get(timeout=_TIMEOUT_S)
        assert isinstance(envelope.message, Step)
        return _evaluated(payload.decode(envelope.message.payload, envelope.buffers[1:]))


class ZeroMqLink:
    """The same library without encryption, header and reading thread."""

    def __init__(self) -> None:
        context: zmq.Context[zmq.Socket[bytes]] = zmq.Context.instance()
        self._inbox, self._outbox = context.socket(zmq.PULL), context.socket(zmq.PUSH)
        self._inbox.setsockopt(zmq.RCVTIMEO, _TIMEOUT_S * 1000)
        port = self._inbox.bind_to_random_port("tcp://127.0.0.1")
        self.peer = Peer(endpoint=f"tcp://127.0.0.1:{port}", public_key="")

    def connect(self, peer: Peer) -> None:
        self._outbox.connect(peer.endpoint)

    def send(self, array: mx.array) -> None:
        spec, buffers = payload.encode(array)
        self._outbox.send_multipart([msgspec.msgpack.encode(spec), *buffers], copy=False)

    def receive(self) -> mx.array:
        spec, *buffers = [frame.buffer for frame in self._inbox.recv_multipart(copy=False)]
        return _evaluated(payload.decode(msgspec.msgpack.decode(spec), buffers))


class TcpLink:
    """One TCP connection and the raw bytes, with their length in front."""

    def __init__(self) -> None:
        self._listener = socket.create_server(("127.0.0.1", 0))
        self.peer = Peer(endpoint=f"{self._listener.getsockname()[1]}", public_key="")
        self._out: socket.socket | None = None
        self._in: socket.socket | None = None
        self._buffer = bytearray()

    def connect(self, peer: Peer) -> None:
        self._out = socket.create_connection(("127.0.0.1", int(peer.endpoint)))
        self._out.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)

    def send(self, item: Any) -> None:
        assert self._out is not None
        data = memoryview(item).cast("B")
        self._out.sendall(_LENGTH.pack(len(data)))
        self._out.sendall(data)

    def receive(self) -> memoryview:
        if self._in is None:
            self._in, _ = self._listener.accept()
            self._in.settimeout(_TIMEOUT_S)
        (size,) = _LENGTH.unpack(self._read(self._in, _LENGTH.size))
        return self._read(self._in, size)

    def _read(self, connection: socket.socket, size: int) -> memoryview:
        if len(self._buffer) < size:
            self._buffer = bytearray(size)
        view = memoryview(self._buffer)[:size]
        got = 0
        while got < size:
            count = connection.recv_into(view[got:])
            if not count:
                raise EOFError("the other end is gone")
            got += count
        return view


def make_link(way: str, at: str) -> Link:
    """An end for one of WAYS or BETWEEN_HOSTS, which listens `at` an address of this host."""
    if way == BETWEEN_HOSTS:
        return TandemLink(at)
    ends: dict[str, type[Any]] = {"tandem": TandemLink, "zeromq": ZeroMqLink, "tcp": TcpLink}
    link: Link = ends[way]()
    return link


def _fail(worker: str, why: str) -> None:
    raise ConnectionError(f"the link to the {worker} process is lost: {why}")


def _evaluated(array: mx.array) -> mx.array:
    mx.eval(array)
    return array
