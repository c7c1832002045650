"""How a coordinator hears and speaks without sockets: `cluster.membership.mailbox.Mailbox` over an `InProcessNetwork`."""

import asyncio

from protocol.transport import Arrival, LinkNumbers
from protocol.values import COORDINATOR, Peer

ENDPOINT = "coordinator"
PUBLIC_KEY = "k" * 40


class InProcessMailbox:
    """Numbered links that live as long as an epoch, as ZmqMailbox has; `stir` is called whenever something is sent.

    next_epoch: a number higher than all before. sent: every message of a plan.
    """

    peer = Peer(endpoint=ENDPOINT, public_key=PUBLIC_KEY)

    def __init__(self, network, next_epoch, stir):
        self._network = network
        self._next_epoch = next_epoch
        self._stir = stir
        self._loop = asyncio.get_running_loop()
        self._deliver = self._closed = None
        self._links = network.links(ENDPOINT, self._lost)
        self._numbers = LinkNumbers()
        self._peers = {}
        self._planned = ()
        self.epoch = 0
        self.sent = []

    def __repr__(self):
        return f"InProcessMailbox(epoch {self.epoch})"

    def open(self, deliver, closed):
        self._deliver, self._closed = deliver, closed
        self._network.inbox(ENDPOINT, self._received)

    def _received(self, envelope):
        self._loop.call_soon(self._hand_in, envelope)

    def _hand_in(self, envelope):
        if self._deliver is not None:
            self._deliver(envelope)

    def _lost(self, worker, why):
        self._loop.call_soon(self._report, worker, why)

    def _report(self, worker, why):
        if self._closed is not None:
            self._closed(worker, why)

    def know(self, worker, peer):
        self._peers[worker] = peer

    def forget(self, worker):
        self._peers.pop(worker, None)

    def connection_closed(self, inbox):
        """The connection to a worker ends, which is noticed where it is watched."""
        for worker, peer in self._peers.items():
            if peer.endpoint == inbox:
                self._lost(worker, "the connection closed")

    def tell(self, worker, message):
        if worker in self._peers:
            self.answer(self._peers[worker], message)

    def answer(self, peer, message):
        self._network.send(peer, self.epoch, message)
        self._stir()

    def begin_epoch(self, workers):
        self.epoch = self._next_epoch()
        self._planned = tuple(workers)
        self._numbers.renew(self.epoch)
        peers = {worker: self._peers[worker] for worker in workers if worker in self._peers}
        self._links.renew(self.epoch, COORDINATOR, peers)
        return self.epoch

    def send(self, worker, message, buffers=()):
        if worker in self._peers:
            self.sent.append(message)
            self._links.send(worker, message, buffers)
            self._stir()

    def accepts(self, envelope):
        if envelope.epoch != self.epoch:
            return False
        arrival = self._numbers.accept(envelope)
        if arrival is Arrival.GAP:
            self._closed(self._planned[envelope.sender], "something it sent is missing")
        return arrival is Arrival.NEXT

    def close(self):
        """Also how a coordinator dies: nobody hears any more."""
        self._deliver = self._closed = None
        self._links.close()
        self._network.remove(ENDPOINT)
