"""Control links: to each peer one that connects again by itself and keeps unsent messages meanwhile."""

import contextlib
from collections.abc import Callable, Sequence

import zmq

from protocol.codec import encode
from protocol.messages import Message
from protocol.transport.addressing import endpoint_for
from protocol.transport.keys import KeyPair
from protocol.transport.monitoring import watch_socket
from protocol.transport.securing import secure
from protocol.values import Buffer, Peer


class ZmqOutbox:
    """PUSH sockets to peers, made at the first message to each. Belongs to one thread. keys: by which peers know who sends."""

    def __init__(self, keys: KeyPair | None = None, *, linger_ms: int = 500) -> None:
        self._keys = keys or KeyPair.generate()
        self._linger_ms = linger_ms
        self._sockets: dict[Peer, zmq.Socket[bytes]] = {}

    def __repr__(self) -> str:
        return f"ZmqOutbox(to {len(self._sockets)} peers)"

    def _connect(self, peer: Peer, lost: Callable[[], None] | None) -> "zmq.Socket[bytes]":
        socket: zmq.Socket[bytes] = zmq.Context.instance().socket(zmq.PUSH)
        socket.setsockopt(zmq.LINGER, self._linger_ms)
        socket.setsockopt(zmq.SNDHWM, 0)
        endpoint = endpoint_for(peer)
        secure(socket, endpoint, peer.public_key, self._keys)
        if lost is not None:
            watch_socket(socket, zmq.EVENT_DISCONNECTED, lambda _: lost())
        socket.connect(endpoint)
        return socket

    def _link(self, peer: Peer) -> "zmq.Socket[bytes]":
        if peer not in self._sockets:
            self._sockets[peer] = self._connect(peer, None)
        return self._sockets[peer]

    def send(self, peer: Peer, epoch: int, message: Message, buffers: Sequence[Buffer] = ()) -> None:
        """Queue a message; never blocks. Order is kept per peer. Buffers must not change afterwards."""
        with contextlib.suppress(zmq.Again):  # ZeroMQ gave the link up for good, as `watch` tells
            self._link(peer).send_multipart(encode(epoch, message, buffers), zmq.NOBLOCK, copy=False)

    def watch(self, peer: Peer, lost: Callable[[], None]) -> None:
        """Connect to `peer`; call `lost` once, on a thread of its own, when that connection closes, however soon."""
        self.forget(peer)
        self._sockets[peer] = self._connect(peer, lost)

    def forget(self, peer: Peer) -> None:
        """Close the link to a peer; unsent messages to it are dropped."""
        socket = self._sockets.pop(peer, None)
        if socket is not None:
            socket.disable_monitor()
            socket.close(linger=0)

    def close(self) -> None:
        """Close every link; unsent messages get half a second."""
        for socket in self._sockets.values():
            socket.disable_monitor()
            socket.close()
        self._sockets.clear()
