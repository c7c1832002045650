"""How a coordinator hears and speaks without sockets: `cluster.membership.mailbox.Mailbox` over an `InProcessNetwork`."""

import asyncio

from cluster.membership.checks import check_member, check_stranger
from cluster.membership.plan_links import PlanLinks
from protocol.values import Peer

ENDPOINT = "coordinator"
DOOR = "the coordinator's door"
PUBLIC_KEY = "k" * 40


class InProcessMailbox:
    """Numbered links that live as long as an epoch, as ZmqMailbox has; `stir` is called whenever something is sent.

    next_epoch: a number higher than all before. sent: every message of a plan.
    """

    door = Peer(endpoint=DOOR, public_key=PUBLIC_KEY)
    inbox = Peer(endpoint=ENDPOINT, public_key=PUBLIC_KEY)

    def __init__(self, network, next_epoch, stir):
        self._network = network
        self._stir = stir
        self._loop = asyncio.get_running_loop()
        self._deliver = self._closed = None
        self._outbox = network.outbox(PUBLIC_KEY)
        links = network.links(ENDPOINT, self._lost, key=PUBLIC_KEY)
        self._plan = PlanLinks(links, next_epoch, lambda worker: self._closed(worker, "something it sent is missing"))
        self._peers, self._names = {}, {}
        self.sent = []

    def __repr__(self):
        return f"InProcessMailbox(epoch {self.epoch})"

    @property
    def epoch(self):
        return self._plan.epoch

    def open(self, deliver, closed):
        self._deliver, self._closed = deliver, closed
        self._network.inbox(DOOR, self._asked)
        self._network.inbox(ENDPOINT, self._received, admits=lambda key: key in self._names)

    def _asked(self, envelope):
        check_stranger(envelope)
        self._loop.call_soon(self._hand_in, envelope)

    def _received(self, envelope):
        check_member(envelope, self._names[envelope.key])
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
        self.forget(worker)
        self._peers[worker] = peer
        self._names[peer.public_key] = worker

    def forget(self, worker):
        peer = self._peers.pop(worker, None)
        if peer is not None:
            del self._names[peer.public_key]

    def connection_closed(self, inbox):
        """The connection to a worker ends, which is noticed where it is watched."""
        for worker, peer in self._peers.items():
            if peer.endpoint == inbox:
                self._lost(worker, "the connection closed")

    def tell(self, worker, message):
        if worker in self._peers:
            self.answer(self._peers[worker], message)

    def answer(self, peer, message):
        self._outbox.send(peer, self.epoch, message)
        self._stir()

    def begin_epoch(self, workers):
        return self._plan.begin_epoch(workers, self._peers)

    def send(self, worker, message, buffers=()):
        if worker in self._peers:
            self.sent.append(message)
            self._plan.send(worker, message, buffers)
            self._stir()

    def accepts(self, envelope):
        return self._plan.accepts(envelope, self._names.get(envelope.key))

    def close(self):
        """Also how a coordinator dies: nobody hears any more."""
        self._deliver = self._closed = None
        self._plan.close()
        self._network.remove(DOOR)
        self._network.remove(ENDPOINT)
