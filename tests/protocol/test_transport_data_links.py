"""Data links over real loopback sockets, and every way in which they end."""

import queue
import threading
import time
from contextlib import closing

import psutil
import pytest

from protocol.codec import MAX_NUMBER
from protocol.messages import Cancel
from protocol.transport import Arrival, KeyPair, LinkNumbers, ZmqDataLinks, data_links
from protocol.values import Peer
from tests.support.received import DEADLINE_S, Received, wait_until
from tests.support.relay import Relay

NOTICED_WITHIN_S = 3.5
AT_ONCE_S = 1.0


class Lost:
    """The losses that a worker's links reported: (epoch, worker, why)."""

    def __init__(self):
        self.told = queue.Queue()
        self.links = ZmqDataLinks(lambda worker, why: self.told.put((self.links.epoch, worker, why)))

    def next(self, within_s):
        return self.told.get(timeout=within_s)


@pytest.fixture
def received():
    with closing(Received()) as received:
        yield received


@pytest.fixture
def lost():
    lost = Lost()
    with closing(lost.links):
        yield lost


@pytest.fixture
def links(lost):
    return lost.links


@pytest.fixture
def relay(received):
    with closing(Relay(received.port)) as relay:
        yield relay


def through(relay, received):
    return Peer(endpoint=relay.endpoint, public_key=received.peer.public_key)


def send(links, *sequences, worker="b"):
    for sequence in sequences:
        links.send(worker, Cancel(sequence=sequence))


def test_messages_are_numbered_for_each_receiver_and_carry_epoch_and_sender(received, links):
    with closing(Received()) as other:
        links.renew(5, 3, {"b": received.peer, "c": other.peer})
        for number in range(1, 101):
            links.send("b", Cancel(sequence=number), [memoryview(b"x" * number)])
        send(links, 7, worker="c")
        for number in range(1, 101):
            envelope = received.next()
            assert (envelope.epoch, envelope.sender, envelope.number) == (5, 3, number)
            assert bytes(envelope.buffers[0]) == b"x" * number
        assert (other.next().number, other.is_empty()) == (1, True)


def test_new_epoch_numbers_anew_over_new_connections(received, links):
    links.renew(1, 0, {"b": received.peer})
    send(links, 1, 2)
    assert [received.next().number for _ in range(2)] == [1, 2]
    links.renew(2, 4, {"b": received.peer})
    send(links, 3)
    envelope = received.next()
    assert (envelope.epoch, envelope.sender, envelope.number) == (2, 4, 1)


def test_worker_that_the_epoch_lacks_is_a_mistake(received, links):
    links.renew(1, 0, {"b": received.peer})
    links.renew(2, 0, {})
    with pytest.raises(KeyError):
        send(links, 1)


def test_closed_inbox_is_told_at_once_and_once_and_nothing_is_sent_to_it_again(lost, links):
    keys = KeyPair.generate()
    with closing(Received(keys=keys)) as before:
        links.renew(1, 0, {"b": before.peer})
        send(links, 1)
        before.next()
    assert lost.next(AT_ONCE_S) == (1, "b", "the connection closed or fell silent")
    with closing(Received(keys=keys)) as again, closing(Relay(again.port)) as relay:
        send(links, 2, 3)
        links.renew(2, 0, {"b": through(relay, again)})
        send(links, 4)
        assert again.next().message == Cancel(sequence=4)
        assert again.is_empty()
    assert lost.next(AT_ONCE_S)[0] == 2


def test_reset_is_told_at_once_and_what_arrived_has_no_hole(received, relay, lost, links):
    links.renew(1, 0, {"b": through(relay, received)})
    send(links, 1)
    received.next()
    relay.reset()
    for sequence in range(2, 200):
        send(links, sequence)
    assert lost.next(AT_ONCE_S)[:2] == (1, "b")
    send(links, 200)
    assert lost.told.empty()
    assert received.stays_empty(0.5)  # ZeroMQ's own way would be to connect again after 0.1 s and go on


def test_silence_is_told_by_heartbeats_and_what_arrives_after_it_has_no_hole(received, relay, lost, links):
    links.renew(1, 0, {"b": through(relay, received)})
    send(links, 1)
    first = received.next()
    relay.cut()
    began = time.monotonic()
    send(links, 2, 3)
    assert lost.next(NOTICED_WITHIN_S)[:2] == (1, "b")
    assert time.monotonic() - began > 1.0
    send(links, 4)
    relay.heal()
    links.renew(2, 0, {"b": through(relay, received)})
    send(links, 5)
    numbers = LinkNumbers()
    numbers.renew(1)
    assert numbers.accept(first) is Arrival.NEXT
    while (envelope := received.next()).epoch == 1:
        assert numbers.accept(envelope) is Arrival.NEXT
        assert envelope.message != Cancel(sequence=4)
    assert envelope.number == 1


def test_silence_before_the_handshake_is_told_too(received, relay, lost, links):
    relay.cut()
    links.renew(1, 0, {"b": through(relay, received)})
    send(links, 1)
    assert lost.next(NOTICED_WITHIN_S)[:2] == (1, "b")


def test_frame_may_take_longer_to_arrive_than_any_silence(received, relay, lost, links):
    links.renew(1, 0, {"b": through(relay, received)})
    send(links, 1)
    received.next()
    relay.throttle(20_000_000)
    began = time.monotonic()
    # A heartbeat goes between the two: from it on the receiver could count silence.
    links.send("b", Cancel(sequence=2), [bytes(15_000_000), bytes(50_000_000)])
    envelope = received.next()
    assert (envelope.number, len(envelope.buffers[1])) == (2, 50_000_000)
    assert time.monotonic() - began > 2.5
    assert lost.told.empty()


def test_nobody_at_the_other_end_is_told_at_once(lost, links):
    with closing(Received()) as gone:
        pass
    links.renew(1, 0, {"b": gone.peer})
    wait_until(lambda: is_lost(lost, links), "the port is closed, and a link to it lost")
    for sequence in range(5000):
        send(links, sequence)


def is_lost(lost, links):
    send(links, 1)
    return not lost.told.empty()


def test_wrong_key_is_told_at_once(received, lost, links):
    links.renew(1, 0, {"b": Peer(endpoint=received.peer.endpoint, public_key=KeyPair.generate().public)})
    send(links, 1)
    assert lost.next(AT_ONCE_S)[:2] == (1, "b")
    assert received.is_empty()


@pytest.mark.parametrize(
    ("endpoint", "public_key"),
    [("nonsense", KeyPair.generate().public), ("tcp://127.0.0.1:1", "no key")],
    ids=["no address", "no key"],
)
def test_peer_that_cannot_be_connected_to_is_a_lost_link(lost, links, endpoint, public_key):
    links.renew(1, 0, {"b": Peer(endpoint=endpoint, public_key=public_key)})
    send(links, 1, 2)
    assert lost.next(AT_ONCE_S) == (1, "b", f"{endpoint} cannot be used: Invalid argument")
    assert lost.told.empty()


def test_link_whose_end_was_not_told_yet_is_lost_by_the_next_message(lost, links, monkeypatch):
    monkeypatch.setattr(data_links, "watch_socket", lambda *_: None)
    with closing(Received()) as received:
        links.renew(1, 0, {"b": received.peer})
        send(links, 1)
        received.next()
    wait_until(lambda: is_lost(lost, links), "a message finds no connection")
    assert lost.next(AT_ONCE_S) == (1, "b", "the connection is gone")


def test_link_without_numbers_left_is_lost(received, lost, links):
    links.renew(1, 0, {"b": received.peer})
    send(links, 1)
    links._links["b"]._number = MAX_NUMBER - 1
    send(links, 2, 3)
    assert lost.next(AT_ONCE_S) == (1, "b", "its numbers are used up")
    assert [received.next().number for _ in range(2)] == [1, MAX_NUMBER]


def test_other_links_go_on_when_one_is_lost(received, lost, links):
    with closing(Received()) as other:
        links.renew(1, 0, {"b": received.peer, "c": other.peer})
        send(links, 1, worker="b")
        send(links, 1, worker="c")
        other.next()
    assert lost.next(AT_ONCE_S)[1] == "c"
    send(links, 2)
    assert [received.next().number for _ in range(2)] == [1, 2]


def test_links_that_end_on_purpose_report_nothing(received, lost, links):
    for epoch in range(1, 50):
        links.renew(epoch, 0, {"b": received.peer})
        send(links, epoch)
    links.close()
    wait_until(lambda: num_monitors() == 0, "the monitors' threads have ended")
    assert lost.told.empty()


def test_listener_that_fails_blocks_nobody():
    def fail(worker, why):
        failed.set()
        raise RuntimeError("the listener is broken")

    failed = threading.Event()
    with closing(ZmqDataLinks(fail)) as links, closing(Received()) as received:
        links.renew(1, 0, {"b": received.peer})
        send(links, 1)
        received.next()
        received.close()
        assert failed.wait(DEADLINE_S)
    wait_until(lambda: num_monitors() == 0, "the monitors' threads have ended")


def test_two_hundred_links_over_epochs_leak_neither_threads_nor_descriptors():
    process = psutil.Process()
    lost = Lost()
    with closing(Received()) as lasting:
        lost.links.renew(1, 0, {"lasting": lasting.peer})
        send(lost.links, 1, worker="lasting")
        lasting.next()
        lost.links.close()
        wait_until(lambda: num_monitors() == 0, "the first link is gone")
        before = process.num_fds()
        for epoch in range(2, 22):
            run_epoch(lost.links, epoch, lasting)
        lost.links.close()
        wait_until(lambda: num_monitors() == 0, "the monitors' threads have ended")
        wait_until(lambda: process.num_fds() <= before, "descriptors are given back")
    reports = list(lost.told.queue)
    assert len(reports) == len(set(reports))
    assert all(worker == f"short of {epoch}" for epoch, worker, _ in reports)


def run_epoch(links, epoch, lasting):
    """Nine links to an inbox that stays, and one to an inbox that closes just as the epoch ends."""
    short = Received()
    peers = {f"lasting {number}": lasting.peer for number in range(9)} | {f"short of {epoch}": short.peer}
    links.renew(epoch, 0, peers)
    for worker in peers:
        send(links, epoch, worker=worker)
    short.next()
    for _ in range(9):
        lasting.next()
    short.close()


def num_monitors():
    return sum(thread.name == "link-monitor" for thread in threading.enumerate())


def test_peer_that_may_not_be_sent_to_is_lost_at_once_with_the_setting_that_says_so():
    class NoWay:
        def renew(self, peers):
            assert list(peers) == ["b"]

        def choose(self, peer):
            return None

        def lost(self, endpoint):
            raise AssertionError(endpoint)

    told = []
    peer = Peer(endpoint="tcp://127.0.0.1:9", public_key=KeyPair.generate().public)
    with closing(ZmqDataLinks(lambda *loss: told.append(loss), ways=NoWay())) as links:
        links.renew(1, 0, {"b": peer})
        send(links, 1, 2)
    assert told == [("b", "links.exclude here leaves no address of it")]
