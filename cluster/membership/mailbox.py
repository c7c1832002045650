"""How the coordinator hears its workers and speaks to them: one inbox, links that last, and links that end with an epoch.

Beats, admissions and shutdowns go over links that reconnect, since each is said again or makes no difference. What belongs
to a plan goes over numbered links that live as long as its epoch, so that nothing of it can be lost without notice.
"""

import asyncio
from collections.abc import Callable, Mapping, Sequence
from typing import Protocol

from protocol.codec import Envelope
from protocol.messages import Message
from protocol.transport import Arrival, KeyPair, LinkNumbers, ZmqDataLinks, ZmqInbox, ZmqOutbox
from protocol.values import COORDINATOR, Buffer, Peer

Closed = Callable[[str, str], None]


class Mailbox(Protocol):
    """See the module. Everything happens on one asyncio loop."""

    @property
    def peer(self) -> Peer: ...

    @property
    def epoch(self) -> int: ...

    def open(self, deliver: Callable[[Envelope], None], closed: Closed) -> None:
        """Begin to hear. closed: told of a worker whose connection or link broke, by name and why."""

    def know(self, worker: str, peer: Peer) -> None:
        """Where a worker is reached from now on; its connection is watched."""

    def forget(self, worker: str) -> None:
        """Nothing more is sent to a worker."""

    def tell(self, worker: str, message: Message) -> None:
        """Say something that belongs to no plan."""

    def answer(self, peer: Peer, message: Message) -> None:
        """Say something to a stranger, once."""

    def begin_epoch(self, workers: Sequence[str]) -> int:
        """A new epoch with new links to the workers of a plan, in this order; those of the epoch before end."""

    def send(self, worker: str, message: Message, buffers: Sequence[Buffer] = ()) -> None:
        """Say something of the plan."""

    def accepts(self, envelope: Envelope) -> bool:
        """Whether this is of the plan and nothing before it is missing."""

    def close(self) -> None:
        """End every link."""


class ZmqMailbox:
    """A Mailbox over ZeroMQ.

    keys, port: those of an earlier life; port None takes a free one. next_epoch: a number higher than all before.
    """

    def __init__(self, keys: KeyPair, port: int | None, next_epoch: Callable[[], int]):
        self._next_epoch = next_epoch
        self._loop = asyncio.get_running_loop()
        self._deliver: Callable[[Envelope], None] | None = None
        self._closed: Closed | None = None
        self._inbox = ZmqInbox(self._received, port=port, keys=keys)
        self._outbox = ZmqOutbox()
        self._links = ZmqDataLinks(self._lost)
        self._numbers = LinkNumbers()
        self._peers: dict[str, Peer] = {}
        self._planned: tuple[str, ...] = ()
        self.epoch = 0

    def __repr__(self) -> str:
        return f"ZmqMailbox({self._inbox.peer.endpoint}, epoch {self.epoch})"

    @property
    def peer(self) -> Peer:
        return self._inbox.peer

    def open(self, deliver: Callable[[Envelope], None], closed: Closed) -> None:
        """See Mailbox."""
        self._deliver, self._closed = deliver, closed
        self._inbox.start()

    def _received(self, envelope: Envelope) -> None:
        """On the inbox's thread."""
        assert self._deliver is not None
        self._loop.call_soon_threadsafe(self._deliver, envelope)

    def _lost(self, worker: str, why: str) -> None:
        """On whatever thread noticed it."""
        assert self._closed is not None
        self._loop.call_soon_threadsafe(self._closed, worker, why)

    def know(self, worker: str, peer: Peer) -> None:
        """See Mailbox."""
        self.forget(worker)
        self._peers[worker] = peer
        self._outbox.watch(peer, lambda: self._lost(worker, "the connection closed"))

    def forget(self, worker: str) -> None:
        """See Mailbox."""
        peer = self._peers.pop(worker, None)
        if peer is not None:
            self._outbox.forget(peer)

    def tell(self, worker: str, message: Message) -> None:
        """See Mailbox."""
        if worker in self._peers:
            self._outbox.send(self._peers[worker], self.epoch, message)

    def answer(self, peer: Peer, message: Message) -> None:
        """See Mailbox."""
        once = ZmqOutbox()
        once.send(peer, self.epoch, message)
        once.close()

    def begin_epoch(self, workers: Sequence[str]) -> int:
        """See Mailbox."""
        self.epoch = self._next_epoch()
        self._planned = tuple(workers)
        self._numbers.renew(self.epoch)
        peers: Mapping[str, Peer] = {worker: self._peers[worker] for worker in workers if worker in self._peers}
        self._links.renew(self.epoch, COORDINATOR, peers)
        return self.epoch

    def send(self, worker: str, message: Message, buffers: Sequence[Buffer] = ()) -> None:
        """See Mailbox."""
        if worker in self._peers:
            self._links.send(worker, message, buffers)

    def accepts(self, envelope: Envelope) -> bool:
        """See Mailbox."""
        if envelope.epoch != self.epoch:
            return False
        arrival = self._numbers.accept(envelope)
        if arrival is Arrival.GAP and self._closed is not None:
            self._closed(self._planned[envelope.sender], "something it sent is missing")
        return arrival is Arrival.NEXT

    def close(self) -> None:
        """See Mailbox."""
        self._links.close()
        self._outbox.close()
        self._inbox.close()
