"""The coordinator's mailbox over real sockets: who comes in by the door, and what members and strangers can say inside."""

import asyncio
import threading
from contextlib import closing

import msgspec
import psutil
import pytest

from cluster.membership.mailbox import ZmqMailbox
from protocol.errors import AddressUnavailable
from protocol.messages import Cancel, Heartbeat, Join, Rejected, Tokens, Update
from protocol.transport import KeyPair, ZmqOutbox
from protocol.values import Peer
from tests.support.received import DEADLINE_S, Received

BEAT = Heartbeat(worker="alpha")


class Played:
    """A mailbox on its loop, and what reached the coordinator."""

    def __init__(self):
        self.mailbox = ZmqMailbox(KeyPair.generate(), None, lambda: 1 << 32)
        self.heard = asyncio.Queue()
        self.mailbox.open(self.heard.put_nowait, lambda worker, why: None)

    async def next(self):
        return (await asyncio.wait_for(self.heard.get(), DEADLINE_S)).message


def join(keys, endpoint="tcp://127.0.0.1:9"):
    peer = Peer(endpoint=endpoint, public_key=keys.public)
    return Join(protocol=1, secret="?", name="alpha", host="h", pid=7, peer=peer, data=peer, memory_limit_bytes=1)


def on_a_loop(test):
    def run():
        async def whole():
            played = Played()
            try:
                await test(played)
            finally:
                played.mailbox.close()

        asyncio.run(whole())

    run.__name__ = test.__name__
    return run


@on_a_loop
async def test_strangers_are_heard_at_the_door_and_members_inside(played):
    keys = KeyPair.generate()
    with closing(ZmqOutbox(keys)) as outbox, closing(Received(keys=keys)) as received:
        outbox.send(played.mailbox.door, 0, Cancel(sequence=1))
        outbox.send(played.mailbox.door, 0, BEAT)
        outbox.send(played.mailbox.door, 0, join(KeyPair.generate()))
        outbox.send(played.mailbox.door, 0, join(keys, "ipc:///tmp/anything"))
        outbox.send(played.mailbox.door, 0, join(keys))
        assert await played.next() == join(keys)
        played.mailbox.know("alpha", received.peer)
        outbox.send(played.mailbox.inbox, 0, msgspec.structs.replace(BEAT, worker="beta"))
        outbox.send(played.mailbox.inbox, 0, msgspec.structs.replace(BEAT, busy_s=float("nan")))
        outbox.send(played.mailbox.inbox, 0, join(keys))
        outbox.send(played.mailbox.inbox, 0, BEAT)
        assert await played.next() == BEAT


@on_a_loop
async def test_stranger_that_knows_where_members_are_heard_is_not_heard_there(played):
    refused = threading.Event()
    with closing(ZmqOutbox(linger_ms=0)) as outbox:
        outbox.watch(played.mailbox.inbox, refused.set)
        outbox.send(played.mailbox.inbox, 1 << 32, Tokens(updates=(Update(1, (2,), "stop"),)))
        assert await asyncio.to_thread(refused.wait, DEADLINE_S)
    assert played.heard.empty()


@on_a_loop
async def test_what_is_of_the_plan_comes_from_the_worker_whose_place_it_says(played):
    alpha, beta = KeyPair.generate(), KeyPair.generate()
    with closing(Received(keys=alpha)) as of_alpha, closing(Received(keys=beta)) as of_beta:
        played.mailbox.know("alpha", of_alpha.peer)
        played.mailbox.know("beta", of_beta.peer)
        played.mailbox.begin_epoch(("alpha", "beta"))
        accepted = []
        for keys, sender in ((alpha, 0), (beta, 0), (beta, 1), (alpha, 7)):
            with closing(ZmqOutbox(keys)) as outbox:
                outbox.send(played.mailbox.inbox, 1 << 32, Tokens(updates=()))
                envelope = await asyncio.wait_for(played.heard.get(), DEADLINE_S)
            accepted.append(played.mailbox.accepts(msgspec.structs.replace(envelope, sender=sender)))
        assert accepted == [True, False, True, False]


@on_a_loop
async def test_many_wrong_joins_cost_few_answers(played):
    process = psutil.Process()
    before = process.num_fds()
    with closing(Received()) as received:
        for _ in range(500):
            played.mailbox.answer(received.peer, Rejected(reason="a wrong token"))
        assert process.num_fds() - before < 100
        assert received.next().message == Rejected(reason="a wrong token")


def test_it_finds_its_door_again():
    async def again():
        keys = KeyPair.generate()
        mailbox = ZmqMailbox(keys, None, lambda: 1)
        door = mailbox.door
        mailbox.close()
        while True:  # ZeroMQ gives a port back some time after its socket closed
            try:
                mailbox = ZmqMailbox(keys, int(door.endpoint.rpartition(":")[2]), lambda: 1)
                break
            except AddressUnavailable:
                await asyncio.sleep(0.01)
        mailbox.close()
        return door, mailbox.door

    one, other = asyncio.run(asyncio.wait_for(again(), DEADLINE_S))
    assert one == other


@pytest.mark.parametrize("name", ["door", "inbox"])
def test_both_are_at_this_machine_alone(name):
    async def endpoint():
        mailbox = ZmqMailbox(KeyPair.generate(), None, lambda: 1)
        mailbox.close()
        return getattr(mailbox, name).endpoint

    assert asyncio.run(endpoint()).startswith("tcp://127.0.0.1:")
