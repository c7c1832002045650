"""Who runs and who waits: in order of arrival, within counts, memory and what the plan in force can serve."""

import asyncio

import pytest
from hypothesis import given
from hypothesis import strategies as st

from cluster.serving.admission import Admission, NotNow
from protocol.errors import BadRequest, QueueFull, Unavailable
from strategy.decision import Decision
from strategy.memory import KvNeeds
from strategy.situation import Strategy
from strategy.vocabulary import Route

ROOM = {"alpha": 100, "beta": 100}


def decision_of(needed=0, worker="alpha"):
    return Decision(
        strategy=Strategy.SINGLE_DEVICE_CACHED,
        route=Route((worker,)),
        cached=True,
        bytes_by_worker={worker: needed},
        caches={worker: (KvNeeds(fixed_bytes=needed, growth=(), snapshots=False),)},
        num_tokens=1,
        most_tokens=1,
        reason="",
        forecast=None,
        candidates=(),
    )


def wanting(needed=0):
    return lambda: decision_of(needed)


def open_admission(max_running=1, max_waiting=3):
    admission = Admission(max_running=max_running, max_waiting=max_waiting)
    admission.begin(ROOM, 0.0)
    return admission


def arrive(admission, count, needed=0):
    return [admission.enter(wanting(needed), 0.0) for _ in range(count)]


def running(places):
    return [place.decision is not None for place in places]


def test_places_are_given_in_order_of_arrival():
    admission = open_admission()
    places = arrive(admission, 4)
    for turn, place in enumerate(places):
        assert running(places) == [number == turn for number in range(4)]
        admission.leave(place, 0.0)
        place.decision = None


def test_newcomer_beyond_the_waiting_places_is_refused_with_a_time_to_come_back():
    admission = open_admission(max_running=2, max_waiting=1)
    arrive(admission, 3)
    with pytest.raises(QueueFull, match="2 requests run and 1 wait") as refused:
        admission.enter(wanting(), 0.0)
    assert refused.value.retry_after_s


def test_who_leaves_the_queue_frees_its_place_there():
    admission = open_admission(max_waiting=1)
    first, second = arrive(admission, 2)
    admission.leave(second, 0.0)
    (third,) = arrive(admission, 1)
    admission.leave(first, 0.0)
    assert running([third]) == [True]


def test_later_and_smaller_request_does_not_overtake_one_that_waits_for_memory():
    admission = open_admission(max_running=9)
    first, large, small = [*arrive(admission, 1, 50), *arrive(admission, 1, 60), *arrive(admission, 1, 10)]
    assert running([first, large, small]) == [True, False, False]
    admission.leave(large, 0.0)
    assert running([small]) == [True]


def test_request_that_this_plan_cannot_serve_holds_nobody_up_and_is_asked_again_on_the_next():
    admission = open_admission()
    possible = False

    def decide():
        if not possible:
            raise NotNow("too small")
        return decision_of()

    place = admission.enter(decide, 7.0)
    (other,) = arrive(admission, 1)
    assert (place.lacks_plan_since, other.lacks_plan_since) == (7.0, None)
    assert running([place, other]) == [False, True]
    assert admission.lacking_since == 7.0
    assert not admission.is_idle
    possible = True
    admission.suspend(8.0)
    admission.begin(ROOM, 9.0)
    assert running([place, other]) == [True, False]
    assert admission.lacking_since is None


def test_what_is_refused_is_refused_at_once_also_behind_a_queue_and_takes_no_place():
    admission = open_admission()

    def decide():
        raise BadRequest("no such thing")

    places = arrive(admission, 2)
    for _ in range(5):
        with pytest.raises(BadRequest):
            admission.enter(decide, 0.0)
    admission.leave(places[0], 0.0)
    assert running(places) == [True, True]


def test_how_it_runs_is_decided_when_its_turn_comes():
    admission = open_admission()
    (first,) = arrive(admission, 1)
    workers = iter(["alpha", "beta"])
    second = admission.enter(lambda: decision_of(0, next(workers)), 0.0)
    admission.leave(first, 0.0)
    assert second.decision.route.head == "beta"
    assert admission.load == {"alpha": 0, "beta": 1}


# --- over plans


def test_without_a_plan_everybody_waits_in_order_and_says_since_when():
    admission = Admission(max_running=1, max_waiting=2)
    first, second = admission.enter(wanting(), 1.0), admission.enter(wanting(), 2.0)
    assert (first.lacks_plan_since, second.lacks_plan_since, admission.lacking_since) == (1.0, 2.0, 1.0)
    with pytest.raises(QueueFull):
        admission.enter(wanting(), 3.0)
    assert admission.begin(ROOM, 4.0) == 0
    assert running([first, second]) == [True, False]
    assert first.lacks_plan_since is second.lacks_plan_since is None


def test_who_ran_goes_on_before_whoever_waited_and_in_order():
    admission = open_admission(max_running=2)
    places = arrive(admission, 4)
    admission.suspend(1.0)
    assert running(places) == [False] * 4
    assert admission.begin(ROOM, 2.0) == 2
    assert running(places) == [True, True, False, False]


def test_room_and_load_are_the_new_plan_s_whoever_leaves_late():
    admission = open_admission(max_running=9)
    first, second = arrive(admission, 2, 50)
    admission.suspend(1.0)
    admission.leave(first, 1.0)  # it held 50 of the old plan
    admission.begin({"alpha": 60}, 2.0)
    (third,) = arrive(admission, 1, 50)
    assert running([second, third]) == [True, False]
    assert admission.load == {"alpha": 1}
    admission.leave(second, 3.0)
    assert running([third]) == [True]


def test_who_ran_counts_for_no_waiting_place():
    admission = open_admission(max_running=3, max_waiting=1)
    arrive(admission, 3)
    admission.suspend(1.0)
    admission.enter(wanting(), 1.0)
    with pytest.raises(QueueFull):
        admission.enter(wanting(), 1.0)


@given(st.lists(st.sampled_from(["enter", "leave", "suspend", "begin"]), max_size=40), st.data())
def test_room_and_counts_are_never_exceeded_and_nothing_is_forgotten(steps, data):
    admission = Admission(max_running=3, max_waiting=50)
    places, in_force = [], False
    for step in steps:
        if step == "enter":
            places.append(admission.enter(wanting(data.draw(st.integers(0, 100))), 0.0))
        elif step == "leave" and places:
            admission.leave(places.pop(data.draw(st.integers(0, len(places) - 1))), 0.0)
        elif step == "suspend" and in_force:
            admission.suspend(0.0)
            in_force = False
        elif step == "begin" and not in_force:
            admission.begin(ROOM, 0.0)
            in_force = True
        held = [place for place in places if place.decision is not None]
        assert len(held) <= (3 if in_force else 0)
        assert sum(place.decision.bytes_by_worker["alpha"] for place in held) <= ROOM["alpha"]
        assert admission.load.total() == len(held)
        if in_force and len(held) < 3 and len(held) < len(places):
            first = next(place for place in places if place.decision is None)
            used = sum(place.decision.bytes_by_worker["alpha"] for place in held)
            assert first.decide().bytes_by_worker["alpha"] > ROOM["alpha"] - used
            assert all(place.decision is None for place in places if place.turn > first.turn and not place.has_run)


# --- the end


def test_close_refuses_who_waits_and_who_comes_but_lets_the_running_finish():
    async def scenario():
        admission = open_admission()
        first, waiting = arrive(admission, 2)
        admission.close()
        assert isinstance(waiting.error, Unavailable)
        assert waiting.changed.is_set()
        with pytest.raises(Unavailable, match="stopping"):
            admission.enter(wanting(), 0.0)
        drained = asyncio.create_task(admission.drained())
        await asyncio.sleep(0)
        assert not drained.done()
        admission.leave(first, 0.0)
        await drained

    asyncio.run(scenario())


def test_who_lost_its_plan_is_waited_for_when_closing():
    async def scenario():
        admission = open_admission()
        (first,) = arrive(admission, 1)
        admission.suspend(0.0)
        admission.close()
        drained = asyncio.create_task(admission.drained())
        await asyncio.sleep(0)
        assert not drained.done()
        assert first.error is None
        admission.begin(ROOM, 1.0)
        assert running([first]) == [True]
        admission.leave(first, 2.0)
        await drained

    asyncio.run(scenario())


def test_nothing_running_is_drained_at_once():
    asyncio.run(asyncio.wait_for(open_admission().drained(), 1))


def test_client_with_one_request_waits_for_one_of_another_that_has_many():
    admission = open_admission(max_waiting=500)
    many = [admission.enter(wanting(), 0.0, "many") for _ in range(200)]
    one = admission.enter(wanting(), 0.0, "one")
    admission.leave(many[0], 0.0)
    assert running([one, *many[1:3]]) == [True, False, False]


def test_clients_take_turns_and_each_in_its_order():
    admission = open_admission(max_waiting=500)
    held = admission.enter(wanting(), 0.0, "z")
    places = {f"{client}{number}": admission.enter(wanting(), 0.0, client) for client in "abc" for number in range(3)}
    given = []
    while len(given) < len(places):
        admission.leave(held, 0.0)
        ((name, held),) = [(name, place) for name, place in places.items() if place.decision and name not in given]
        given.append(name)
    assert given == ["a0", "b0", "c0", "a1", "b1", "c1", "a2", "b2", "c2"]


def test_client_that_comes_back_has_no_claim_from_when_it_was_away():
    admission = open_admission(max_waiting=500)
    (held,) = [admission.enter(wanting(), 0.0, "a")]
    waiting = [admission.enter(wanting(), 0.0, "a") for _ in range(5)]
    for place in waiting[:3]:
        admission.leave(held, 0.0)
        held = place
    late = [admission.enter(wanting(), 0.0, "b") for _ in range(3)]
    admission.leave(held, 0.0)
    assert running([late[0], waiting[3]]) == [True, False]
    admission.leave(late[0], 0.0)
    assert running([waiting[3], late[1]]) == [True, False]


def test_one_client_leaves_places_to_others():
    admission = open_admission(max_running=16, max_waiting=100)
    many = [admission.enter(wanting(), 0.0, "many") for _ in range(20)]
    assert sum(running(many)) == 14
    assert running([admission.enter(wanting(), 0.0, "one")]) == [True]


def test_who_was_refused_and_comes_when_told_is_let_in_though_the_queue_is_full():
    admission = open_admission(max_waiting=2)
    first, *_ = arrive(admission, 3)
    with pytest.raises(QueueFull) as refused:
        admission.enter(wanting(), 0.0)
    with pytest.raises(QueueFull):
        admission.enter(wanting(), 0.0)
    back = admission.enter(wanting(), refused.value.retry_after_s)
    assert running([first, back]) == [True, False]


def test_who_goes_on_is_let_in_though_the_queue_is_full_and_counts_for_no_waiting_place():
    admission = open_admission(max_waiting=1)
    arrive(admission, 2)
    back = admission.enter(wanting(), 0.0, has_run=True)
    assert running([back]) == [False]
    with pytest.raises(QueueFull):
        arrive(admission, 1)
