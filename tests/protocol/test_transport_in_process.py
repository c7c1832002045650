"""The network of tests that stands in for sockets, and the faults that it plays."""

import pytest

from protocol.messages import Cancel, SequenceFailed
from protocol.transport import Arrival, InProcessNetwork, LinkNumbers
from protocol.values import Peer


class Pair:
    """Worker a's links to the inbox b/data of worker b, and what b received."""

    def __init__(self):
        self.network = InProcessNetwork()
        self.received = []
        self.lost = []
        self.peer = self.network.inbox("b/data", self.received.append)
        self.links = self.network.links("a", lambda worker, why: self.lost.append((self.links.epoch, worker, why)))
        self.links.renew(1, 3, {"b": self.peer})

    def send(self, *sequences):
        for sequence in sequences:
            self.links.send("b", Cancel(sequence=sequence))

    def arrived(self):
        self.network.run()
        return [(envelope.number, envelope.message.sequence) for envelope in self.received]


@pytest.fixture
def pair():
    return Pair()


def test_in_process_network_delivers_in_order_what_was_sent_meanwhile_too():
    network = InProcessNetwork()
    seen = []

    def deliver(envelope):
        seen.append(envelope.message)
        if envelope.message == Cancel(sequence=1):
            network.send(peer, 1, SequenceFailed(sequence=3, message="later"))

    peer = network.inbox("here", deliver)
    network.send(peer, 1, Cancel(sequence=1))
    network.send(peer, 1, Cancel(sequence=2))
    assert network.run() == 3
    assert seen == [Cancel(sequence=1), Cancel(sequence=2), SequenceFailed(sequence=3, message="later")]


def test_in_process_network_drops_what_nobody_receives():
    network = InProcessNetwork()
    network.send(Peer(endpoint="gone", public_key=""), 1, Cancel(sequence=1))
    assert network.run() == 1


def test_links_number_their_messages_in_each_epoch(pair):
    pair.send(10, 11)
    pair.links.renew(2, 0, {"b": pair.peer})
    pair.links.send("b", Cancel(sequence=12), [memoryview(b"raw")])
    pair.network.run()
    assert [(got.epoch, got.sender, got.number) for got in pair.received] == [(1, 3, 1), (1, 3, 2), (2, 0, 1)]
    assert pair.received[2].buffers == (b"raw",)


def test_worker_that_the_epoch_lacks_is_a_mistake(pair):
    with pytest.raises(KeyError):
        pair.links.send("c", Cancel(sequence=1))


def test_cut_drops_what_is_under_way_and_tells_nobody_until_healed(pair):
    pair.send(1)
    pair.network.cut("a", "b/data")
    pair.send(2)
    assert pair.arrived() == []
    assert pair.network.num_dropped == 2
    pair.network.heal()
    pair.send(3)
    assert pair.arrived() == [(3, 3)]
    assert pair.lost == []


def test_cut_is_of_one_direction_between_two(pair):
    other = pair.network.links("c", print)
    other.renew(1, 1, {"b": pair.peer})
    pair.network.cut("a", "b/data")
    other.send("b", Cancel(sequence=5))
    assert pair.arrived() == [(1, 5)]


def test_reset_loses_what_is_under_way_and_tells_once(pair):
    pair.send(1)
    pair.network.reset("a", "b/data")
    pair.network.reset("a", "b/data")
    pair.send(2)
    assert pair.arrived() == []
    assert pair.lost == [(1, "b", "the connection closed")]


def test_new_epoch_has_new_links(pair):
    pair.network.reset("a", "b/data")
    pair.links.renew(2, 0, {"b": pair.peer})
    pair.send(1)
    assert pair.arrived() == [(1, 1)]


def test_lost_message_leaves_a_gap(pair):
    numbers = LinkNumbers()
    numbers.renew(1)
    pair.send(1)
    pair.network.lose_next("a", "b/data")
    pair.send(2, 3, 4)
    assert pair.arrived() == [(1, 1), (3, 3), (4, 4)]
    assert [numbers.accept(got) for got in pair.received] == [Arrival.NEXT, Arrival.GAP, Arrival.DROPPED]


def test_silenced_inbox_receives_nothing_and_nobody_is_told(pair):
    pair.network.silence("b/data")
    pair.send(1)
    pair.network.send(pair.peer, 1, Cancel(sequence=2))
    assert pair.arrived() == []
    assert pair.lost == []


def test_removed_inbox_loses_its_links(pair):
    pair.send(1)
    pair.network.remove("b/data")
    pair.send(2)
    assert pair.arrived() == []
    assert pair.lost == [(1, "b", "the connection closed")]


def test_link_to_nobody_is_lost_at_the_first_message(pair):
    pair.network.remove("b/data")
    pair.links.renew(2, 0, {"b": pair.peer})
    assert pair.lost == [(1, "b", "the connection closed")]
    pair.send(1, 2)
    assert pair.lost[1:] == [(2, "b", "no connection could be made")]


def test_closed_links_have_nothing_to_lose(pair):
    pair.links.close()
    pair.network.remove("b/data")
    assert pair.lost == []
