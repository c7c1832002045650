"""Where a worker asks to be let in."""

from protocol.transport.addressing import host_of, seen_from
from protocol.values import Peer


class Doors:
    """Where the coordinator can be asked to be let in: as this worker was told, and at its other addresses once they are known.
    inbox: where it hears its workers, once it said so.
    """

    def __init__(self, told: Peer):
        self.inbox: Peer | None = None
        self.current = told
        self.all: tuple[Peer, ...] = (told,)

    def __repr__(self) -> str:
        return f"Doors({self.current.endpoint} of {len(self.all)})"

    def next(self) -> Peer:
        """The one to ask at: each in turn, from that which answered last."""
        self.current = self.all[0]
        self.all = (*self.all[1:], self.current)
        return self.current

    def learn(self, door: Peer, inbox: Peer) -> None:
        """The coordinator answered at `current`, and has these addresses."""
        self.inbox = inbox
        elsewhere = [seen_from(door, host_of(address.endpoint)) for address in door.addresses]
        self.all = (self.current, *(peer for peer in elsewhere if peer not in (self.current, door)))
