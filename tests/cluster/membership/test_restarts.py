"""Who is started again when, by a clock that the test holds."""

import pytest

from cluster.membership.restarts import LONGEST_DELAY_S, MANY_DEATHS, WINDOW_S, Restarts


def delays(restarts, *times, name="worker-0"):
    return [None if (due := restarts.died(name, now)) is None else due - now for now in times]


def test_death_after_a_long_life_is_answered_within_a_second():
    restarts = Restarts()
    assert delays(restarts, 0.0) == [1.0]
    assert delays(restarts, WINDOW_S + 1.0) == [1.0]


def test_each_further_death_waits_twice_as_long_and_the_fifth_within_five_minutes_is_the_last():
    restarts = Restarts()
    assert delays(restarts, 0.0, 10.0, 20.0, 30.0, 40.0) == [1.0, 2.0, 4.0, 8.0, None]
    assert restarts.left_out == {"worker-0"}
    assert delays(restarts, 10_000.0) == [None]


@pytest.mark.parametrize(("last", "out"), [(WINDOW_S, True), (WINDOW_S + 1.0, False)])
def test_five_minutes_are_counted_from_the_first_of_the_five(last, out):
    restarts = Restarts()
    delays(restarts, *[last * index / (MANY_DEATHS - 1) for index in range(MANY_DEATHS)])
    assert bool(restarts.left_out) is out


def test_wait_never_exceeds_a_minute():
    restarts = Restarts()
    assert delays(restarts, *[100.0 * index for index in range(9)])[-3:] == [LONGEST_DELAY_S] * 3


def test_forgiven_process_begins_anew():
    restarts = Restarts()
    delays(restarts, *range(MANY_DEATHS))
    restarts.forgive("worker-0")
    restarts.forgive("worker-9")
    assert restarts.left_out == frozenset()
    assert delays(restarts, 10.0) == [1.0]


def test_each_process_has_its_own_count():
    restarts = Restarts()
    delays(restarts, *range(MANY_DEATHS))
    assert delays(restarts, 10.0, name="worker-1") == [1.0]
    assert restarts.left_out == {"worker-0"}
