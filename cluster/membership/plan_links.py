"""The coordinator's side of one plan after another: what it says of a plan, and which of what workers say counts.

Knows neither sockets nor who is a member; whoever uses it says whose message one is.
"""

from collections.abc import Callable, Mapping, Sequence

from protocol.codec import Envelope
from protocol.messages import Message
from protocol.transport import Arrival, DataLinks, LinkNumbers
from protocol.values import COORDINATOR, Buffer, Peer


class PlanLinks:
    """See the module. next_epoch: gives a number higher than all before; gap: told of a worker of which something is missing."""

    def __init__(self, links: DataLinks, next_epoch: Callable[[], int], gap: Callable[[str], None]):
        self._links = links
        self._next_epoch = next_epoch
        self._gap = gap
        self._numbers = LinkNumbers()
        self._workers: tuple[str, ...] = ()
        self.epoch = 0

    def __repr__(self) -> str:
        return f"PlanLinks(epoch {self.epoch}, {', '.join(self._workers)})"

    def begin_epoch(self, workers: Sequence[str], peers: Mapping[str, Peer]) -> int:
        """A new epoch with new links to the workers of a plan, in this order, at `peers`; those of the epoch before end."""
        self.epoch = self._next_epoch()
        self._workers = tuple(workers)
        self._numbers.renew(self.epoch)
        self._links.renew(self.epoch, COORDINATOR, {name: peers[name] for name in workers if name in peers})
        return self.epoch

    def send(self, worker: str, message: Message, buffers: Sequence[Buffer] = ()) -> None:
        """Say something of the plan."""
        self._links.send(worker, message, buffers)

    def accepts(self, envelope: Envelope, worker: str | None) -> bool:
        """Whether this is of the plan, its sender's place is that of the `worker` that sent it, and nothing before is missing."""
        if envelope.epoch != self.epoch or envelope.sender >= len(self._workers):
            return False
        if self._workers[envelope.sender] != worker:
            return False
        arrival = self._numbers.accept(envelope)
        if arrival is Arrival.GAP:
            self._gap(self._workers[envelope.sender])
        return arrival is Arrival.NEXT

    def close(self) -> None:
        """End every link."""
        self._links.close()
