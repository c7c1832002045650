"""Checks that what arrives over data links has no hole. Knows no sockets: the receiver asks it about each envelope."""

from enum import Enum

from protocol.codec import Envelope


class Arrival(Enum):
    """What an envelope is to its receiver."""

    NEXT = "next"
    """In order, or of a link that does not count."""
    GAP = "gap"
    """The first out of order: from now on whatever comes over this link is dropped, and so is this."""
    DROPPED = "dropped"
    """Of a link that broke before, or of another epoch."""


class LinkNumbers:
    """The numbers that one inbox expects next from each sender in the epoch in force."""

    def __init__(self) -> None:
        self._epoch = 0
        self._expected: dict[int, int | None] = {}  # None where the link is broken

    def __repr__(self) -> str:
        return f"LinkNumbers(epoch {self._epoch}, expects {self._expected})"

    def renew(self, epoch: int) -> None:
        """Forget the links of the epoch before; every sender begins at 1 again."""
        self._epoch = epoch
        self._expected.clear()

    def accept(self, envelope: Envelope) -> Arrival:
        """What to do with an envelope. GAP comes once for each sender and epoch."""
        if envelope.number == 0:
            return Arrival.NEXT
        expected = self._expected.get(envelope.sender, 1)
        if envelope.epoch != self._epoch or expected is None:
            return Arrival.DROPPED
        if envelope.number != expected:
            self._expected[envelope.sender] = None
            return Arrival.GAP
        self._expected[envelope.sender] = expected + 1
        return Arrival.NEXT
