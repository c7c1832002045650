"""Mailboxes over ZeroMQ with CURVE: the only module that imports zmq.

Every process has one inbox, a bound PULL socket that a thread of its own reads; it sends through one PUSH socket per
peer. Links are one-way, so each side's socket monitor tells at once when a peer is gone. Whoever knows an inbox's
public key can send to it, so keys travel only inside the join token and over links that are already encrypted.

An `Outbox` belongs to the thread that sends with it; ZeroMQ sockets must not be shared between threads.
"""

import contextlib
import logging
import threading
from collections.abc import Callable, Sequence
from typing import Protocol

import zmq
from zmq.utils import monitor

from protocol.codec import Envelope, decode, encode
from protocol.errors import WireError
from protocol.messages import Message
from protocol.values import Buffer, Peer

log = logging.getLogger(__name__)

_READ_TIMEOUT_MS = 200
_MAX_FRAME_BYTES = 2 << 30
Deliver = Callable[[Envelope], object]


class Sender(Protocol):
    """What sends messages to peers; `ZmqOutbox` and, in tests, `InProcessNetwork`'s outboxes."""

    def send(self, peer: Peer, epoch: int, message: Message, buffers: Sequence[Buffer] = ()) -> None: ...


class KeyPair:
    """A CURVE key pair as Z85 bytes."""

    def __init__(self) -> None:
        self.public, self.secret = zmq.curve_keypair()

    def __repr__(self) -> str:
        return f"KeyPair({self.public.decode()})"


class ZmqInbox:
    """A bound, encrypted PULL socket; `deliver` is called on the inbox's own thread for each message that decodes."""

    def __init__(self, deliver: Deliver, *, host: str = "127.0.0.1"):
        self._deliver = deliver
        self._keys = KeyPair()
        self._socket: zmq.Socket[bytes] = zmq.Context.instance().socket(zmq.PULL)
        self._socket.setsockopt(zmq.LINGER, 0)
        self._socket.setsockopt(zmq.RCVHWM, 0)
        self._socket.setsockopt(zmq.RCVTIMEO, _READ_TIMEOUT_MS)
        self._socket.setsockopt(zmq.MAXMSGSIZE, _MAX_FRAME_BYTES)
        self._socket.setsockopt(zmq.CURVE_SERVER, 1)
        self._socket.setsockopt(zmq.CURVE_PUBLICKEY, self._keys.public)
        self._socket.setsockopt(zmq.CURVE_SECRETKEY, self._keys.secret)
        port: int = self._socket.bind_to_random_port(f"tcp://{host}")
        self.peer = Peer(endpoint=f"tcp://{host}:{port}", public_key=self._keys.public.decode())
        self.num_dropped = 0
        self._closing = threading.Event()
        self._thread = threading.Thread(target=self._read, name="inbox", daemon=True)

    def start(self) -> None:
        """Begin to deliver messages."""
        self._thread.start()

    def _read(self) -> None:
        while not self._closing.is_set():
            with contextlib.suppress(zmq.Again):
                self._receive()
        self._socket.close()

    def _receive(self) -> None:
        frames = self._socket.recv_multipart(copy=False)  # raises Again when none came in time
        try:
            envelope = decode([frame.buffer for frame in frames])
        except WireError as error:
            self.num_dropped += 1
            log.warning("dropped %s", error)
            return
        self._deliver(envelope)

    def close(self) -> None:
        """Stop reading; returns when the socket is closed."""
        self._closing.set()
        if self._thread.ident is not None:
            self._thread.join(timeout=5)

    def __repr__(self) -> str:
        return f"ZmqInbox({self.peer.endpoint})"


class ZmqOutbox:
    """PUSH sockets to peers, made at the first message to each. Belongs to one thread."""

    def __init__(self, *, linger_ms: int = 500) -> None:
        self._keys = KeyPair()
        self._linger_ms = linger_ms
        self._sockets: dict[str, zmq.Socket[bytes]] = {}

    def _connect(self, peer: Peer) -> "zmq.Socket[bytes]":
        socket: zmq.Socket[bytes] = zmq.Context.instance().socket(zmq.PUSH)
        socket.setsockopt(zmq.LINGER, self._linger_ms)
        socket.setsockopt(zmq.SNDHWM, 0)
        socket.setsockopt(zmq.CURVE_SERVERKEY, peer.public_key.encode())
        socket.setsockopt(zmq.CURVE_PUBLICKEY, self._keys.public)
        socket.setsockopt(zmq.CURVE_SECRETKEY, self._keys.secret)
        socket.connect(peer.endpoint)
        return socket

    def _link(self, peer: Peer) -> "zmq.Socket[bytes]":
        if peer.endpoint not in self._sockets:
            self._sockets[peer.endpoint] = self._connect(peer)
        return self._sockets[peer.endpoint]

    def send(self, peer: Peer, epoch: int, message: Message, buffers: Sequence[Buffer] = ()) -> None:
        """Queue a message; never blocks. Order is kept per peer. Buffers must not change afterwards."""
        self._link(peer).send_multipart(encode(epoch, message, buffers), copy=False)

    def watch(self, peer: Peer, lost: Callable[[], None]) -> None:
        """Call `lost` once, on a thread of its own, when the connection to `peer` closes."""
        events = self._link(peer).get_monitor_socket(zmq.EVENT_DISCONNECTED | zmq.EVENT_MONITOR_STOPPED)
        threading.Thread(target=_await_disconnect, args=(events, lost), name="link-monitor", daemon=True).start()

    def forget(self, peer: Peer) -> None:
        """Close the link to a peer; unsent messages to it are dropped."""
        socket = self._sockets.pop(peer.endpoint, None)
        if socket is not None:
            socket.disable_monitor()
            socket.close(linger=0)

    def close(self) -> None:
        """Close every link; unsent messages get half a second."""
        for socket in self._sockets.values():
            socket.disable_monitor()
            socket.close()
        self._sockets.clear()


def _await_disconnect(events: "zmq.Socket[bytes]", lost: Callable[[], None]) -> None:
    """Reads until the monitor is switched off: a monitor whose reader is gone would block whoever switches it off."""
    told = False
    try:
        while (event := monitor.recv_monitor_message(events)["event"]) != zmq.EVENT_MONITOR_STOPPED:
            if event == zmq.EVENT_DISCONNECTED and not told:
                told = True
                lost()
    except zmq.ZMQError:
        return
    finally:
        events.close(linger=0)


class InProcessNetwork:
    """Inboxes without sockets, for tests: messages are encoded, decoded and delivered by `run`, in order."""

    def __init__(self) -> None:
        self._inboxes: dict[str, Deliver] = {}
        self._queue: list[tuple[Peer, list[Buffer]]] = []

    def inbox(self, name: str, deliver: Deliver) -> Peer:
        """Register an inbox and return where it receives."""
        self._inboxes[name] = deliver
        return Peer(endpoint=name, public_key="")

    def send(self, peer: Peer, epoch: int, message: Message, buffers: Sequence[Buffer] = ()) -> None:
        """Queue a message for `peer`."""
        self._queue.append((peer, [bytes(frame) for frame in encode(epoch, message, buffers)]))

    def run(self, *, max_messages: int = 100_000) -> int:
        """Deliver messages until none is left; returns how many. Raises AssertionError beyond `max_messages`."""
        count = 0
        while self._queue:
            peer, frames = self._queue.pop(0)
            if peer.endpoint in self._inboxes:
                self._inboxes[peer.endpoint](decode(frames))
            count += 1
            assert count <= max_messages, "messages without end"
        return count
