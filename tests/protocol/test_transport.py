"""Mailboxes over real loopback sockets, and the network of tests that stands in for them."""

import queue
import threading
from contextlib import closing

import pytest
import zmq

from protocol.codec import Envelope
from protocol.messages import Cancel, SequenceFailed
from protocol.transport import InProcessNetwork, KeyPair, ZmqInbox, ZmqOutbox
from protocol.values import Peer

DEADLINE_S = 10.0


class Received:
    """An inbox and what came into it."""

    def __init__(self):
        self._envelopes: queue.Queue[Envelope] = queue.Queue()
        self.inbox = ZmqInbox(self._envelopes.put)
        self.inbox.start()
        self.peer = self.inbox.peer

    def next(self) -> Envelope:
        return self._envelopes.get(timeout=DEADLINE_S)

    def is_empty(self) -> bool:
        return self._envelopes.empty()

    def close(self) -> None:
        self.inbox.close()


@pytest.fixture
def received():
    with closing(Received()) as received:
        yield received


@pytest.fixture
def outbox():
    with closing(ZmqOutbox()) as outbox:
        yield outbox


def test_messages_arrive_in_order_with_epoch_and_buffers(received, outbox):
    for number in range(200):
        outbox.send(received.peer, 3, Cancel(sequence=number), [bytes([number]), b"x" * number])
    for number in range(200):
        envelope = received.next()
        assert (envelope.epoch, envelope.message) == (3, Cancel(sequence=number))
        assert [bytes(buffer) for buffer in envelope.buffers] == [bytes([number]), b"x" * number]


def test_large_buffer_arrives_whole(received, outbox):
    data = bytes(range(256)) * (1 << 16)
    outbox.send(received.peer, 1, Cancel(sequence=1), [memoryview(data)])
    assert bytes(received.next().buffers[0]) == data


def test_sender_with_a_wrong_key_is_refused(received, outbox):
    stranger = Peer(endpoint=received.peer.endpoint, public_key=KeyPair.generate().public)
    with closing(ZmqOutbox(linger_ms=0)) as wrong:
        refused = watch_for_refusal(wrong, stranger)
        wrong.send(stranger, 1, Cancel(sequence=666))
        assert refused.wait(DEADLINE_S)
    outbox.send(received.peer, 1, Cancel(sequence=1))
    assert received.next().message == Cancel(sequence=1)
    assert received.is_empty()


def watch_for_refusal(outbox: ZmqOutbox, peer: Peer) -> threading.Event:
    """Set when the handshake with `peer` fails; ZeroMQ tells it as a link that closes before it carried anything."""
    refused = threading.Event()
    outbox.watch(peer, refused.set)
    return refused


def test_sender_without_encryption_is_refused(received, outbox):
    plain = zmq.Context.instance().socket(zmq.PUSH)
    plain.setsockopt(zmq.LINGER, 0)
    with closing(plain):
        events = plain.get_monitor_socket(zmq.EVENT_DISCONNECTED)
        plain.connect(received.peer.endpoint)
        plain.send_multipart([b"\0" * 10, b"\x80"])
        assert events.poll(DEADLINE_S * 1000)
        plain.disable_monitor()
    outbox.send(received.peer, 1, Cancel(sequence=1))
    assert received.next().message == Cancel(sequence=1)
    assert received.inbox.num_dropped == 0


def test_what_does_not_decode_is_counted_and_the_rest_arrives(received, outbox):
    outbox._link(received.peer).send_multipart([b"nonsense", b"\xc1"])
    outbox.send(received.peer, 1, Cancel(sequence=1))
    assert received.next().message == Cancel(sequence=1)
    assert received.inbox.num_dropped == 1


def test_watch_tells_once_that_the_peer_closed(outbox):
    received = Received()
    told = queue.Queue()
    outbox.watch(received.peer, lambda: told.put("lost"))
    outbox.send(received.peer, 1, Cancel(sequence=1))
    received.next()
    assert told.empty()
    received.close()
    assert told.get(timeout=DEADLINE_S) == "lost"


def test_peer_that_is_not_there_never_blocks_the_sender(outbox):
    nobody = Peer(endpoint="tcp://127.0.0.1:9", public_key=KeyPair.generate().public)
    for number in range(5000):
        outbox.send(nobody, 1, Cancel(sequence=number))
    outbox.forget(nobody)


def test_forgetting_a_peer_twice_is_harmless(received, outbox):
    outbox.send(received.peer, 1, Cancel(sequence=1))
    received.next()
    outbox.forget(received.peer)
    outbox.forget(received.peer)


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
