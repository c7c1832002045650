"""A worker beside its engine: what it says to the coordinator and when, what reaches the engine, and how it ends."""

import threading

import msgspec
import pytest

from protocol.codec import Envelope
from protocol.home import Home
from protocol.joined import FILE, read_joined
from protocol.messages import (
    Beat,
    CloseSequence,
    Generate,
    Heartbeat,
    InspectModel,
    Join,
    KeepPrefix,
    LinkLost,
    ListModels,
    Message,
    ModelsListed,
    PrepareStage,
    Rejected,
    Row,
    Sampled,
    Shutdown,
    Step,
    StepFailed,
    StepsRecorded,
    Welcome,
    stages,
)
from protocol.transport import InProcessNetwork
from protocol.values import COORDINATOR, LayerRange, Peer, Route, Sampling
from tests.support.load_stages import load_stage
from workers.attachment import BEAT_LIMIT_S, JOIN_EVERY_S
from workers.engine.arrivals import Adrift
from workers.engine.timeline import Timeline
from workers.worker import FROM_WORKERS, HEARTBEAT_S, Worker, WorkerOptions

ORPHAN_S = 20.0
INBOX = Peer(endpoint="inbox", public_key="c")
ROUTE = Route(("worker-0", "worker-1"))
IDLE = Heartbeat(worker="worker-0")
PLAN = load_stage("digest", INBOX)
STEP = Step(number=1, route=ROUTE, slot=0, cached=True, rows=(Row(1, 0, True),), num_tokens=1)
REQUEST = Generate(sequence=1, route=ROUTE, cached=True, max_tokens=1, end_tokens=(), sampling=Sampling(), seed=0)


class FakeEngine:
    """Notes what it is handed."""

    def __init__(self, now):
        self.posted = []
        self.held = (None, ())
        self.plan_keys = ()
        self.timeline = Timeline(now)

    def admits(self, key):
        return key in self.plan_keys

    def post_of_worker(self, envelope):
        if envelope.number:
            self.post(envelope)
        return envelope.number > 0

    def post(self, envelope):
        self.posted.append(envelope)

    def heartbeat(self, now):
        return msgspec.structs.replace(IDLE, busy_s=now)

    @property
    def messages(self):
        return [envelope.message for envelope in self.posted]


class Played:
    """A worker on a manual clock, and its coordinator."""

    def __init__(self, tmp_path, *, is_guest=False):
        self.now = 50.0
        self.said, self.num_exits = [], 0
        self.network = InProcessNetwork()
        self.engine = FakeEngine(lambda: self.now)
        options = WorkerOptions(
            name="worker-0",
            coordinator=self.network.inbox("door", self._hear, key="c"),
            secret="s",
            memory_limit_bytes=1 << 30,
            orphan_s=ORPHAN_S,
            home=Home(tmp_path),
            is_guest=is_guest,
        )
        self.network.inbox("inbox", self._hear, key="c")
        self.peers = {}
        self.worker = Worker(
            options,
            engine=self.engine,
            outbox=self.network.outbox("w"),
            open_inbox=self._open_inbox,
            exit_later=self._exit_later,
            now=lambda: self.now,
        )
        self.worker.start()

    def _open_inbox(self, name, deliver, admits):
        self.peers[name] = self.network.inbox(f"worker-0's {name}", deliver, key="w", admits=admits)
        return self.peers[name]

    def _hear(self, envelope):
        assert envelope.key == "w"
        self.said.append(envelope.message)

    def admit(self):
        self.tell(Welcome(inbox=INBOX, door=INBOX))

    def _exit_later(self):
        self.num_exits += 1

    def tell(self, message, *, inbox="control", epoch=3, key="c"):
        self.network.outbox(key).send(self.peers[inbox], epoch, message)
        self.network.run()

    def pass_time(self, seconds, *, members=None):
        """Let the control thread do what is due, with Beats that name `members`; returns what it said with its times."""
        end, said = self.now + seconds, []
        while True:
            if members is not None:
                self.tell(Beat(members=members))
            wait_s = self.worker.turn(0.0)
            self.network.run()
            said += [(round(self.now, 3), message) for message in self.said]
            self.said.clear()
            if wait_s is None or self.now + wait_s > end:
                self.now = end
                return said
            self.now += wait_s


@pytest.fixture
def played(tmp_path):
    return Played(tmp_path)


def kinds(said):
    return [type(message) for _, message in said]


def joins(said):
    return [message for _, message in said if isinstance(message, Join)]


def test_it_joins_with_both_inboxes_and_nothing_held(played):
    (join,) = joins(played.pass_time(0.0))
    assert (join.name, join.secret, join.model, join.held) == ("worker-0", "s", None, ())
    assert (join.peer, join.data) == (played.peers["control"], played.peers["data"])


def test_it_says_which_models_lie_here_to_the_question_that_was_asked(played):
    played.admit()
    played.pass_time(1.0, members=("worker-0",))
    played.tell(ListModels(number=7))
    for thread in threading.enumerate():
        if thread.name == "models":
            thread.join()
    said = [message for _, message in played.pass_time(0.0) if isinstance(message, ModelsListed)]
    assert said == [ModelsListed(worker="worker-0", number=7, models=())]


def test_it_beats_every_half_second_with_what_the_engine_says_then(played):
    played.admit()
    said = played.pass_time(5.0, members=("worker-0",))
    beats = [(at, message) for at, message in said if isinstance(message, Heartbeat)]
    assert [at for at, _ in beats] == [50.0 + HEARTBEAT_S * count for count in range(11)]
    assert all(message.busy_s == at for at, message in beats)


def test_it_joins_until_a_beat_names_it(played):
    assert len(joins(played.pass_time(2.1))) == 1 + int(2.1 / JOIN_EVERY_S)
    assert joins(played.pass_time(10.0, members=("worker-0",))) == []


def test_without_beats_it_drops_what_runs_and_joins_with_what_it_holds(played):
    played.pass_time(1.0, members=("worker-0",))
    played.engine.held = ("digest", (LayerRange(2, 5),))
    said = played.pass_time(BEAT_LIMIT_S + 0.1)
    assert played.engine.messages == [Adrift()]
    (join,) = joins(said)
    assert (join.model, join.held) == ("digest", (LayerRange(2, 5),))
    assert joins(played.pass_time(5.0, members=("worker-0",))) == []
    assert played.engine.messages == [Adrift()]
    assert played.num_exits == 0


def test_beat_without_its_name_sets_it_adrift_at_once(played):
    played.pass_time(1.0, members=("worker-0",))
    said = played.pass_time(0.0, members=("worker-1",))
    assert len(joins(said)) == 1
    assert played.engine.messages == [Adrift()]


def test_orphan_ends_its_engine_and_its_process_once(played):
    played.pass_time(1.0, members=("worker-0",))
    played.pass_time(ORPHAN_S + 1)
    assert played.engine.messages == [Adrift(), Shutdown()]
    assert played.num_exits == 1
    assert played.worker.turn(0.0) is None


def test_refusal_before_it_belonged_ends_it(played):
    played.pass_time(0.0)
    played.tell(Rejected(reason="the token is not this cluster's"))
    assert played.worker.turn(0.0) is None
    assert played.engine.messages == [Shutdown()]
    assert played.num_exits == 1


def test_refusal_afterwards_does_not(played):
    played.pass_time(1.0, members=("worker-0",))
    played.tell(Rejected(reason="the name is taken"))
    assert len(joins(played.pass_time(BEAT_LIMIT_S))) == 1
    assert played.num_exits == 0


def test_shutdown_ends_it_once(played):
    played.pass_time(1.0, members=("worker-0",))
    played.tell(Shutdown())
    played.tell(Shutdown())
    assert played.engine.messages == [Shutdown()]
    assert played.num_exits == 1
    assert played.pass_time(5.0) == []


def test_what_is_about_models_and_requests_goes_to_the_engine_in_its_epoch(played):
    messages = [
        InspectModel(model="m", reply_to=INBOX),
        PLAN,
        REQUEST,
        PrepareStage(model="m", layers=LayerRange(0, 1), reply_to=INBOX),
    ]
    for message in messages:
        played.tell(message, epoch=9)
    assert [envelope.epoch for envelope in played.engine.posted] == [9] * 4
    assert played.engine.messages == messages


def test_welcome_and_beats_are_not_the_engine_s(played):
    played.tell(Welcome(inbox=INBOX, door=INBOX))
    played.pass_time(1.0, members=("worker-0",))
    assert played.engine.messages == []


def test_other_workers_can_speak_of_sequences_and_of_nothing_else(played):
    allowed = [
        CloseSequence(sequence=1, route=ROUTE),
        KeepPrefix(sequence=1, route=ROUTE, spans=()),
        Sampled(number=1, route=ROUTE, tokens=()),
        StepFailed(number=1, route=ROUTE, message="?"),
    ]
    refused = [
        Shutdown(),
        PLAN,
        REQUEST,
        InspectModel(model="m", reply_to=INBOX),
        Beat(members=()),
        Rejected(reason="?"),
        LinkLost(worker="worker-1", peer="worker-0", why="?"),
    ]
    played.engine.plan_keys = ("the key of worker-1",)
    links = played.network.links("worker-1", print, key="the key of worker-1")
    links.renew(3, 1, {"worker-0": played.peers["data"]})
    for message in (*refused, *allowed):
        links.send("worker-0", message)
        played.tell(message, inbox="data", key="the key of worker-1")  # not numbered
        played.tell(message, inbox="data", key="another")
    played.pass_time(0.0)
    assert played.engine.messages == allowed
    assert played.num_exits == 0


def test_only_the_coordinator_s_key_is_heard_at_the_control_inbox(played):
    for message in (PLAN, REQUEST, Shutdown(), Rejected(reason="?")):
        played.tell(message, key="w")
        played.tell(message, key="another")
    played.pass_time(0.0)
    assert (played.engine.messages, played.num_exits) == ([], 0)


def test_it_says_nothing_of_itself_until_it_is_admitted_but_that_it_wants_to_be(played):
    assert set(kinds(played.pass_time(2.0))) == {Join}
    played.admit()
    assert Heartbeat in kinds(played.pass_time(1.0))


def test_steps_are_said_while_beats_say_that_somebody_looks(played):
    played.admit()
    played.tell(Beat(members=("worker-0",)))
    played.engine.timeline.ended(STEP, ("7",), played.now, 0.1, None)
    assert StepsRecorded not in kinds(played.pass_time(1.0))
    played.tell(Beat(members=("worker-0",), watches_steps=True))
    assert kinds(played.pass_time(1.0, members=("worker-0",))).count(StepsRecorded) == 1


def test_what_the_coordinator_says_from_a_worker_s_place_counts_on_no_link(played):
    for sender, number in ((0, 7), (COORDINATOR, 1), (0, 0)):
        played.worker._deliver(Envelope(3, CloseSequence(sequence=1, route=ROUTE), (), sender, number))
    assert [(posted.sender, posted.number) for posted in played.engine.posted] == [(COORDINATOR, 1), (0, 0)]


def test_envelopes_keep_sender_and_number(played):
    played.worker._deliver_data(Envelope(3, CloseSequence(sequence=1, route=ROUTE), (), 1, 7))
    (posted,) = played.engine.posted
    assert (posted.sender, posted.number) == (1, 7)


def test_guest_keeps_its_way_back_once_it_is_welcome_and_not_before(tmp_path):
    played = Played(tmp_path, is_guest=True)
    played.pass_time(0)
    assert read_joined(Home(tmp_path)) == ()
    played.admit()
    played.pass_time(0)
    (joined,) = read_joined(Home(tmp_path))
    assert (joined.worker, joined.public_key, joined.endpoint) == ("worker-0", "c", "door")


def test_guest_that_cannot_keep_its_way_back_belongs_to_the_cluster_all_the_same(tmp_path, caplog):
    played = Played(tmp_path, is_guest=True)
    (tmp_path / FILE).mkdir()
    played.pass_time(0)
    played.admit()
    said = played.pass_time(HEARTBEAT_S, members=("worker-0",))
    assert any(isinstance(message, Heartbeat) for _, message in said)
    assert "needs the token again" in caplog.text


def test_worker_of_the_coordinators_own_host_keeps_no_way_back(played, tmp_path):
    played.admit()
    played.pass_time(0)
    assert read_joined(Home(tmp_path)) == ()


def test_everything_that_stages_tell_each_other_is_taken_from_other_workers():
    told = {
        kind
        for kind in vars(stages).values()
        if isinstance(kind, type) and issubclass(kind, Message) and kind is not Message
    }
    assert set(FROM_WORKERS) == told
