"""Data links over sockets: one to each worker of a plan, gone with its epoch or with the first fault, never mended.

ZeroMQ would connect again and go on, with a hole where messages were on their way. So a socket is never used again after
its connection ended (RECONNECT_IVL -1), and the worker that sent over it is told, within three seconds whatever happened:
at once when a connection closes or is refused, by heartbeats when it falls silent, which TCP alone does not notice.
"""

import threading
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from typing import Protocol

import zmq

from protocol.codec import MAX_NUMBER, encode
from protocol.messages import Message
from protocol.transport.addressing import endpoint_for
from protocol.transport.keys import KeyPair
from protocol.transport.monitoring import watch_socket
from protocol.transport.securing import secure
from protocol.transport.sending import Lost
from protocol.values import Buffer, Peer

_HEARTBEAT_MS = 500
_SILENCE_MS = 2000
_UNACKNOWLEDGED_MS = 3000
_ENDS: dict[int, str] = {
    zmq.EVENT_DISCONNECTED: "the connection closed or fell silent",
    zmq.EVENT_CLOSED: "no connection could be made",
    zmq.EVENT_HANDSHAKE_FAILED_NO_DETAIL: "the handshake was refused",
    zmq.EVENT_HANDSHAKE_FAILED_PROTOCOL: "the handshake failed",
    zmq.EVENT_HANDSHAKE_FAILED_AUTH: "the handshake was not allowed",
}
# No HEARTBEAT_TTL: the receiver would count a frame that takes longer than it to arrive as silence, and close.
_OPTIONS = {
    zmq.LINGER: 0,
    zmq.SNDHWM: 0,
    zmq.RECONNECT_IVL: -1,
    zmq.CONNECT_TIMEOUT: _SILENCE_MS,
    zmq.HANDSHAKE_IVL: _SILENCE_MS,
    zmq.HEARTBEAT_IVL: _HEARTBEAT_MS,
    zmq.HEARTBEAT_TIMEOUT: _SILENCE_MS,
    zmq.TCP_MAXRT: _UNACKNOWLEDGED_MS,  # no effect on macOS
    zmq.TCP_KEEPALIVE: 1,
}


class Ways(Protocol):
    """Where to send to each peer of an epoch."""

    def renew(self, peers: Mapping[str, Peer]) -> None:
        """A new epoch with these peers, by worker."""

    def choose(self, peer: Peer) -> str | None:
        """The endpoint of a peer for this epoch; None where none may be used."""

    def lost(self, endpoint: str) -> None:
        """A link over it broke. On a thread of the transport's own."""


class _Nearest:
    """By networks alone, with nothing learnt."""

    choose = staticmethod(endpoint_for)

    def renew(self, _: Mapping[str, Peer]) -> None:
        return

    def lost(self, _: str) -> None:
        return


class ZmqDataLinks:
    """The `DataLinks` of one worker over encrypted PUSH sockets, made at the first message to each. ways: says where to send."""

    def __init__(self, lost: Lost, keys: KeyPair | None = None, ways: Ways | None = None):
        self._lost = lost
        self._ways = ways or _Nearest()
        self._keys = keys or KeyPair.generate()
        self._epoch = 0
        self._sender = 0
        self._peers: dict[str, Peer] = {}
        self._links: dict[str, _DataLink] = {}
        self._sent: Counter[str] = Counter()

    def __repr__(self) -> str:
        return f"ZmqDataLinks(epoch {self._epoch}, {len(self._links)} of {len(self._peers)} in use)"

    @property
    def epoch(self) -> int:
        """The epoch of the links; while a loss is reported, the epoch of the link that was lost."""
        return self._epoch

    @property
    def sent_bytes(self) -> Mapping[str, int]:
        """See `DataLinks`."""
        return self._sent

    def count(self, worker: str, num_bytes: int) -> None:
        """So much went to a worker over a connection of its own; on the thread that sends."""
        self._sent[worker] += num_bytes

    def renew(self, epoch: int, sender: int, peers: Mapping[str, Peer]) -> None:
        """End the links of the epoch before; see `DataLinks`."""
        self.close()
        self._epoch, self._sender, self._peers = epoch, sender, dict(peers)
        self._ways.renew(peers)

    def send(self, worker: str, message: Message, buffers: Sequence[Buffer] = ()) -> None:
        """Queue a message; see `DataLinks`."""
        link = self._links.get(worker)
        if link is None:
            peer = self._peers[worker]
            endpoint = self._ways.choose(peer)
            link = _DataLink(endpoint, peer, self._keys, lambda why: self._link_lost(worker, endpoint, why))
            self._links[worker] = link
        self._sent[worker] += link.send(self._epoch, self._sender, message, buffers)

    def _link_lost(self, worker: str, endpoint: str | None, why: str) -> None:
        if endpoint is not None:
            self._ways.lost(endpoint)
        self._lost(worker, why)

    def close(self) -> None:
        """End every link; returns at once, and no loss is reported afterwards."""
        for link in self._links.values():
            link.close()
        self._links.clear()


class _DataLink:
    """One socket and the numbers of what it carries. Whether it is whole is decided under a lock, with the report of its
    loss: after `close` no report begins, and none is still under way.
    """

    def __init__(self, endpoint: str | None, peer: Peer, keys: KeyPair, lost: Callable[[str], object]):
        self._lost = lost
        self._whole = True
        self._lock = threading.Lock()
        self._number = 0
        self._socket: zmq.Socket[bytes] = zmq.Context.instance().socket(zmq.PUSH)
        if endpoint is None:
            self._break("links.exclude here leaves no address of it")
            return
        try:
            self._connect(endpoint, peer, keys)
        except zmq.ZMQError as error:
            self._break(f"{endpoint} cannot be used: {zmq.strerror(error.errno or 0)}")

    def __repr__(self) -> str:
        return f"_DataLink({'whole' if self._whole else 'lost'}, {self._number} sent)"

    def _connect(self, endpoint: str, peer: Peer, keys: KeyPair) -> None:
        for option, value in _OPTIONS.items():
            self._socket.setsockopt(option, value)
        secure(self._socket, endpoint, peer.public_key, keys)
        watch_socket(self._socket, sum(_ENDS), lambda event: self._break(_ENDS[event]))
        self._socket.connect(endpoint)

    def send(self, epoch: int, sender: int, message: Message, buffers: Sequence[Buffer]) -> int:
        """How many bytes it handed on."""
        if not self._whole:
            return 0
        if self._number == MAX_NUMBER:
            self._break("its numbers are used up")
            return 0
        self._number += 1
        frames = encode(epoch, message, buffers, sender=sender, number=self._number)
        try:
            self._socket.send_multipart(frames, zmq.NOBLOCK, copy=False)
        except zmq.Again:
            self._break("the connection is gone")
            return 0
        return sum(map(len, frames))

    def _break(self, why: str) -> None:
        with self._lock:
            if self._whole:
                self._whole = False
                self._lost(why)

    def close(self) -> None:
        with self._lock:
            self._whole = False
        self._socket.disable_monitor()
        self._socket.close(linger=0)
