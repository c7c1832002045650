"""The messages that wait for the compute thread, and which of them count.

Owns the epoch in force here and the keys of its plan: only a LoadStage raises it, which other workers cannot send, and what
speaks of sequences counts in that epoch alone. On a link whose numbers have a gap nothing counts any more until the next
epoch: what comes behind the gap would be computed on a cache with a hole.
"""

import queue
from collections.abc import Mapping

from protocol.codec import Envelope
from protocol.messages import InspectModel, LinkLost, LoadStage, Message, PrepareStage, Shutdown
from protocol.transport import Arrival, LinkNumbers
from workers.tensor.company import Company


class Adrift(Message, frozen=True, kw_only=True):
    """Said within the process only: the coordinator is out of reach, and with it whoever waits for what runs here."""


# After one of these what the compute thread does for the one before is of no use.
_OVERTAKES = (PrepareStage, LoadStage, Shutdown)
_ENDS_WAITS = (LoadStage, Shutdown, Adrift)
_OF_NO_EPOCH = (InspectModel, PrepareStage, Shutdown, Adrift)


class Arrivals:
    """See the module. `post`, `num_waiting`, `is_overtaken`, `admits` and `is_of_the_plan` may be used on any thread, the rest on the compute
    thread.

    name: this worker's; company: for which the compute thread waits no more once something else is wanted of it.
    """

    def __init__(self, name: str, company: Company | None = None) -> None:
        self._name = name
        self._company = company or Company(None, lambda: False)
        self._waiting: queue.SimpleQueue[Envelope] = queue.SimpleQueue()
        self._overtaking: queue.SimpleQueue[None] = queue.SimpleQueue()
        self._numbers = LinkNumbers()
        self._senders: tuple[str, ...] = ()
        self._keys: tuple[str, ...] = ()
        self.is_suspended = True
        self.epoch = 0
        self.num_dropped = 0

    def __repr__(self) -> str:
        return f"Arrivals(epoch {self.epoch}, {self.num_waiting} waiting, {self.num_dropped} dropped)"

    @property
    def num_waiting(self) -> int:
        return self._waiting.qsize()

    def post(self, envelope: Envelope) -> None:
        """Hand in a message."""
        if isinstance(envelope.message, _OVERTAKES):
            self._overtaking.put(None)
        if isinstance(envelope.message, _ENDS_WAITS):
            self._company.abort()  # before it can be taken, which may bring new company
        self._waiting.put(envelope)

    @property
    def is_overtaken(self) -> bool:
        """Whether something waits after which what is being done for the one before is of no use."""
        return not self._overtaking.empty()

    def next(self, *, wait_s: float | None) -> Envelope | None:
        """The next message; None when there is none, or none within `wait_s`."""
        try:
            envelope = self._waiting.get(wait_s is not None, timeout=wait_s)
        except queue.Empty:
            return None
        if isinstance(envelope.message, _OVERTAKES):
            self._overtaking.get()
        return envelope

    def admits(self, key: str) -> bool:
        """Whether a worker of the plan in force has this public key."""
        return key in self._keys

    def is_of_the_plan(self, envelope: Envelope) -> bool:
        """Whether what comes from another worker is from the one that it says, on a link whose messages are counted."""
        keys = self._keys
        return envelope.number > 0 and envelope.sender < len(keys) and keys[envelope.sender] == envelope.key

    def renew(self, first: Envelope, senders: Mapping[str, str]) -> None:
        """The message `first` puts a new epoch in force. senders: the public key of each worker of its plan, in order."""
        self.epoch = first.epoch
        self.is_suspended = False
        self._numbers.renew(first.epoch)
        self._numbers.accept(first)
        self._senders, self._keys = tuple(senders), tuple(senders.values())

    def suspend(self) -> None:
        """No epoch is in force until the next one."""
        self.is_suspended, self._keys = True, ()

    def counts(self, envelope: Envelope) -> bool:
        """Whether a message is of the epoch in force, or of none, and nothing before it is missing on its link.

        Others are counted as dropped; the first behind a gap makes a LinkLost for the coordinator.
        """
        message = envelope.message
        if isinstance(message, _OF_NO_EPOCH):
            return True
        if isinstance(message, LoadStage):
            does_count = envelope.epoch >= self.epoch
        else:
            is_in_force = envelope.epoch == self.epoch and not self.is_suspended
            does_count = is_in_force and self._is_whole(envelope)
        self.num_dropped += not does_count
        return does_count

    def _is_whole(self, envelope: Envelope) -> bool:
        arrival = self._numbers.accept(envelope)
        if arrival is Arrival.GAP:
            known = envelope.sender < len(self._senders)
            sender = self._senders[envelope.sender] if known else "the coordinator"
            why = f"what came before message {envelope.number} is missing"
            self.post(Envelope(self.epoch, LinkLost(worker=sender, peer=self._name, why=why)))
        return arrival is Arrival.NEXT
