"""Inboxes and control links over real loopback sockets."""

import queue
import socket
import threading
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing

import pytest
import zmq

from protocol import codec
from protocol.errors import AddressUnavailable, WireError
from protocol.messages import Cancel
from protocol.transport import FOR_STRANGERS, KeyPair, ZmqInbox, ZmqOutbox
from protocol.transport.admission import admit, anybody
from protocol.transport.inbox import Limits
from protocol.values import Peer
from tests.support.received import DEADLINE_S, Received, wait_until


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


@pytest.mark.parametrize("more", [-1, 0, 1])
def test_buffer_around_the_size_of_a_frame_arrives_whole_between_others(received, outbox, more, monkeypatch):
    monkeypatch.setattr(codec, "MAX_FRAME_BYTES", 1 << 10)
    for factor in (1, 2):
        data = [b"x", bytes(range(256)) * (factor << 2) + bytes(more) if more >= 0 else bytes((factor << 10) - 1), b""]
        outbox.send(received.peer, 1, Cancel(sequence=1), data)
        assert [bytes(buffer) for buffer in received.next().buffers] == data


def test_sender_with_a_wrong_key_is_refused(received, outbox):
    stranger = Peer(endpoint=received.peer.endpoint, public_key=KeyPair.generate().public)
    with closing(ZmqOutbox(linger_ms=0)) as wrong:
        refused = watch_for_refusal(wrong, stranger)
        wrong.send(stranger, 1, Cancel(sequence=666))
        assert refused.wait(DEADLINE_S)
    outbox.send(received.peer, 1, Cancel(sequence=1))
    assert received.next().message == Cancel(sequence=1)
    assert received.is_empty()


def test_every_message_says_whose_it_is():
    keys = KeyPair.generate(), KeyPair.generate()
    with closing(Received()) as received, closing(ZmqOutbox(keys[0])) as one, closing(ZmqOutbox(keys[1])) as other:
        one.send(received.peer, 1, Cancel(sequence=1))
        other.send(received.peer, 1, Cancel(sequence=2))
        found = {envelope.message.sequence: envelope.key for envelope in (received.next(), received.next())}
    assert found == {1: keys[0].public, 2: keys[1].public}


def test_key_that_is_not_admitted_gets_no_further_than_the_handshake():
    known = KeyPair.generate()
    asked = []

    def admits(key):
        asked.append(key)
        return key == known.public

    stranger = KeyPair.generate()
    with closing(Received(admits=admits)) as received:
        with closing(ZmqOutbox(stranger, linger_ms=0)) as outbox:
            refused = watch_for_refusal(outbox, received.peer)
            outbox.send(received.peer, 1, Cancel(sequence=666))
            assert refused.wait(DEADLINE_S)
        assert asked == [stranger.public]
        with closing(ZmqOutbox(known)) as outbox:
            outbox.send(received.peer, 1, Cancel(sequence=1))
            assert received.next().message == Cancel(sequence=1)
        assert received.is_empty()


def test_key_that_is_no_longer_admitted_is_not_heard_on_the_connection_that_it_has(caplog):
    keys, admitted = KeyPair.generate(), set()
    admitted.add(keys.public)
    with closing(Received(admits=admitted.__contains__)) as received, closing(ZmqOutbox(keys)) as outbox:
        outbox.send(received.peer, 1, Cancel(sequence=1))
        assert received.next().message == Cancel(sequence=1)
        admitted.clear()
        outbox.send(received.peer, 1, Cancel(sequence=2))
        wait_until(lambda: received.inbox.num_dropped == 1, "the message is dropped")
        admitted.add(keys.public)
        outbox.send(received.peer, 1, Cancel(sequence=3))
        assert received.next().message == Cancel(sequence=3)


def test_message_that_its_receiver_does_not_take_is_dropped_and_counted(outbox):
    taken = queue.Queue()

    def deliver(envelope):
        if envelope.message.sequence == 1:
            raise WireError("not yours to say")
        taken.put(envelope.message)

    with closing(ZmqInbox(deliver)) as inbox:
        inbox.start()
        for sequence in (1, 2):
            outbox.send(inbox.peer, 1, Cancel(sequence=sequence))
        assert taken.get(timeout=DEADLINE_S) == Cancel(sequence=2)
        assert inbox.num_dropped == 1


def test_stranger_s_frame_that_is_too_large_ends_its_connection():
    with closing(Received(limits=FOR_STRANGERS)) as received, closing(ZmqOutbox(linger_ms=0)) as outbox:
        closed = watch_for_refusal(outbox, received.peer)
        outbox.send(received.peer, 1, Cancel(sequence=1))
        assert received.next().message == Cancel(sequence=1)
        outbox.send(received.peer, 1, Cancel(sequence=2), [bytes(FOR_STRANGERS.frame_bytes + 1)])
        assert closed.wait(DEADLINE_S)
        assert received.is_empty()


def test_handshake_frame_of_gigabytes_ends_its_connection_before_it_is_read(received):
    """What a peer without keys says: a greeting, and a frame that says it is 2 GB long."""
    greeting = b"\xff" + bytes(8) + b"\x7f\x03\x01" + b"CURVE".ljust(20, b"\0") + b"\0" + bytes(31)
    huge = b"\x06" + (2 << 30).to_bytes(8, "big")
    with socket.create_connection(("127.0.0.1", received.port), timeout=DEADLINE_S) as peer:
        peer.sendall(greeting)
        heard = b""
        while len(heard) < len(greeting):
            heard += peer.recv(1024)
        peer.sendall(huge)
        while peer.recv(1024):
            pass


def test_silent_connections_are_closed_and_hold_nobody_up(outbox):
    with closing(Received(limits=Limits(handshake_ms=500))) as received:
        silent = [socket.create_connection(("127.0.0.1", received.port), timeout=DEADLINE_S) for _ in range(200)]
        outbox.send(received.peer, 1, Cancel(sequence=1))
        assert received.next().message == Cancel(sequence=1)
        for connection in silent:
            while connection.recv(1024):
                pass
            connection.close()


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


def test_peer_is_its_key_not_its_endpoint(received, outbox):
    predecessor = Peer(endpoint=received.peer.endpoint, public_key=KeyPair.generate().public)
    outbox.send(predecessor, 1, Cancel(sequence=666))
    outbox.send(received.peer, 1, Cancel(sequence=1))
    assert received.next().message == Cancel(sequence=1)
    assert received.is_empty()


def test_peer_that_came_back_elsewhere_is_found_once_the_old_link_is_forgotten(outbox):
    keys = KeyPair.generate()
    with closing(Received(keys=keys)) as before:
        outbox.send(before.peer, 1, Cancel(sequence=1))
        before.next()
    with closing(Received(keys=keys)) as now:
        outbox.forget(before.peer)
        outbox.send(now.peer, 1, Cancel(sequence=2))
        assert now.next().message == Cancel(sequence=2)


def test_link_goes_on_when_its_inbox_begins_again_with_the_same_port_and_keys(outbox):
    keys = KeyPair.generate()
    closed = threading.Event()
    with closing(Received(keys=keys)) as before:
        outbox.watch(before.peer, closed.set)
        outbox.send(before.peer, 1, Cancel(sequence=1))
        before.next()
    assert closed.wait(DEADLINE_S)
    with closing(bound_again(before.port, keys)) as again:
        assert again.peer == before.peer
        outbox.send(before.peer, 1, Cancel(sequence=2))
        assert again.next().message == Cancel(sequence=2)


def bound_again(port: int, keys: KeyPair) -> Received:
    """ZeroMQ gives a port back a moment after its socket is closed."""
    bound: list[Received] = []

    def bind() -> bool:
        try:
            bound.append(Received(port, keys))
        except AddressUnavailable:
            return False
        return True

    wait_until(bind, "the port is free")
    return bound[0]


def test_inbox_on_a_taken_port_says_so(received):
    with pytest.raises(
        AddressUnavailable, match=rf"port {received.port} of 127\.0\.0\.1 cannot be used \(.*in use.*\): end"
    ):
        ZmqInbox(print, port=received.port)


def test_inbox_on_an_address_that_is_not_of_this_machine_says_so():
    with pytest.raises(AddressUnavailable, match=r"192\.0\.2\.1 cannot be used"):
        ZmqInbox(print, listen=["192.0.2.1"])


def test_inbox_that_never_started_gives_its_port_back():
    inbox = ZmqInbox(print)
    inbox.close()
    assert inbox._socket.closed


def test_keys_survive_as_text():
    keys = KeyPair.generate()
    assert KeyPair.from_text(keys.to_text() + "\n") == keys
    assert keys.secret not in repr(keys)


@pytest.mark.parametrize("text", ["", "a b", "é" * 40 + " " + "é" * 40, "x" * 40 + " " + "\\" * 40])
def test_text_that_is_no_keys_is_refused(text):
    with pytest.raises(ValueError, match="these are no CURVE keys"):
        KeyPair.from_text(text)


def test_keys_that_do_not_belong_together_are_refused():
    with pytest.raises(ValueError, match="these are no CURVE keys"):
        KeyPair.from_text(f"{KeyPair.generate().public} {KeyPair.generate().secret}")


def test_inboxes_of_one_context_can_be_opened_on_several_threads_at_once():
    context, together = zmq.Context(), threading.Barrier(8)
    with ThreadPoolExecutor(8) as pool:

        def opened():
            socket = context.socket(zmq.PULL)
            together.wait(DEADLINE_S)
            admit(socket, anybody)
            socket.close(linger=0)

        for done in [pool.submit(opened) for _ in range(8)]:
            done.result(DEADLINE_S)
