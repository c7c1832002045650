"""A worker's membership as it sees it: every event in every state, and what time does."""

import pytest

from protocol.errors import IllegalEvent
from protocol.values import Peer
from workers.attachment import (
    BEAT_LIMIT_S,
    JOIN_EVERY_S,
    Attachment,
    BeatArrived,
    DropLinks,
    EndProcess,
    Reachable,
    Refused,
    SendJoin,
    State,
    Tick,
    Welcomed,
)

ORPHAN_S = 120.0
INBOX = Peer(endpoint="tcp://127.0.0.1:1", public_key="k")
NAMED = BeatArrived(epoch=7, members=("worker-0", "worker-1"))
NOT_NAMED = BeatArrived(epoch=7, members=("worker-1",))
REFUSED = Refused("the token is not this cluster's")
ORPHANED = EndProcess("the coordinator was not heard of for 120 s")


class Played:
    """An attachment and the clock."""

    def __init__(self, state=State.NEW):
        self.now = 1000.0
        self.attachment = Attachment("worker-0", orphan_s=ORPHAN_S)
        for event in PATHS[state]:
            self.attachment.handle(event, self.now)
        assert self.attachment.state is state

    @property
    def state(self):
        return self.attachment.state

    def handle(self, event, *, after_s=0.0):
        self.now += after_s
        return self.attachment.handle(event, self.now)

    def pass_time(self, seconds, *, beat=None):
        """Tick whenever it is due, with a Beat every half second where one is given; returns all actions with their times."""
        end, actions, next_beat = self.now + seconds, [], self.now
        while (due := self.attachment.next_timer()) is not None:
            if beat is not None and next_beat <= min(due, end):
                self.now = next_beat
                next_beat += 0.5
                actions += [(self.now, action) for action in self.attachment.handle(beat, self.now)]
            elif due <= end:
                self.now = due
                actions += [(self.now, action) for action in self.attachment.handle(Tick(), self.now)]
            else:
                break
        self.now = end
        return actions


PATHS = {
    State.NEW: (),
    State.JOINING: (Reachable(),),
    State.ATTACHED: (Reachable(), NAMED),
    State.ADRIFT: (Reachable(), NAMED, NOT_NAMED),
    State.ENDED: (Reachable(), REFUSED),
}

EVENTS = {
    "started": Reachable(),
    "welcomed": Welcomed(INBOX, INBOX),
    "refused": REFUSED,
    "beat that names it": NAMED,
    "beat that does not": NOT_NAMED,
    "beat of an older epoch": BeatArrived(epoch=-1, members=()),
    "tick": Tick(),
}

LEGAL = {
    (State.NEW, "started"): (State.JOINING, [SendJoin()]),
    (State.JOINING, "welcomed"): (State.JOINING, []),
    (State.JOINING, "refused"): (State.ENDED, [EndProcess(REFUSED.reason)]),
    (State.JOINING, "beat that names it"): (State.ATTACHED, []),
    (State.JOINING, "beat that does not"): (State.JOINING, []),
    (State.JOINING, "beat of an older epoch"): (State.JOINING, []),
    (State.JOINING, "tick"): (State.JOINING, []),
    (State.ATTACHED, "welcomed"): (State.ATTACHED, []),
    (State.ATTACHED, "refused"): (State.ATTACHED, []),
    (State.ATTACHED, "beat that names it"): (State.ATTACHED, []),
    (State.ATTACHED, "beat that does not"): (State.ADRIFT, [DropLinks(), SendJoin()]),
    (State.ATTACHED, "beat of an older epoch"): (State.ATTACHED, []),
    (State.ATTACHED, "tick"): (State.ATTACHED, []),
    (State.ADRIFT, "welcomed"): (State.ADRIFT, []),
    (State.ADRIFT, "refused"): (State.ADRIFT, []),
    (State.ADRIFT, "beat that names it"): (State.ATTACHED, []),
    (State.ADRIFT, "beat that does not"): (State.ADRIFT, []),
    (State.ADRIFT, "beat of an older epoch"): (State.ADRIFT, []),
    (State.ADRIFT, "tick"): (State.ADRIFT, []),
}


@pytest.mark.parametrize("event", EVENTS)
@pytest.mark.parametrize("state", State)
def test_every_event_in_every_state(state, event):
    played = Played(state)
    expected = LEGAL.get((state, event))
    if expected is None:
        with pytest.raises(IllegalEvent):
            played.handle(EVENTS[event])
        assert played.state is state
    else:
        actions = played.handle(EVENTS[event])
        assert (played.state, actions) == expected


@pytest.mark.parametrize("state", [State.JOINING, State.ADRIFT])
def test_it_asks_every_half_second_until_a_beat_names_it(state):
    played = Played(state)
    began = played.now
    asked = played.pass_time(2.0, beat=NOT_NAMED)
    assert asked == [(began + JOIN_EVERY_S * count, SendJoin()) for count in (1, 2, 3, 4)]
    played.handle(NAMED)
    assert played.pass_time(60.0, beat=NAMED) == []


def test_admitted_it_asks_again_only_when_no_beat_says_so():
    played = Played(State.JOINING)
    played.handle(Welcomed(INBOX, INBOX))
    assert played.pass_time(BEAT_LIMIT_S - 0.1) == []
    assert [action for _, action in played.pass_time(0.2)] == [SendJoin()]


def test_silence_of_three_seconds_sets_it_adrift_and_a_beat_takes_it_back():
    played = Played(State.ATTACHED)
    began = played.now
    assert played.pass_time(BEAT_LIMIT_S + 0.1) == [
        (began + BEAT_LIMIT_S, DropLinks()),
        (began + BEAT_LIMIT_S, SendJoin()),
    ]
    assert played.handle(NAMED) == []
    assert played.state is State.ATTACHED


def test_beats_in_time_keep_it_attached():
    played = Played(State.ATTACHED)
    for _ in range(10):
        assert played.handle(NAMED, after_s=BEAT_LIMIT_S - 0.1) == []
        assert played.handle(Tick()) == []


@pytest.mark.parametrize("state", [State.JOINING, State.ATTACHED, State.ADRIFT])
def test_without_any_beat_it_ends_after_its_time_as_an_orphan(state):
    played = Played(state)
    began = played.now
    actions = played.pass_time(ORPHAN_S + 10)
    assert actions[-1] == (began + ORPHAN_S, ORPHANED)
    assert played.state is State.ENDED
    assert played.attachment.next_timer() is None


def test_admissions_and_refusals_without_beats_do_not_keep_an_orphan():
    played = Played(State.ADRIFT)
    for _ in range(int(ORPHAN_S) - 1):
        played.handle(Welcomed(INBOX, INBOX), after_s=0.5)
        played.handle(Refused("busy"), after_s=0.5)
    assert played.pass_time(2.0)[-1][1] == ORPHANED


def test_orphan_that_may_wait_less_than_a_silence_takes_ends_without_drifting():
    attachment = Attachment("worker-0", orphan_s=1.0)
    attachment.handle(Reachable(), 0.0)
    attachment.handle(NAMED, 0.0)
    assert attachment.next_timer() == 1.0
    assert attachment.handle(Tick(), 1.0) == [EndProcess("the coordinator was not heard of for 1 s")]


def test_beat_of_a_coordinator_that_was_replaced_counts_for_nothing():
    played = Played(State.ATTACHED)
    old = BeatArrived(epoch=6, members=())
    assert played.handle(old, after_s=2.9) == []
    assert [action for _, action in played.pass_time(0.2)] == [DropLinks(), SendJoin()]
    assert played.handle(BeatArrived(epoch=8, members=("worker-0",))) == []
    assert played.state is State.ATTACHED
