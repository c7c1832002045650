"""Whom the control plane admits, what it believes, and when it gives a worker up; without processes or sockets."""

import asyncio

import msgspec
import pytest

from cluster.config import ModelSettings, Settings, WorkerSettings
from cluster.membership.roster import LOST_AFTER_S, WorkerEvent, WorkerState
from cluster.planning.control import ControlPlane
from protocol.codec import PROTOCOL, Envelope
from protocol.errors import ModelError, TandemError
from protocol.home import Home
from protocol.messages import (
    Cancel,
    Heartbeat,
    Join,
    LoadFailed,
    LoadProgress,
    Rejected,
    SequenceFailed,
    Shutdown,
    Tokens,
    Update,
    Welcome,
)
from protocol.values import Peer
from strategy.partition import ModelSizes, Stage
from strategy.vocabulary import LayerRange

SECRET = "a secret"


class FakeOutbox:
    def __init__(self):
        self.sent = []
        self.forgotten = []

    def send(self, peer, epoch, message, buffers=()):
        self.sent.append((peer.endpoint, message))

    def forget(self, peer):
        self.forgotten.append(peer.endpoint)

    def close(self):
        pass


class FakeListener:
    def __init__(self):
        self.heard = []

    def __getattr__(self, name):
        return lambda message: self.heard.append((name, message))


class Played:
    """A control plane of two workers whose messages the test sends."""

    def __init__(self, root):
        settings = Settings(
            model=ModelSettings(path="/model"),
            workers=(WorkerSettings(name="alpha"), WorkerSettings(name="beta", memory_limit=500)),
        )
        self.control = ControlPlane(settings, root / "model", Home(root), root)
        self.control._secret = SECRET
        self.control._outbox = self.outbox = FakeOutbox()
        self.control.listener = self.listener = FakeListener()

    def receive(self, message, epoch=0):
        self.control._receive(Envelope(epoch, message))

    def join(self, name, **changes):
        peer = Peer(endpoint=f"tcp://{name}", public_key="k" * 40)
        join = Join(
            protocol=PROTOCOL,
            secret=SECRET,
            name=name,
            host="here",
            pid=7,
            peer=peer,
            data=peer,
            memory_limit_bytes=1000,
        )
        self.receive(msgspec.structs.replace(join, **changes))

    def sent_to(self, name):
        return [message for endpoint, message in self.outbox.sent if endpoint == f"tcp://{name}"]

    def ready(self, *names):
        for name in names:
            self.join(name)
            for event in (WorkerEvent.LOAD, WorkerEvent.LOADED):
                self.control.members[name].apply(event)


@pytest.fixture
def played(tmp_path):
    return Played(tmp_path)


def test_expected_worker_is_welcomed(played):
    played.join("alpha")
    assert played.control.members["alpha"].state is WorkerState.JOINED
    assert isinstance(played.sent_to("alpha")[0], Welcome)


@pytest.mark.parametrize("changes", [{"secret": "a guess"}, {"protocol": PROTOCOL + 1}, {"name": "gamma"}])
def test_worker_with_a_wrong_token_version_or_name_is_rejected(played, changes):
    played.join(**{"name": "alpha"} | changes)
    assert {member.state for member in played.control.members.values()} == {WorkerState.STARTING}
    ((_, answer),) = played.outbox.sent
    assert isinstance(answer, Rejected)


def test_second_worker_under_a_name_is_rejected_where_it_is_and_the_first_stays(played):
    played.join("alpha")
    played.join("alpha", pid=8, peer=Peer(endpoint="tcp://intruder", public_key="k" * 40))
    assert played.control.members["alpha"].pid == 7
    assert isinstance(played.sent_to("intruder")[0], Rejected)


def test_reports_of_this_plan_go_to_the_listener_and_older_ones_nowhere(played):
    played.control.epoch = 2
    tokens = Tokens(updates=(Update(1, (5,), None),))
    played.receive(tokens, epoch=1)
    played.receive(tokens, epoch=2)
    played.receive(SequenceFailed(sequence=1, message="?"), epoch=2)
    assert [name for name, _ in played.listener.heard] == ["tokens", "failed"]


def test_bytes_read_so_far_are_told_while_the_model_loads(played):
    played.ready("alpha", "beta")
    control, told = played.control, []
    control.sizes = ModelSizes(layers=(10**9, 10**9), embedding=0, head=0, tied=False)
    control.stages = [
        Stage(worker=name, layers=LayerRange(at, at + 1), weights_bytes=10**9, holds_full_model=False)
        for at, name in enumerate(("alpha", "beta"))
    ]
    control._progress = told.append
    for worker, loaded_bytes in (("alpha", 5 * 10**8), ("beta", 7 * 10**8), ("alpha", 12 * 10**8)):
        played.receive(LoadProgress(worker=worker, loaded_bytes=loaded_bytes))
    amounts = ("0.5", "1.2", "1.9")
    assert told == [f"loading the model: {amount} of 2.0 GB" for amount in amounts]


def test_message_that_no_worker_sends_is_dropped(played):
    played.receive(Cancel(sequence=1))
    assert played.listener.heard == []


def test_heartbeat_of_a_stranger_is_ignored(played):
    beat = Heartbeat(**dict.fromkeys(Heartbeat.__struct_fields__, 0) | {"worker": "gamma"})
    played.receive(beat)
    assert all(member.heartbeat is None for member in played.control.members.values())


def test_silent_worker_is_lost_once(played):
    played.ready("alpha", "beta")
    now = played.control.members["beta"]._last_seen + LOST_AFTER_S + 1
    played.control.members["alpha"]._last_seen = now
    played.control._check_heartbeats(now, held_up_s=0.0)
    played.control._check_heartbeats(now + 1, held_up_s=0.0)
    assert played.control.members["beta"].state is WorkerState.LOST
    assert [event.what for event in played.control.events.latest] == [
        "worker beta does not answer; see ./launch.sh logs"
    ]
    assert played.outbox.forgotten == ["tcp://beta"]


def test_nobody_is_lost_because_the_coordinator_itself_was_held_up(played):
    played.ready("alpha", "beta")
    now = played.control.members["beta"]._last_seen + 60
    played.control._check_heartbeats(now, held_up_s=59.75)
    assert played.control.members["beta"].state is WorkerState.READY
    played.control._check_heartbeats(now + LOST_AFTER_S, held_up_s=0.0)
    assert played.control.members["beta"].state is WorkerState.LOST


def test_ended_process_loses_its_worker_at_once(played):
    played.ready("alpha", "beta")
    played.control._process_ended("alpha", -9)
    assert played.control.members["alpha"].state is WorkerState.LOST


def test_nothing_is_sent_to_a_lost_worker(played):
    played.ready("alpha", "beta")
    played.control._process_ended("alpha", -9)
    count = len(played.sent_to("alpha"))
    played.control.send("alpha", Cancel(sequence=1))
    assert len(played.sent_to("alpha")) == count


def test_failed_load_ends_the_wait_with_its_sentence(played):
    async def scenario():
        waiting = asyncio.create_task(played.control._until(lambda: False))
        await asyncio.sleep(0)
        played.join("alpha")
        played.receive(LoadFailed(worker="alpha", message="the model is damaged"))
        with pytest.raises(ModelError, match="the model is damaged"):
            await waiting

    asyncio.run(scenario())


def test_worker_that_ends_during_the_start_ends_the_wait(played):
    async def scenario():
        waiting = asyncio.create_task(played.control._until(lambda: False))
        await asyncio.sleep(0)
        played.control._process_ended("beta", 1)
        with pytest.raises(TandemError, match="worker beta ended unexpectedly"):
            await waiting

    asyncio.run(scenario())


def test_worker_that_never_joins_is_named(played, monkeypatch):
    monkeypatch.setattr("cluster.planning.control._JOIN_TIMEOUT_S", 0.01)
    played.join("alpha")
    with pytest.raises(TandemError, match="beta did not join"):
        asyncio.run(played.control._until(lambda: False))


def test_worker_that_joined_may_load_for_as_long_as_it_needs(played, monkeypatch):
    monkeypatch.setattr("cluster.planning.control._JOIN_TIMEOUT_S", 0.01)
    played.join("alpha")
    played.join("beta")
    rounds = iter(range(5))
    asyncio.run(played.control._until(lambda: next(rounds) == 4))


def test_stop_tells_every_worker_and_is_the_end_of_all(played):
    played.ready("alpha", "beta")
    asyncio.run(played.control.stop())
    assert isinstance(played.sent_to("alpha")[-1], Shutdown)
    assert {member.state for member in played.control.members.values()} == {WorkerState.STOPPED}


class FakeProcess:
    def __init__(self):
        self.is_killed = False

    def kill(self):
        self.is_killed = True

    async def end(self):
        pass


def test_stop_does_not_wait_for_a_worker_that_is_still_starting(played):
    played.join("alpha")
    joined, starting = FakeProcess(), FakeProcess()
    played.control.processes = {"alpha": joined, "beta": starting}
    asyncio.run(played.control.stop())
    assert (joined.is_killed, starting.is_killed) == (False, True)
