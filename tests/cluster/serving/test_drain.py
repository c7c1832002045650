"""When who was refused may come back, by a manual clock."""

import pytest

from cluster.serving.drain import GRACE_S, LETS_IN, MAX_PROMISED, SHORTEST_S, Drain


def served(every_s, count=40, end=100.0):
    """One place was given every so many seconds, the last at `end`."""
    drain = Drain()
    for number in range(count):
        drain.gave(end - (count - 1 - number) * every_s)
    return drain


@pytest.mark.parametrize("every_s", [0.5, 2.0])
def test_promises_are_as_far_apart_as_places_become_free(every_s):
    drain = served(every_s)
    waits = [drain.promise("a", 100.0) for _ in range(40)]
    assert waits == sorted(waits)
    assert waits[-1] == pytest.approx(40 * every_s, rel=0.05, abs=1)


def test_who_comes_when_told_is_let_in_though_a_newcomer_came_before_and_nobody_else_by_that():
    drain = served(1.0)
    wait = drain.promise("a", 100.0)
    assert not drain.redeem("a", 100.0 + wait - 1.5)
    assert not drain.redeem("b", 100.0 + wait)
    assert [drain.redeem("a", 100.0 + wait) for _ in range(LETS_IN + 1)] == [True] * LETS_IN + [False]


def test_who_never_comes_is_forgotten():
    drain = served(1.0)
    wait = drain.promise("a", 100.0)
    assert not drain.redeem("a", 100.0 + wait + GRACE_S + 1)


def test_times_are_never_in_the_past_and_begin_anew_after_a_quiet_hour():
    drain = served(1.0)
    for _ in range(500):
        drain.promise("a", 100.0)
    assert drain.promise("a", 4000.0) == SHORTEST_S


def test_before_anything_was_measured_there_is_a_time_all_the_same():
    assert Drain().promise("a", 0.0) == SHORTEST_S


def test_promises_have_a_limit_and_who_is_beyond_it_is_still_told_a_time():
    drain = served(1.0)
    assert all(drain.promise(f"client {number}", 100.0) for number in range(MAX_PROMISED // LETS_IN + 10))
    assert repr(drain).endswith(f"{MAX_PROMISED} promised)")
