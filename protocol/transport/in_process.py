"""Inboxes and links without sockets, for tests that run a whole cluster in one thread and play its faults.

Messages are encoded, decoded and delivered for real, in order, when the test says `run`. Faults name an inbox, and the
owner of the links that lead to it.
"""

from collections import Counter, deque
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

from protocol.codec import decode, encode
from protocol.errors import WireError
from protocol.messages import Message
from protocol.transport.admission import Admits, anybody
from protocol.transport.sending import Deliver, Lost
from protocol.values import Buffer, Peer


@dataclass(eq=False, slots=True)
class _InProcessLink:
    """From `owner`, whose key is `key`, to an inbox, in one epoch."""

    owner: str
    key: str
    inbox: str
    number: int = 0
    whole: bool = True


@dataclass(frozen=True, slots=True)
class _Queued:
    """A message on its way; `link` is None where it came through `InProcessNetwork.send`."""

    inbox: str
    frames: list[Buffer]
    key: str
    link: _InProcessLink | None


class InProcessNetwork:
    """The inboxes of a test's processes and what is on its way to them. Itself the `Sender` of those without a key."""

    def __init__(self) -> None:
        self._inboxes: dict[str, tuple[Deliver, Admits]] = {}
        self._queue: deque[_Queued] = deque()
        self._links: dict[str, InProcessDataLinks] = {}
        self._cut: set[tuple[str, str]] = set()
        self._silent: set[str] = set()
        self._vanishing: Counter[tuple[str, str]] = Counter()
        self.num_dropped = 0

    def __repr__(self) -> str:
        return f"InProcessNetwork({len(self._inboxes)} inboxes, {len(self._queue)} messages under way)"

    def inbox(self, name: str, deliver: Deliver, *, key: str = "", admits: Admits = anybody) -> Peer:
        """Register an inbox and return where it receives. key: of the process that it belongs to; admits: as `ZmqInbox`."""
        self._inboxes[name] = deliver, admits
        return Peer(endpoint=name, public_key=key)

    def links(self, owner: str, lost: Lost, *, key: str = "") -> "InProcessDataLinks":
        """The data links of the worker `owner`, in place of those that it had."""
        self._links[owner] = InProcessDataLinks(owner, key, lost, self._carry)
        return self._links[owner]

    def outbox(self, key: str) -> "InProcessOutbox":
        """The `Sender` of the process with that key."""
        return InProcessOutbox(key, self._queue_frames)

    def send(self, peer: Peer, epoch: int, message: Message, buffers: Sequence[Buffer] = ()) -> None:
        """Queue a message for `peer`."""
        self.outbox("").send(peer, epoch, message, buffers)

    def forget(self, peer: Peer) -> None:
        """Nothing: messages that were sent arrive."""

    def run(self, *, max_messages: int = 100_000) -> int:
        """Deliver messages until none is left; returns how many. Raises AssertionError beyond `max_messages`.

        `num_dropped` counts those of them that reached nobody.
        """
        count = 0
        while self._queue:
            queued = self._queue.popleft()
            deliver, admits = self._inboxes.get(queued.inbox, (None, anybody))
            if deliver is None or self._is_lost(queued) or not admits(queued.key):
                self.num_dropped += 1
            else:
                self._hand_in(deliver, queued)
            count += 1
            assert count <= max_messages, "messages without end"
        return count

    def _hand_in(self, deliver: Deliver, queued: _Queued) -> None:
        try:
            deliver(decode(queued.frames, key=queued.key))
        except WireError:
            self.num_dropped += 1

    def cut(self, owner: str, inbox: str) -> None:
        """Drop what `owner`'s links carry to `inbox`, also what is under way, and tell nobody; until `heal`."""
        self._cut.add((owner, inbox))

    def silence(self, inbox: str) -> None:
        """Drop whatever is sent to `inbox` and tell nobody; until `heal`."""
        self._silent.add(inbox)

    def heal(self) -> None:
        """Undo `cut` and `silence`; what was dropped stays lost."""
        self._cut.clear()
        self._silent.clear()

    def reset(self, owner: str, inbox: str) -> None:
        """Break `owner`'s link to `inbox`: what is under way is lost, and its owner is told."""
        self._links[owner].break_link(inbox, "the connection closed")

    def lose_next(self, owner: str, inbox: str) -> None:
        """Let the next message that `owner`'s link carries to `inbox` vanish."""
        self._vanishing[owner, inbox] += 1

    def remove(self, inbox: str) -> None:
        """Let the process behind `inbox` die: it receives nothing more, and the owner of each link to it is told."""
        del self._inboxes[inbox]
        for links in self._links.values():
            links.break_link(inbox, "the connection closed")

    def _is_lost(self, queued: _Queued) -> bool:
        if queued.inbox in self._silent:
            return True
        link = queued.link
        return link is not None and (not link.whole or (link.owner, link.inbox) in self._cut)

    def _queue_frames(self, inbox: str, frames: list[Buffer], key: str, link: _InProcessLink | None = None) -> None:
        self._queue.append(_Queued(inbox, [bytes(frame) for frame in frames], key, link))

    def _carry(self, link: _InProcessLink, frames: list[Buffer]) -> bool:
        """Whether anybody is at the other end of a link."""
        if link.inbox not in self._inboxes:
            return False
        if self._vanishing[link.owner, link.inbox]:
            self._vanishing[link.owner, link.inbox] -= 1
        else:
            self._queue_frames(link.inbox, frames, link.key, link)
        return True


class InProcessOutbox:
    """The `Sender` of one process in an `InProcessNetwork`. queue: takes an inbox, frames and the sender's key."""

    def __init__(self, key: str, queue: Callable[[str, list[Buffer], str], None]):
        self._key = key
        self._queue = queue

    def __repr__(self) -> str:
        return f"InProcessOutbox({self._key})"

    def send(self, peer: Peer, epoch: int, message: Message, buffers: Sequence[Buffer] = ()) -> None:
        """See `Sender`."""
        self._queue(peer.endpoint, encode(epoch, message, buffers), self._key)

    def forget(self, peer: Peer) -> None:
        """See `Sender`; messages that were sent arrive."""


class InProcessDataLinks:
    """The `DataLinks` of one worker in an `InProcessNetwork`. What is under way at `renew` still arrives, in its old epoch."""

    def __init__(self, owner: str, key: str, lost: Lost, carry: Callable[[_InProcessLink, list[Buffer]], bool]):
        self._owner = owner
        self._key = key
        self._lost = lost
        self._carry = carry
        self._epoch = 0
        self._sender = 0
        self._links: dict[str, _InProcessLink] = {}
        self._sent: Counter[str] = Counter()

    def __repr__(self) -> str:
        return f"InProcessDataLinks({self._owner}, epoch {self._epoch})"

    @property
    def epoch(self) -> int:
        """The epoch of the links."""
        return self._epoch

    @property
    def sent_bytes(self) -> Mapping[str, int]:
        """See `DataLinks`."""
        return self._sent

    def renew(self, epoch: int, sender: int, peers: Mapping[str, Peer]) -> None:
        """Begin new links; see `DataLinks`."""
        self._epoch, self._sender = epoch, sender
        self._links = {worker: _InProcessLink(self._owner, self._key, peer.endpoint) for worker, peer in peers.items()}

    def send(self, worker: str, message: Message, buffers: Sequence[Buffer] = ()) -> None:
        """Queue a message; see `DataLinks`."""
        link = self._links[worker]
        if not link.whole:
            return
        link.number += 1
        frames = encode(self._epoch, message, buffers, sender=self._sender, number=link.number)
        if not self._carry(link, frames):
            self._break(worker, link, "no connection could be made")
            return
        self._sent[worker] += sum(map(len, frames))

    def break_link(self, inbox: str, why: str) -> None:
        """The fault of `InProcessNetwork.reset`."""
        for worker, link in self._links.items():
            if link.inbox == inbox:
                self._break(worker, link, why)

    def _break(self, worker: str, link: _InProcessLink, why: str) -> None:
        if link.whole:
            link.whole = False
            self._lost(worker, why)

    def close(self) -> None:
        """End every link."""
        self._links = {}
