"""What a supervisor does about a coordinator that becomes ready, stops or dies; every pair of phase and happening."""

import itertools
import signal

import pytest

from cluster.membership.restarts import MANY_DEATHS
from cluster.supervision import (
    SHORT_LIFE_S,
    TRANSITIONS,
    EndCluster,
    Happening,
    Phase,
    StartAgain,
    Supervision,
    Terminate,
)
from protocol.errors import IllegalEvent

KILLED = -9


def in_phase(phase: Phase) -> Supervision:
    """A supervision that came to `phase` by events."""
    supervision = Supervision()
    steps = {
        Phase.STARTING: [],
        Phase.RUNNING: ["ready"],
        Phase.WAITING: ["ready", "die"],
        Phase.RESTARTING: ["ready", "die", "due"],
        Phase.STOPPING: ["ready", "ask"],
        Phase.ENDED: ["ready", "stop"],
    }[phase]
    acts = {
        "ready": lambda: supervision.ready(0.0),
        "die": lambda: supervision.ended(KILLED, 100.0),
        "due": lambda: supervision.handle_timer(100.0),
        "ask": supervision.asked_to_stop,
        "stop": lambda: supervision.ended(0, 100.0),
    }
    for step in steps:
        acts[step]()
    assert supervision.phase is phase
    return supervision


@pytest.mark.parametrize(("phase", "happening"), list(itertools.product(Phase, Happening)))
def test_every_pair_follows_the_table_or_is_refused_and_changes_nothing(phase, happening):
    supervision = in_phase(phase)
    following = TRANSITIONS.get((phase, happening))
    if following is None:
        with pytest.raises(IllegalEvent):
            supervision._apply(happening)
        assert supervision.phase is phase
    else:
        supervision._apply(happening)
        assert supervision.phase is following


@pytest.mark.parametrize("status", [KILLED, 1, 2, None])
def test_coordinator_that_dies_after_it_was_ready_is_started_again_at_once(status):
    supervision = in_phase(Phase.RUNNING)
    assert supervision.ended(status, 50.0) == ()
    assert supervision.next_timer == 50.0
    assert supervision.handle_timer(50.0) == (StartAgain(),)
    assert (supervision.phase, supervision.next_timer) == (Phase.RESTARTING, None)


def test_coordinator_that_dies_again_and_again_is_waited_for_longer_and_then_given_up():
    supervision = in_phase(Phase.RUNNING)
    supervision.ended(KILLED, 50.0)
    now, waits = 50.0, []
    for _ in range(MANY_DEATHS - 1):
        assert supervision.handle_timer(now) == (StartAgain(),)
        supervision.ended(KILLED, now)
        waits.append(supervision.next_timer - now)
        now = supervision.next_timer
    assert waits == [1.0, 2.0, 4.0, 8.0]
    supervision.handle_timer(now)
    assert supervision.ended(KILLED, now) == (EndCluster(1, gave_up=True),)
    assert supervision.phase is Phase.ENDED


def test_coordinator_that_served_is_started_again_at_once_however_often_it_is_killed():
    supervision = in_phase(Phase.RUNNING)
    for round_ in range(20):
        now = 5.0 * (round_ + 1)
        assert supervision.ended(KILLED, now) == ()
        assert supervision.handle_timer(now) == (StartAgain(),)
        supervision.ready(now + 1.0)


@pytest.mark.parametrize(("lived_s", "wait_s"), [(SHORT_LIFE_S / 2, 1.0), (SHORT_LIFE_S, 0.0)])
def test_death_right_after_it_was_ready_counts_as_a_short_life(lived_s, wait_s):
    supervision = Supervision()
    supervision.ready(10.0)
    supervision.ended(KILLED, 10.0 + lived_s)
    assert supervision.next_timer == 10.0 + lived_s + wait_s


def test_timer_does_nothing_before_its_time():
    supervision = in_phase(Phase.RUNNING)
    assert supervision.handle_timer(1e9) == ()
    supervision.ended(KILLED, 50.0)
    assert supervision.handle_timer(49.0) == ()
    assert supervision.phase is Phase.WAITING


@pytest.mark.parametrize(("status", "code"), [(2, 2), (1, 1), (KILLED, 1), (0, 0)])
def test_first_start_that_fails_is_the_end_with_its_code(status, code):
    assert Supervision().ended(status, 1.0) == (EndCluster(code),)


@pytest.mark.parametrize("status", [0, -signal.SIGTERM])
def test_stopped_coordinator_is_the_end(status):
    for phase in (Phase.RUNNING, Phase.RESTARTING, Phase.STOPPING):
        assert in_phase(phase).ended(status, 200.0) == (EndCluster(0),)


def test_stop_asks_the_coordinator_and_waits_for_it_however_it_ends():
    supervision = in_phase(Phase.RUNNING)
    assert supervision.asked_to_stop() == (Terminate(),)
    assert supervision.asked_to_stop() == (Terminate(),)
    assert supervision.ready(1.0) == ()
    assert supervision.ended(KILLED, 60.0) == (EndCluster(0),)


def test_stop_before_a_restart_ends_at_once():
    supervision = in_phase(Phase.WAITING)
    assert supervision.asked_to_stop() == (EndCluster(0),)
    assert supervision.next_timer is None


def test_adopted_coordinator_that_dies_is_started_again():
    supervision = Supervision(Phase.RUNNING)
    assert supervision.ended(None, 1.0) == ()
    assert supervision.handle_timer(1.0) == (StartAgain(),)
