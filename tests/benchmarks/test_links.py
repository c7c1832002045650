"""Relays stand before workers' inboxes, and faults of links are planned over all of them."""

import os
import queue
import random
from collections import Counter
from contextlib import closing
from unittest import mock

from benchmarks import links
from benchmarks.support.relayed_worker import RelayedInbox
from benchmarks.support.relays import Relays
from protocol.messages import Shutdown
from protocol.transport import ZmqOutbox


def test_inbox_behind_a_relay_is_reached_through_it_alone(monkeypatch):
    arrived = queue.SimpleQueue()
    monkeypatch.setattr("sys.argv", ["worker", "--name", "worker-1", "--home", "/nowhere"])
    with (
        closing(Relays()) as relays,
        mock.patch.dict(os.environ, relays.environment),
        closing(RelayedInbox(arrived.put)) as inbox,
        closing(ZmqOutbox()) as outbox,
    ):
        inbox.start()
        assert inbox.peer.endpoint == relays.to("worker-1").endpoint
        relays.to("worker-1").cut()
        outbox.send(inbox.peer, 1, Shutdown())
        assert arrived.empty()
        relays.to("worker-1").heal()
        assert arrived.get(timeout=10).message == Shutdown()


def test_faults_are_of_every_kind_at_every_link_while_requests_are_under_way():
    faults = links.random_faults(random.Random(3), 30, 3)
    assert Counter(fault.kind for fault in faults) == dict.fromkeys(links.KINDS, 10)
    assert {fault.worker for fault in faults} == {0, 1, 2}
    assert {fault.trial.moment for fault in faults} == {"prefill", "decode"}
    assert all(request.strategy in links.STRATEGIES for fault in faults for request in fault.trial.requests)
