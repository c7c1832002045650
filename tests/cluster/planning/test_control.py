"""What the control plane does with what roster and deployment decide; a played mailbox and launcher, a virtual clock."""

import asyncio

import pytest

from cluster.membership.member import LOST_AFTER_S, Member, WorkerState
from cluster.membership.restarts import Restarts
from cluster.membership.roster import Roster
from cluster.planning.control import BEAT_EVERY_S, ControlPlane
from cluster.planning.deployment import SETTLE_S, Deployment
from cluster.planning.known_model import KnownModel
from cluster.settings import ModelSettings, Settings, WorkerSettings
from protocol.codec import PROTOCOL, Envelope
from protocol.errors import ModelError, TandemError, UsageError
from protocol.messages import (
    Beat,
    Cancel,
    Heartbeat,
    Inspected,
    InspectModel,
    Join,
    KeptPrefix,
    KnownPrefix,
    LinkLost,
    Loaded,
    LoadFailed,
    LoadStage,
    Prepared,
    PrepareStage,
    Rejected,
    SequenceFailed,
    Shutdown,
    StepOverdue,
    Tokens,
    Update,
    Welcome,
)
from protocol.values import LayerRange, Peer, Route
from strategy.memory import KvNeeds
from tests.support.virtual_time import run as run_in_virtual_time
from workers.zoo import make_tiny_model

SECRET = "ab" * 16
NUM_LAYERS = 8
NOTHING = KvNeeds(fixed_bytes=0, growth=(), snapshots=False)


def peer_of(name):
    return Peer(endpoint=f"tcp://{name}", public_key=f"{name:k<40}")


class PlayedMailbox:
    door = peer_of("coordinator")
    inbox = peer_of("inside")

    def __init__(self):
        self.epoch = 0
        self.told, self.sent, self.answered = [], [], []
        self.known = {}

    def open(self, deliver, closed):
        self.deliver, self.closed = deliver, closed

    def know(self, worker, peer):
        self.known[worker] = peer

    def forget(self, worker):
        self.known.pop(worker, None)

    def tell(self, worker, message):
        if worker in self.known:
            self.told.append((worker, message))

    def answer(self, peer, message):
        self.answered.append((peer.endpoint, message))

    def begin_epoch(self, workers):
        self.epoch += 1
        self.planned = workers
        return self.epoch

    def send(self, worker, message, buffers=()):
        self.sent.append((self.epoch, worker, message))

    def accepts(self, envelope):
        return envelope.epoch == self.epoch

    def close(self):
        self.known.clear()


class PlayedLauncher:
    def __init__(self):
        self.started, self.killed, self.dead = [], [], set()

    async def start(self, name, *, coordinator, token, memory_limit_bytes):
        self.started.append(name)
        self.dead.discard(name)

    def adopt(self, name, process):
        self.started.append(("adopted", name))

    def has_ended(self, name):
        return name in self.dead

    def kill(self, name):
        self.killed.append(name)

    async def end(self):
        self.dead.update(self.started)

    def die(self, name, status=-9):
        self.dead.add(name)
        self.ended(name, status)


class Heard:
    """A listener that remembers."""

    is_idle = True
    is_awaited = False

    def __init__(self):
        self.heard = []

    def __getattr__(self, name):
        return lambda value: self.heard.append((name, value))

    def names(self):
        return [name for name, _ in self.heard]


class Played:
    """A control plane whose workers the test plays; they join, inspect and load as told unless `mute`."""

    def __init__(self, path, *names, room=10**9, **options):
        settings = Settings(
            model=ModelSettings(path=str(path)), workers=tuple(WorkerSettings(name=name) for name in names)
        )
        self.mailbox, self.launcher, self.heard = PlayedMailbox(), PlayedLauncher(), Heard()
        roster = Roster([Member(name, memory_limit_bytes=room) for name in names], secret=SECRET, restarts=Restarts())
        self.control = ControlPlane(
            KnownModel(path, "digest", settings),
            mailbox=self.mailbox,
            launcher=self.launcher,
            roster=roster,
            deployment=Deployment(wanted=names, **options),
            now=asyncio.get_running_loop().time,
        )
        self.control.listener = self.heard
        self.control.open()
        self.mute = set()
        self._seen = self._heard = 0
        self._losses = dict.fromkeys(names, 0)
        self._tasks = [asyncio.create_task(self.control.run()), asyncio.create_task(self._play())]

    async def __aenter__(self):
        return self

    async def __aexit__(self, *_):
        for task in self._tasks:
            task.cancel()

    def receive(self, message, epoch=None, buffers=()):
        self.mailbox.deliver(Envelope(self.mailbox.epoch if epoch is None else epoch, message, buffers))

    def join(self, name, **changes):
        self.mute.discard(name)
        peer = peer_of(name)
        given = {"protocol": PROTOCOL, "secret": SECRET, "name": name, "host": "here", "pid": 7, "peer": peer}
        self.receive(Join(**given | {"data": peer, "memory_limit_bytes": 1} | changes), 0)

    def come_back(self, name):
        self._losses[name] += 1
        self.join(name, num_losses=self._losses[name])

    async def _play(self):
        while True:
            await asyncio.sleep(0.1)
            for name in self.control.roster.members:
                if name not in self.mute and self.control.roster.members[name].is_there:
                    self.receive(heartbeat(name), 0)
            for name, message in self.mailbox.told[self._heard :]:
                self._answer(name, message)
            self._heard = len(self.mailbox.told)
            for epoch, name, message in self.mailbox.sent[self._seen :]:
                if isinstance(message, LoadStage) and name not in self.mute and epoch == self.mailbox.epoch:
                    self.receive(loaded(name, message), epoch, (b"", b"") * num_routes(name, message))
            self._seen = len(self.mailbox.sent)

    def _answer(self, name, message):
        if name in self.mute:
            return
        if isinstance(message, InspectModel):
            self.receive(inspected(name))
        elif isinstance(message, PrepareStage):
            self.receive(Prepared(worker=name, layers=message.layers, read_bytes=1))

    async def ready(self):
        for name in self.control.roster.members:
            self.join(name)
        await asyncio.wait_for(self.control.starting.ended(), 10)

    async def until(self, condition, limit_s=60):
        async with asyncio.timeout(limit_s):
            while True:
                if condition():
                    return
                await asyncio.sleep(0.05)


def heartbeat(name, **counts):
    return Heartbeat(
        **dict.fromkeys(Heartbeat.__struct_fields__, 0)
        | {"worker": name, "oldest_step_s": None, "sent_bytes": {}}
        | counts
    )


def inspected(name):
    return Inspected(
        worker=name,
        architecture="llama",
        num_layers=NUM_LAYERS,
        legal_cuts=tuple(range(1, NUM_LAYERS)),
        why_not=None,
        batches=True,
        last_position_only=True,
        context_tokens=4096,
    )


def routes(name, plan):
    found = [plan.pipeline] if plan.pipeline else []
    return list(
        dict.fromkeys([*found, *(Route((s.worker,)) for s in plan.stages if s.worker == name and s.holds_full_model)])
    )


def num_routes(name, plan):
    return len(routes(name, plan))


def loaded(name, plan):
    kept = tuple(KeptPrefix(route=route, needs=NOTHING) for route in routes(name, plan))
    return Loaded(worker=name, weights_bytes=5, vocabulary_size=400, prefixes=kept)


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    return make_tiny_model("llama", tmp_path_factory.mktemp("models") / "llama", num_hidden_layers=NUM_LAYERS)


@pytest.fixture
def played(model):
    """Runs a scenario with a control plane of two workers, of others when their names are given."""

    def run(scenario, *names, **options):
        async def main():
            async with Played(model, *(names or ("alpha", "beta")), **options) as subject:
                await scenario(subject)

        run_in_virtual_time(main())

    return run


def scenario(*names, **options):
    """The test is a coroutine over a control plane of these workers."""

    def wrap(test):
        def run(played):
            played(test, *names, **options)

        run.__name__, run.__doc__ = test.__name__, test.__doc__
        return run

    return wrap


@scenario()
async def test_workers_are_welcomed_planned_and_their_heads_told_what_is_kept(subject):
    await subject.ready()
    plan = subject.control.plan
    assert [(stage.worker, stage.layers) for stage in plan.stages] == [("alpha", (0, 4)), ("beta", (4, 8))]
    assert plan.pipeline == Route(("alpha", "beta"))
    assert plan.holders == ("alpha", "beta")
    assert subject.heard.heard == [("plan_began", plan)]
    known = {message.route for _, _, message in subject.mailbox.sent if isinstance(message, KnownPrefix)}
    assert known == {Route(("alpha", "beta")), Route(("alpha",)), Route(("beta",))}


@scenario()
async def test_stranger_is_rejected_where_it_is(subject):
    subject.join("gamma", secret="a guess")
    assert [(at, type(message)) for at, message in subject.mailbox.answered] == [("tcp://gamma", Rejected)]


@scenario()
async def test_everybody_hears_twice_a_second_who_is_there(subject):
    subject.mute = {"alpha", "beta"}
    subject.join("alpha")
    subject.join("beta")
    await asyncio.sleep(4 * BEAT_EVERY_S)
    beats = [message for name, message in subject.mailbox.told if name == "alpha" and isinstance(message, Beat)]
    assert len(beats) >= 4
    assert beats[-1] == Beat(members=("alpha", "beta"), keys=("alpha".ljust(40, "k"), "beta".ljust(40, "k")))


@scenario()
async def test_reports_of_this_plan_go_to_the_listener_and_older_ones_nowhere(subject):
    await subject.ready()
    subject.heard.heard.clear()
    tokens = Tokens(updates=(Update(1, (5,), None),))
    subject.receive(tokens, epoch=0)
    subject.receive(tokens)
    subject.receive(SequenceFailed(sequence=1, message="?"))
    subject.receive(Cancel(sequence=1))
    assert subject.heard.names() == ["tokens", "failed"]


@scenario()
async def test_killed_worker_ends_the_plan_and_the_survivor_has_the_next(subject):
    await subject.ready()
    subject.launcher.die("beta")
    name, loss = subject.heard.heard[-1]
    assert (name, loss.workers) == ("plan_ended", ("beta",))
    assert subject.control.plan is None
    await subject.until(lambda: subject.control.plan)
    assert subject.control.plan.workers == ("alpha",)
    assert subject.control.plan.epoch > 1
    assert subject.control.missing == ("beta",)


@scenario()
async def test_worker_that_died_is_started_again_and_taken_in_when_it_is_quiet(subject):
    await subject.ready()
    subject.launcher.die("beta")
    await subject.until(lambda: "beta" in subject.launcher.started)
    subject.heard.is_idle = False
    subject.come_back("beta")
    await asyncio.sleep(2 * SETTLE_S)
    assert subject.control.plan.workers == ("alpha",)
    subject.heard.is_idle = True
    await subject.until(lambda: subject.control.plan and subject.control.plan.workers == ("alpha", "beta"))
    what = [event.what.split()[0] for event in subject.control.events.latest]
    assert what == ["joined", "joined", "replanned,", "lost", "replanned,", "joined", "replanned,"]


@scenario()
async def test_silent_worker_is_killed_and_its_requests_go_on_elsewhere(subject):
    await subject.ready()
    subject.mute = {"beta"}
    await asyncio.sleep(LOST_AFTER_S + 1)
    assert subject.launcher.killed == ["beta"]
    assert subject.control.plan.workers == ("alpha",)


@scenario()
async def test_what_nobody_asked_to_be_read_is_not_noted_as_read(subject):
    await subject.ready()
    held = subject.control.members["beta"].held
    for start in range(100):
        subject.receive(Prepared(worker="beta", layers=LayerRange(start, start + 1), read_bytes=1))
    assert subject.control.members["beta"].held == held


@scenario()
async def test_lost_link_begins_a_new_epoch_with_the_same_workers_and_nobody_died(subject):
    await subject.ready()
    subject.receive(LinkLost(worker="alpha", peer="beta", why="closed"))
    await subject.until(lambda: subject.control.plan and subject.control.epoch == 2)
    (loss,) = [value for name, value in subject.heard.heard if name == "plan_ended"]
    assert loss.workers == ()
    assert subject.control.plan.workers == ("alpha", "beta")
    assert "lost the link from alpha to beta: closed" in [event.what for event in subject.control.events.latest]


@scenario()
async def test_link_that_broke_because_a_worker_died_counts_as_its_death(subject):
    await subject.ready()
    subject.receive(LinkLost(worker="alpha", peer="beta", why="closed"))
    subject.launcher.die("beta")
    (loss,) = [value for name, value in subject.heard.heard if name == "plan_ended"]
    assert loss.workers == ("beta",)


@scenario()
async def test_closed_connection_of_a_living_worker_is_no_death_and_it_comes_back(subject):
    await subject.ready()
    subject.mailbox.closed("beta", "the connection closed")
    await subject.until(lambda: subject.control.plan and subject.control.plan.workers == ("alpha",))
    subject.come_back("beta")
    await subject.until(lambda: subject.control.plan and subject.control.plan.workers == ("alpha", "beta"))
    assert subject.launcher.killed == []
    assert all(value.workers == () for name, value in subject.heard.heard if name == "plan_ended")


@scenario()
async def test_worker_that_was_given_up_is_told_so_at_once(subject):
    await subject.ready()
    subject.mailbox.closed("beta", "the connection closed")
    await subject.until(lambda: subject.control.plan and subject.control.plan.workers == ("alpha",))
    assert ("beta", Beat(members=("alpha",), keys=("alpha".ljust(40, "k"),))) in subject.mailbox.told


@scenario()
async def test_closed_connection_of_a_process_that_ended_is_its_death(subject):
    await subject.ready()
    subject.launcher.dead.add("beta")
    subject.mailbox.closed("beta", "the connection closed")
    await subject.until(lambda: "plan_ended" in subject.heard.names())
    assert subject.heard.heard[1][1].workers == ("beta",)


@scenario()
async def test_overdue_step_of_which_nobody_is_stuck_begins_a_new_epoch(subject):
    await subject.ready()
    subject.receive(StepOverdue(worker="alpha", route=Route(("alpha", "beta")), number=3, seconds=6.0))
    await subject.until(lambda: subject.control.plan and subject.control.epoch == 2)
    assert subject.control.plan.workers == ("alpha", "beta")


@scenario()
async def test_overdue_step_is_blamed_on_who_is_stuck(subject):
    await subject.ready()
    subject.mute = {"beta"}
    subject.receive(heartbeat("beta", oldest_step_s=5.5, overdue_s=5.0), 0)
    subject.receive(StepOverdue(worker="alpha", route=Route(("alpha", "beta")), number=3, seconds=6.0))
    await subject.until(lambda: subject.control.plan and subject.control.plan.workers == ("alpha",))
    assert subject.launcher.killed == ["beta"]


@scenario()
async def test_nothing_is_sent_to_who_is_not_in_the_plan(subject):
    await subject.ready()
    subject.launcher.die("beta")
    count = len(subject.mailbox.sent)
    subject.control.send("beta", Cancel(sequence=1))
    assert len(subject.mailbox.sent) == count


@scenario()
async def test_failed_load_ends_the_start_with_its_sentence(subject):
    subject.join("alpha")
    subject.receive(LoadFailed(worker="alpha", message="the model is damaged"))
    with pytest.raises(ModelError, match="the model is damaged"):
        await subject.control.starting.ended()


@scenario()
async def test_newcomer_that_cannot_read_in_advance_is_started_anew_and_says_why(subject):
    await subject.ready()
    subject.launcher.die("beta")
    await subject.until(lambda: "beta" in subject.launcher.started)
    subject.mute = {"beta"}
    subject.come_back("beta")
    await subject.until(
        lambda: any(name == "beta" and isinstance(said, PrepareStage) for name, said in subject.mailbox.told)
    )
    subject.receive(LoadFailed(worker="beta", message="the disk has no room"), 0)
    assert subject.launcher.killed == ["beta"]
    assert "refused beta: the disk has no room" in [event.what for event in subject.control.events.latest]
    assert subject.control.plan.workers == ("alpha",)
    subject.receive(LoadFailed(worker="alpha", message="it was of an earlier plan"), 0)
    assert subject.launcher.killed == ["beta"]


@scenario()
async def test_start_ends_with_its_plan_also_when_that_was_lost_before_anybody_looked(subject):
    await subject.ready()
    subject.mute = {"alpha", "beta"}
    subject.receive(LinkLost(worker="alpha", peer="beta", why="closed"))
    await subject.until(lambda: subject.control.plan is None)
    assert (await subject.control.starting.ended()).workers == ("alpha", "beta")


@scenario()
async def test_worker_that_ends_during_the_start_ends_it(subject):
    subject.join("alpha")
    subject.launcher.die("beta", 1)
    with pytest.raises(TandemError, match="worker beta ended unexpectedly"):
        await subject.control.starting.ended()


@scenario("alpha", "beta", room=10)
async def test_start_that_cannot_be_planned_says_why(subject):
    subject.join("alpha")
    subject.join("beta")
    with pytest.raises(UsageError, match="do not fit"):
        await subject.control.starting.ended()


@scenario()
async def test_mend_starts_who_is_missing(subject):
    await subject.ready()
    for _ in range(5):
        subject.launcher.die("beta")
        await subject.until(lambda: subject.control.plan)
        if subject.control.roster.left_out:
            break
        await subject.until(lambda: subject.control.roster.members["beta"].state is WorkerState.JOINING)
        subject.come_back("beta")
        await subject.until(lambda: subject.control.plan and "beta" in subject.control.plan.workers, 200)
    assert subject.control.roster.left_out == {"beta"}
    assert subject.control.mend() == ["beta"]
    await subject.until(lambda: subject.control.roster.members["beta"].state is WorkerState.JOINING)


@scenario()
async def test_stop_tells_every_worker_and_is_the_end_of_all(subject):
    await subject.ready()
    await subject.control.stop()
    assert [(name, message) for name, message in subject.mailbox.told if isinstance(message, Shutdown)] == [
        ("alpha", Shutdown(why="the cluster was stopped")),
        ("beta", Shutdown(why="the cluster was stopped")),
    ]
    assert {member.state for member in subject.control.roster.members.values()} == {WorkerState.STOPPED}


@scenario()
async def test_stop_does_not_wait_for_a_worker_that_is_still_starting(subject):
    subject.join("alpha")
    await subject.control.stop()
    assert subject.launcher.killed == ["beta"]


@scenario("alpha", "beta", waits_until=1e9)
async def test_worker_that_outlived_its_coordinator_is_welcomed_with_what_it_holds(subject):
    subject.join("alpha", model="digest", held=((0, 8),))
    assert subject.control.roster.members["alpha"].held == ((0, 8),)
    assert isinstance(subject.mailbox.told[0][1], Welcome)
