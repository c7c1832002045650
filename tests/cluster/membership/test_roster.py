"""Who is there, who is lost when, and who is started again: every event in every state, by a manual clock."""

import msgspec
import pytest

from cluster.membership.invitations import NotInvited
from cluster.membership.member import LOST_AFTER_S, TRANSITIONS, Member, WorkerEvent, WorkerLoad, WorkerState
from cluster.membership.restarts import Restarts
from cluster.membership.roster import (
    END_WITHIN_S,
    JOIN_WITHIN_S,
    MISSED_FOR_S,
    RETURN_WITHIN_S,
    Admitted,
    Gone,
    Kill,
    Lost,
    RefuseJoin,
    Roster,
    Start,
)
from protocol.codec import PROTOCOL
from protocol.errors import IllegalEvent
from protocol.exits import BEGINS_ANEW
from protocol.messages import Heartbeat, Join, Loaded
from protocol.values import Peer

SECRET = "a secret"
S = WorkerState


def join(name="alpha", **changes):
    peer = Peer(endpoint=f"tcp://{name}", public_key="k" * 40)
    given = {"protocol": PROTOCOL, "secret": SECRET, "name": name, "host": "here", "pid": 7, "peer": peer, "data": peer}
    return Join(**given | {"memory_limit_bytes": 1000} | changes)


def beat(name="alpha", **counts):
    return Heartbeat(
        **dict.fromkeys(Heartbeat.__struct_fields__, 0)
        | {"worker": name, "oldest_step_s": None, "sent_bytes": {}}
        | counts
    )


@pytest.fixture
def roster():
    members = [Member(name, memory_limit_bytes=1000) for name in ("alpha", "beta")]
    return Roster(members, secret=SECRET, restarts=Restarts())


def starts(actions):
    return [action.name for action in actions if isinstance(action, Start)]


def ready(roster, *names, now=0.0):
    for name in names:
        roster.joined(join(name), now)
        for event in (WorkerEvent.LOAD, WorkerEvent.LOADED):
            roster.members[name].apply(event)


@pytest.mark.parametrize("event", WorkerEvent)
@pytest.mark.parametrize("state", WorkerState)
def test_every_event_in_every_state_moves_on_by_the_table_or_changes_nothing(state, event):
    member = Member("alpha", memory_limit_bytes=1)
    member.state = state
    if (state, event) in TRANSITIONS:
        member.apply(event)
        assert member.state is TRANSITIONS[state, event]
    else:
        with pytest.raises(IllegalEvent, match=f"is {state} and cannot {event}"):
            member.apply(event)
        assert member.state is state


def test_expected_worker_is_admitted(roster):
    assert roster.joined(join(), 0) == [Admitted("alpha")]
    assert [member.name for member in roster.there] == ["alpha"]
    assert roster.missing() == ("beta",)


@pytest.mark.parametrize("changes", [{"secret": "a guess"}, {"protocol": PROTOCOL + 1}, {"name": "gamma"}])
def test_worker_with_a_wrong_token_version_or_name_is_refused(roster, changes):
    (action,) = roster.joined(join(**{"name": "alpha"} | changes), 0)
    assert isinstance(action, RefuseJoin)
    assert not roster.there


def test_second_worker_under_a_name_is_refused_where_it_is_and_the_first_stays(roster):
    roster.joined(join(), 0)
    intruder = Peer(endpoint="tcp://intruder", public_key="k" * 40)
    assert roster.joined(join(pid=8, peer=intruder), 1) == [RefuseJoin(intruder, "alpha is there already")]
    assert roster.members["alpha"].join.pid == 7


def test_join_that_was_only_sent_again_changes_nothing_and_one_after_a_loss_begins_anew(roster):
    ready(roster, "alpha")
    assert roster.joined(join(), 1) == []
    assert roster.members["alpha"].state is S.READY
    assert roster.joined(join(num_losses=1), 2) == [Admitted("alpha")]
    assert roster.members["alpha"].state is S.JOINED


def test_silent_worker_is_lost_once_and_its_process_ended(roster):
    ready(roster, "alpha", "beta")
    roster.beat(beat("alpha"), LOST_AFTER_S)
    assert roster.tick(LOST_AFTER_S) == []
    lost, kill = roster.tick(LOST_AFTER_S + 0.1)
    assert (lost.name, lost.died, lost.was_silent, kill) == ("beta", True, True, Kill("beta"))
    assert "does not answer" in lost.sentence
    assert roster.tick(LOST_AFTER_S + 0.2) == []


def test_nobody_is_lost_because_nobody_listened(roster):
    ready(roster, "alpha")
    roster.excuse(60, 60)
    assert roster.tick(60) == []


def test_worker_that_beats_but_is_stuck_in_a_step_is_lost(roster):
    ready(roster, "alpha")
    roster.beat(beat("alpha", oldest_step_s=4.9, overdue_s=5.0), 1)
    assert roster.tick(1) == []
    lost, kill = roster.tick(1.25)  # what it was in then it still is
    assert (lost.name, lost.was_silent, kill) == ("alpha", False, Kill("alpha"))
    assert "stuck for 5.2 s" in lost.sentence


def test_worker_that_loads_may_take_as_long_as_it_reads_on(roster):
    roster.joined(join(), 0)
    roster.members["alpha"].apply(WorkerEvent.LOAD)
    for now in range(1000):
        roster.beat(beat("alpha", oldest_step_s=now % 100, overdue_s=120.0), now)
        assert roster.tick(now) == []
    roster.beat(beat("alpha", oldest_step_s=121.0, overdue_s=120.0), 1000)
    assert roster.tick(1000)[-1] == Kill("alpha")


def test_worker_that_is_stuck_in_a_step_of_the_plan_before_is_lost_while_its_load_waits(roster):
    ready(roster, "alpha")
    roster.members["alpha"].apply(WorkerEvent.LOAD)
    roster.beat(beat("alpha", oldest_step_s=5.1, overdue_s=5.0), 1)
    assert roster.tick(1)[-1] == Kill("alpha")


def test_join_that_arrives_after_its_process_ended_is_nobodys(roster):
    ready(roster, "alpha")
    roster.closed("alpha", 0)
    roster.process_ended("alpha", -9, 1)
    assert roster.joined(join(num_losses=1), 1) == []
    assert Start("alpha") in roster.tick(1 + RETURN_WITHIN_S)


def test_process_that_begins_anew_is_started_again_and_no_failure(roster):
    roster.joined(join(), 0)
    (lost,) = roster.process_ended("alpha", BEGINS_ANEW, 1)
    assert "begins anew" in lost.sentence
    assert Start("alpha") in roster.tick(2)


def test_ended_process_is_started_again_with_growing_waits_and_then_left_out(roster):
    now, waits = 0.0, []
    for _ in range(5):
        roster.joined(join(num_losses=0), now)
        (lost,) = roster.process_ended("alpha", -9, now)
        assert isinstance(lost, Lost)
        assert "status -9" in lost.sentence
        died_at = now
        while now < died_at + 100 and not (actions := roster.tick(now)):
            now += 0.25
        waits.append(now - died_at if actions else None)
    assert waits == [1.0, 2.0, 4.0, 8.0, None]
    assert roster.left_out == {"alpha"}
    assert roster.mend(now) == ["alpha"]
    assert roster.tick(now) == [Start("alpha")]
    assert not roster.left_out


def test_closed_connection_is_a_loss_that_may_come_back(roster):
    ready(roster, "alpha")
    (lost,) = roster.closed("alpha", 1)
    assert not lost.died
    assert roster.closed("alpha", 1) == []
    assert roster.joined(join(num_losses=1), 1.5) == [Admitted("alpha")]
    roster.beat(beat("alpha"), 1 + RETURN_WITHIN_S)
    assert roster.tick(1 + RETURN_WITHIN_S + 0.1) == []


def test_closed_connection_that_does_not_come_back_ends_the_process(roster):
    ready(roster, "alpha")
    roster.closed("alpha", 1)
    assert roster.tick(1 + RETURN_WITHIN_S) == []
    assert roster.tick(1 + RETURN_WITHIN_S + 0.1) == [Kill("alpha")]


def test_process_that_never_joins_is_ended(roster):
    roster.expect("alpha", JOIN_WITHIN_S, 0)
    assert roster.tick(JOIN_WITHIN_S) == []
    assert roster.tick(JOIN_WITHIN_S + 1) == [Kill("alpha")]


def test_worker_that_was_killed_is_started_again_only_after_it_ended(roster):
    ready(roster, "alpha", "beta")
    roster.tick(LOST_AFTER_S + 0.1)
    assert set(roster.mend(LOST_AFTER_S + 0.2)) == {"alpha", "beta"}
    assert not starts(roster.tick(LOST_AFTER_S + 0.3))
    roster.process_ended("alpha", -9, LOST_AFTER_S + 0.4)
    assert starts(roster.tick(LOST_AFTER_S + 2)) == ["alpha"]
    assert Kill("beta") in roster.tick(LOST_AFTER_S + 0.2 + END_WITHIN_S)


def test_figures_of_a_worker_that_has_loaded_are_known_before_it_beats_again(roster):
    roster.joined(join(), 0)
    roster.beat(beat(steps=7, oldest_step_s=4.0, overdue_s=300.0), 0)
    roster.members["alpha"].apply(WorkerEvent.LOAD)
    roster.members["alpha"].loaded(Loaded(worker="alpha", weights_bytes=50, vocabulary_size=400, read_bytes=60))
    told = roster.members["alpha"].heartbeat
    assert (told.weights_bytes, told.read_bytes, told.steps) == (50, 60, 7)
    assert (told.oldest_step_s, told.overdue_s) == (None, 0.0)
    roster.beat(beat(steps=8, read_bytes=5, weights_bytes=0), 1)  # sent before, arrived after
    told = roster.members["alpha"].heartbeat
    assert (told.weights_bytes, told.read_bytes, told.steps) == (50, 60, 8)


def test_first_heartbeat_that_was_sent_before_it_had_loaded_does_not_take_that_back(roster):
    roster.joined(join(), 0)
    roster.members["alpha"].apply(WorkerEvent.LOAD)
    roster.members["alpha"].loaded(Loaded(worker="alpha", weights_bytes=50, vocabulary_size=400, read_bytes=60))
    roster.beat(beat(steps=1), 1)
    told = roster.members["alpha"].heartbeat
    assert (told.weights_bytes, told.read_bytes, told.steps) == (50, 60, 1)


def test_heartbeat_of_a_stranger_or_of_who_was_given_up_means_nothing(roster):
    roster.beat(beat("gamma"), 0)
    ready(roster, "alpha")
    roster.process_ended("alpha", 1, 0)
    roster.beat(beat("alpha"), 1)
    assert roster.members["alpha"].heartbeat is None


def test_load_is_counted_between_two_heartbeats():
    earlier = beat(steps=10, rows=20, busy_s=1.0)
    later = msgspec.structs.replace(earlier, steps=30, rows=80, busy_s=1.25, queued=3)
    expected = WorkerLoad(busy_share=0.5, steps_per_s=40.0, batch_size=3.0, queue=3)
    assert WorkerLoad.between(earlier, later, 0.5) == expected
    assert WorkerLoad.between(later, earlier, 0.5) == WorkerLoad()


class Invited:
    """Guests that are let in by name."""

    def __init__(self, *names):
        self.allowed = set(names)
        self.names = set()

    def admit(self, join):
        if join.name not in self.allowed:
            raise NotInvited("no token")
        self.names.add(join.name)

    def left(self, name):
        self.names.discard(name)


@pytest.fixture
def guests():
    return Invited("studio")


@pytest.fixture
def open_roster(guests):
    return Roster([Member("alpha", memory_limit_bytes=1000)], secret=SECRET, restarts=Restarts(), guests=guests)


def guest(**changes):
    return join("studio", **{"secret": "anything", "memory_limit_bytes": 77} | changes)


def test_guest_becomes_a_member_with_the_memory_that_it_offers(open_roster):
    assert open_roster.joined(guest(), 0) == [Admitted("studio")]
    assert open_roster.members["studio"].memory_limit_bytes == 77
    assert open_roster.is_guest("studio")
    assert not open_roster.is_guest("alpha")


def test_uninvited_guest_is_told_why_and_leaves_nothing(open_roster):
    (refused,) = open_roster.joined(join("laptop"), 0)
    assert (type(refused), refused.reason) == (RefuseJoin, "no token")
    assert list(open_roster.members) == ["alpha"]


def test_guest_cannot_take_the_name_of_a_worker_of_the_configuration(open_roster, guests):
    guests.allowed.add("alpha")
    (refused,) = open_roster.joined(join("alpha", secret="anything"), 0)
    assert "the name of another worker" in refused.reason


def test_guest_that_was_started_again_takes_its_own_place(open_roster):
    open_roster.joined(guest(), 0)
    lost, admitted = open_roster.joined(guest(pid=8), 1)
    assert (type(lost), lost.died, admitted) == (Lost, True, Admitted("studio"))


def test_guest_that_leaves_is_missed_by_nobody(open_roster, guests):
    open_roster.joined(guest(), 0)
    lost, gone = open_roster.dismiss("studio", "left")
    assert (lost.name, gone) == ("studio", Gone(guest().peer, "worker studio left"))
    assert open_roster.missing() == ("alpha",)
    assert guests.names == set()


def test_worker_of_the_configuration_cannot_leave(open_roster):
    open_roster.joined(join("alpha"), 0)
    assert open_roster.dismiss("alpha", "left") == []
    assert "alpha" in open_roster.members


def test_lost_guest_is_missed_for_a_while_and_neither_killed_nor_started(open_roster):
    open_roster.joined(guest(), 0)
    lost, _ = open_roster.tick(LOST_AFTER_S + 1)
    assert lost.name == "studio"
    assert open_roster.missing() == ("alpha", "studio")
    assert open_roster.mend(LOST_AFTER_S + 2) == []
    assert open_roster.tick(LOST_AFTER_S + MISSED_FOR_S) == []
    assert [type(action) for action in open_roster.tick(LOST_AFTER_S + MISSED_FOR_S + 2)] == [Gone]
    assert open_roster.missing() == ("alpha",)


def test_lost_guest_comes_back_as_it_was(open_roster):
    open_roster.joined(guest(), 0)
    open_roster.closed("studio", 1)
    assert open_roster.joined(guest(num_losses=1), 2) == [Admitted("studio")]
    assert open_roster.missing() == ("alpha",)


def test_guest_whose_token_was_taken_back_has_to_go(open_roster, guests):
    open_roster.joined(guest(), 0)
    guests.names.clear()
    lost, gone = open_roster.tick(1)
    assert (type(lost), gone.why) == (Lost, "worker studio may not stay")
