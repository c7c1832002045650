"""What those who send and receive may rely on, over sockets or in one process."""

from collections.abc import Callable, Mapping, Sequence
from typing import Protocol

from protocol.codec import Envelope
from protocol.messages import Message
from protocol.values import Buffer, Peer

Deliver = Callable[[Envelope], object]
"""Takes what arrived; raises WireError for a message that its sender may not send, which is dropped then."""

Lost = Callable[[str, str], object]
"""Called with a worker and why the link to it is lost, perhaps on a thread of the transport's own and always before the
links of the next epoch exist. It only passes the news on: it neither waits for the thread that sends nor sends itself."""


class Sender(Protocol):
    """What sends messages to peers over control links; `ZmqOutbox` and, in tests, `InProcessOutbox`."""

    def send(self, peer: Peer, epoch: int, message: Message, buffers: Sequence[Buffer] = ()) -> None:
        """Queue a message; never blocks. Order is kept per peer. Buffers must not change afterwards."""

    def forget(self, peer: Peer) -> None:
        """Nothing more is sent to a peer, and unsent messages to it are dropped, unless it is sent to again."""


class DataLinks(Protocol):
    """The links of one worker to the other workers of its plan; `ZmqDataLinks` and, in tests, `InProcessDataLinks`.

    They live as long as an epoch. Messages to each worker are numbered from 1 (`protocol.transport.numbers` checks them).
    A link that was lost is reported once and carries nothing any more, so that what arrived has no hole. All methods
    belong to one thread.
    """

    @property
    def epoch(self) -> int:
        """The epoch of the links; while a loss is reported, the epoch of the link that was lost."""

    @property
    def sent_bytes(self) -> Mapping[str, int]:
        """What was handed to the links so far, in all epochs, by worker; the same mapping ever."""

    def renew(self, epoch: int, sender: int, peers: Mapping[str, Peer]) -> None:
        """End every link of the epoch before, unsent messages are dropped; a link to each of `peers` is made when needed.

        sender: this worker's place among the plan's workers; peers: the data inbox of each by its worker's name.
        """

    def send(self, worker: str, message: Message, buffers: Sequence[Buffer] = ()) -> None:
        """Queue a message; never blocks, and is dropped where the link is lost. Buffers must not change afterwards.

        Raises:
            KeyError: the epoch has no such worker.
        """

    def close(self) -> None:
        """End every link; unsent messages are dropped."""
