"""How a worker speaks to its coordinator: at the doors while it asks to be let in, at its inbox from then on."""

import logging
from collections.abc import Callable, Sequence

from protocol.messages import Join, Message
from protocol.transport import Sender
from protocol.transport.addressing import host_of, seen_from
from protocol.values import Buffer, Peer
from workers.doors import Doors

log = logging.getLogger(__name__)


class ToCoordinator:
    """On the control thread. told: where it is, as the worker was told; remember: keeps the way back to a door that let it in, for
    after the end of this process.
    """

    def __init__(self, told: Peer, outbox: Sender, remember: Callable[[Peer], object] | None = None):
        self._doors = Doors(told)
        self._outbox = outbox
        self._remember = remember

    def __repr__(self) -> str:
        return f"ToCoordinator({self._doors})"

    def ask(self, join: Join) -> None:
        """To be let in, at each of the doors in turn."""
        self._outbox.send(self._doors.next(), 0, join)

    def say(self, epoch: int, message: Message, buffers: Sequence[Buffer] = ()) -> None:
        """To the coordinator, which hears only whom it admitted."""
        if self._doors.inbox is not None:
            self._outbox.send(self._doors.inbox, epoch, message, buffers)

    def meet(self, inbox: Peer, door: Peer) -> None:
        """Admitted: what was refused before, or is of an earlier coordinator, is over."""
        inbox = seen_from(inbox, host_of(self._doors.current.endpoint))
        for earlier in (*self._doors.all, self._doors.inbox, inbox):
            if earlier is not None:
                self._outbox.forget(earlier)
        self._doors.learn(door, inbox)
        if self._remember is None:
            return
        try:
            self._remember(self._doors.current)
        except OSError as error:
            log.warning("the way back to this cluster cannot be kept (%s); a next start needs the token again", error)
