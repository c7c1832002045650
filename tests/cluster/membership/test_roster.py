"""The lifecycle of a worker as the coordinator sees it."""

import pytest

from cluster.membership.roster import LOST_AFTER_S, TRANSITIONS, IllegalEvent, Member, WorkerEvent, WorkerState
from protocol.messages import Join
from protocol.values import Peer

PATHS = {
    WorkerState.STARTING: (),
    WorkerState.JOINED: (WorkerEvent.JOIN,),
    WorkerState.LOADING: (WorkerEvent.JOIN, WorkerEvent.LOAD),
    WorkerState.READY: (WorkerEvent.JOIN, WorkerEvent.LOAD, WorkerEvent.LOADED),
    WorkerState.LOST: (WorkerEvent.LOSE,),
    WorkerState.STOPPED: (WorkerEvent.STOP,),
}
EVERY_PAIR = [(state, event) for state in WorkerState for event in WorkerEvent]


def member_in(state: WorkerState) -> Member:
    member = Member("worker-0", memory_limit_bytes=1000)
    for event in PATHS[state]:
        member.apply(event)
    assert member.state is state
    return member


def join(pid: int = 7) -> Join:
    peer = Peer(endpoint="tcp://127.0.0.1:1", public_key="k" * 40)
    return Join(
        protocol=1, secret="s", name="worker-0", host="here", pid=pid, peer=peer, data=peer, memory_limit_bytes=1000
    )


@pytest.mark.parametrize(("state", "event"), [pair for pair in EVERY_PAIR if pair in TRANSITIONS])
def test_legal_event_moves_on(state, event):
    member = member_in(state)
    member.apply(event)
    assert member.state is TRANSITIONS[state, event]


@pytest.mark.parametrize(("state", "event"), [pair for pair in EVERY_PAIR if pair not in TRANSITIONS])
def test_illegal_event_raises_and_leaves_the_state(state, event):
    member = member_in(state)
    with pytest.raises(IllegalEvent, match=f"worker-0 is {state} and cannot {event}"):
        member.apply(event)
    assert member.state is state


@pytest.mark.parametrize("state", WorkerState)
def test_every_worker_can_be_lost_or_stopped_whatever_its_state(state):
    for event in (WorkerEvent.LOSE, WorkerEvent.STOP):
        member_in(state).apply(event)


def test_stopped_worker_never_comes_back():
    assert {target for (state, _), target in TRANSITIONS.items() if state is WorkerState.STOPPED} == {
        WorkerState.STOPPED
    }


def test_second_join_under_a_name_is_refused_and_the_first_stays():
    member = Member("worker-0", memory_limit_bytes=1000)
    member.admit(join(pid=7), now=0.0)
    with pytest.raises(IllegalEvent):
        member.admit(join(pid=8), now=1.0)
    assert member.pid == 7


def test_worker_that_has_not_joined_is_never_overdue():
    assert not member_in(WorkerState.STARTING).is_overdue(now=1e9)


@pytest.mark.parametrize("state", [WorkerState.JOINED, WorkerState.LOADING, WorkerState.READY])
def test_silent_worker_is_overdue_after_the_limit_and_not_before(state):
    member = Member("worker-0", memory_limit_bytes=1000)
    member.admit(join(), now=10.0)
    for event in PATHS[state][1:]:
        member.apply(event)
    assert not member.is_overdue(now=10.0 + LOST_AFTER_S)
    assert member.is_overdue(now=10.1 + LOST_AFTER_S)


@pytest.mark.parametrize("event", [WorkerEvent.LOSE, WorkerEvent.STOP])
def test_worker_that_is_gone_is_not_overdue_again(event):
    member = Member("worker-0", memory_limit_bytes=1000)
    member.admit(join(), now=0.0)
    member.apply(event)
    assert not member.is_overdue(now=1e9)


def test_time_in_which_nobody_listened_does_not_count_as_silence():
    member = Member("worker-0", memory_limit_bytes=1000)
    member.admit(join(), now=0.0)
    member.excuse(60.0, now=60.25)
    assert not member.is_overdue(now=60.25)
    assert member.is_overdue(now=60.25 + LOST_AFTER_S)


def test_excuse_never_reaches_into_the_future():
    member = Member("worker-0", memory_limit_bytes=1000)
    member.admit(join(), now=60.0)
    member.excuse(60.0, now=60.25)
    assert member.is_overdue(now=60.5 + LOST_AFTER_S)
