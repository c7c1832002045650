"""How the coordinator hears its workers and speaks to them: a door, an inbox, links that last, and links that end with an epoch.

Strangers come to the door, where they can ask to be admitted and nothing else. The inbox takes connections of members alone,
whom it knows by their keys.
Beats, admissions and shutdowns go over links that reconnect, since each is said again or makes no difference. What belongs
to a plan goes over numbered links that live as long as its epoch, so that nothing of it can be lost without notice.
"""

import asyncio
from collections.abc import Callable, Sequence
from typing import Protocol

from cluster.membership.checks import can_be_reached, check_member, check_stranger
from cluster.membership.plan_links import PlanLinks
from protocol.codec import Envelope
from protocol.errors import WireError
from protocol.messages import Message
from protocol.transport import FOR_STRANGERS, LOOPBACK, KeyPair, ZmqDataLinks, ZmqInbox, ZmqOutbox
from protocol.transport.addressing import seen_from
from protocol.values import Buffer, Peer

Closed = Callable[[str, str], None]

# Each answer to a stranger is a connection, to wherever it said; who is not answered asks again.
_MOST_ANSWERS, _WITHIN_S = 8, 1.0
_MOST_ORIGINS = 1024


class Mailbox(Protocol):
    """See the module. Everything happens on one asyncio loop."""

    @property
    def door(self) -> Peer:
        """Where strangers ask to be admitted."""

    @property
    def inbox(self) -> Peer:
        """Where members are heard."""

    @property
    def epoch(self) -> int: ...

    def open(self, deliver: Callable[[Envelope], None], closed: Closed) -> None:
        """Begin to hear. closed: told of a worker whose connection or link broke, by name and why."""

    def know(self, worker: str, peer: Peer) -> None:
        """Where a worker is reached from now on, and by whose key it is known; its connection is watched."""

    def forget(self, worker: str) -> None:
        """Nothing more is sent to a worker."""

    def tell(self, worker: str, message: Message) -> None:
        """Say something that belongs to no plan."""

    def answer(self, peer: Peer, message: Message) -> None:
        """Say something to a stranger, once; nothing where many were answered a moment ago."""

    def begin_epoch(self, workers: Sequence[str]) -> int:
        """A new epoch with new links to the workers of a plan, in this order; those of the epoch before end."""

    def send(self, worker: str, message: Message, buffers: Sequence[Buffer] = ()) -> None:
        """Say something of the plan."""

    def accepts(self, envelope: Envelope) -> bool:
        """Whether this is of the plan and nothing before it is missing."""

    def close(self) -> None:
        """End every link."""


class _Answers:
    """What strangers are told: each time a connection of its own, which lasts a moment."""

    def __init__(self, keys: KeyPair):
        self._keys = keys
        self._times: list[float] = []

    def __repr__(self) -> str:
        return f"_Answers({len(self._times)} lately)"

    def send(self, peer: Peer, epoch: int, message: Message, now: float) -> None:
        self._times = [at for at in self._times if now - at < _WITHIN_S]
        if len(self._times) >= _MOST_ANSWERS:
            return
        self._times.append(now)
        once = ZmqOutbox(self._keys)
        once.send(peer, epoch, message)
        once.close()


class ZmqMailbox:
    """A Mailbox over ZeroMQ.

    keys, port: those of an earlier life, port that of the door; None takes a free one. next_epoch: a number higher than all
    before. listen: as of `ZmqInbox`.
    """

    def __init__(
        self, keys: KeyPair, port: int | None, next_epoch: Callable[[], int], listen: Sequence[str] = (LOOPBACK,)
    ):
        self._loop = asyncio.get_running_loop()
        self._deliver: Callable[[Envelope], None] | None = None
        self._closed: Closed | None = None
        self._door = ZmqInbox(self._asked, listen=listen, port=port, keys=keys, limits=FOR_STRANGERS)
        self._inbox = ZmqInbox(self._received, listen=listen, keys=keys, admits=lambda key: key in self._names)
        self._outbox = ZmqOutbox(keys)
        self._answers = _Answers(keys)
        self._plan = PlanLinks(ZmqDataLinks(self._lost, keys), next_epoch, self._gap)
        self._origins: dict[str, str] = {}  # from which address a key's last Join came
        self._peers: dict[str, Peer] = {}
        self._names: dict[str, str] = {}

    def __repr__(self) -> str:
        return f"ZmqMailbox({self._door.peer.endpoint}, epoch {self.epoch})"

    @property
    def door(self) -> Peer:
        """See Mailbox."""
        return self._door.peer

    @property
    def inbox(self) -> Peer:
        """See Mailbox."""
        return self._inbox.peer

    @property
    def epoch(self) -> int:
        """See Mailbox."""
        return self._plan.epoch

    def open(self, deliver: Callable[[Envelope], None], closed: Closed) -> None:
        """See Mailbox."""
        self._deliver, self._closed = deliver, closed
        self._inbox.start()
        self._door.start()

    def _asked(self, envelope: Envelope) -> None:
        """On the door's thread."""
        join = check_stranger(envelope)
        if not (can_be_reached(join.peer) and can_be_reached(join.data)):
            raise WireError("a Join that cannot be answered")
        self._origins.pop(envelope.key, None)
        self._origins[envelope.key] = envelope.origin
        if len(self._origins) > _MOST_ORIGINS:
            self._origins.pop(next(iter(self._origins)))
        self._hand_in(envelope)

    def _received(self, envelope: Envelope) -> None:
        """On the inbox's thread."""
        check_member(envelope, self._names.get(envelope.key, ""))
        self._hand_in(envelope)

    def _hand_in(self, envelope: Envelope) -> None:
        assert self._deliver is not None
        self._loop.call_soon_threadsafe(self._deliver, envelope)

    def _lost(self, worker: str, why: str) -> None:
        """On whatever thread noticed it."""
        assert self._closed is not None
        self._loop.call_soon_threadsafe(self._closed, worker, why)

    def know(self, worker: str, peer: Peer) -> None:
        """See Mailbox."""
        self.forget(worker)
        peer = self._as_it_came(peer)
        self._peers[worker] = peer
        self._names[peer.public_key] = worker
        self._outbox.watch(peer, lambda: self._lost(worker, "the connection closed"))

    def _as_it_came(self, peer: Peer) -> Peer:
        """A peer of another host at the address from which it asked: what came from there can be answered there."""
        return seen_from(peer, self._origins.get(peer.public_key, ""))

    def forget(self, worker: str) -> None:
        """See Mailbox."""
        peer = self._peers.pop(worker, None)
        if peer is not None:
            self._names.pop(peer.public_key, None)
            self._outbox.forget(peer)

    def tell(self, worker: str, message: Message) -> None:
        """See Mailbox."""
        if worker in self._peers:
            self._outbox.send(self._peers[worker], self.epoch, message)

    def answer(self, peer: Peer, message: Message) -> None:
        """See Mailbox."""
        self._answers.send(self._as_it_came(peer), self.epoch, message, self._loop.time())

    def begin_epoch(self, workers: Sequence[str]) -> int:
        """See Mailbox."""
        return self._plan.begin_epoch(workers, self._peers)

    def send(self, worker: str, message: Message, buffers: Sequence[Buffer] = ()) -> None:
        """See Mailbox."""
        if worker in self._peers:
            self._plan.send(worker, message, buffers)

    def accepts(self, envelope: Envelope) -> bool:
        """See Mailbox."""
        return self._plan.accepts(envelope, self._names.get(envelope.key))

    def _gap(self, worker: str) -> None:
        assert self._closed is not None
        self._closed(worker, "something it sent is missing")

    def close(self) -> None:
        """See Mailbox."""
        self._plan.close()
        self._outbox.close()
        self._door.close()
        self._inbox.close()
