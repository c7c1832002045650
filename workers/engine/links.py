"""The links between workers as the engine sees them: what sends along them, and what checks that nothing is missing."""

from collections.abc import Callable, Mapping, Sequence
from enum import Enum
from typing import Protocol

from protocol.codec import Envelope
from protocol.messages import Message
from protocol.transport import ZmqOutbox
from protocol.values import Buffer, Peer

# Told a worker's name and why the link to it is lost; on any thread.
Lost = Callable[[str, str], object]


class DataLinks(Protocol):
    """Sends to other workers, over links that live as long as an epoch. Belongs to the engine's thread."""

    @property
    def epoch(self) -> int:
        """The epoch of the links; while a loss is reported, the epoch of the link that was lost."""

    def renew(self, epoch: int, sender: int, peers: Mapping[str, Peer]) -> None:
        """End every link of the epoch before; sender: this worker's place in the new plan."""

    def send(self, worker: str, message: Message, buffers: Sequence[Buffer] = ()) -> None:
        """Queue a message; never blocks. Raises KeyError for a worker that the epoch does not have."""

    def close(self) -> None:
        """End every link."""


class OutboxLinks:
    """Data links over an outbox, which neither numbers messages nor notices a loss."""

    def __init__(self, lost: Lost):  # noqa: ARG002
        self._outbox = ZmqOutbox()
        self._peers: dict[str, Peer] = {}
        self.epoch = 0

    def __repr__(self) -> str:
        return f"OutboxLinks(epoch {self.epoch})"

    def renew(self, epoch: int, sender: int, peers: Mapping[str, Peer]) -> None:  # noqa: ARG002
        self.close()
        self.epoch, self._peers = epoch, dict(peers)

    def send(self, worker: str, message: Message, buffers: Sequence[Buffer] = ()) -> None:
        self._outbox.send(self._peers[worker], self.epoch, message, buffers)

    def close(self) -> None:
        for peer in self._peers.values():
            self._outbox.forget(peer)


class Arrival(Enum):
    """What an envelope is to its receiver: in order (or of a link that does not count), the first behind a hole, or of a
    link that is lost or of another epoch.
    """

    NEXT = "next"
    GAP = "gap"
    DROPPED = "dropped"


class LinkNumbers:
    """The numbers that one inbox expects next from each sender in the epoch in force."""

    def __init__(self) -> None:
        self._epoch = 0
        self._expected: dict[int, int | None] = {}  # None where the link is lost

    def __repr__(self) -> str:
        return f"LinkNumbers(epoch {self._epoch}, expects {self._expected})"

    def renew(self, epoch: int) -> None:
        """Every sender begins at 1 again."""
        self._epoch = epoch
        self._expected.clear()

    def accept(self, envelope: Envelope) -> Arrival:
        """What to do with an envelope. GAP comes once for each sender and epoch."""
        if envelope.number == 0:
            return Arrival.NEXT
        expected = self._expected.get(envelope.sender, 1)
        if envelope.epoch != self._epoch or expected is None:
            return Arrival.DROPPED
        follows = envelope.number == expected
        self._expected[envelope.sender] = expected + 1 if follows else None
        return Arrival.NEXT if follows else Arrival.GAP
