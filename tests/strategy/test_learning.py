"""What answers teach: factors near the truth, little from one answer, and how long answers become."""

import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from strategy.cost import Times
from strategy.learning import AS_MEASURED, ENOUGH_TOKENS, AnswerLengths, Learning, Seen
from strategy.vocabulary import Route
from tests.strategy.test_cost import route, stage

ROUTE = Route(("w0",))
TIMES = Times(1.0, 0.1, 0.05)
COSTS = {ROUTE: route(stage())}


def learned(num, ttft_s, step_s, times=TIMES, read_tokens=100):
    learning = Learning()
    learning.renew(COSTS)
    for _ in range(num):
        learning.saw("any", ROUTE, read_tokens, times, Seen(ttft_s, step_s))
    return learning


@given(reading=st.floats(0.5, 2), step=st.floats(0.5, 2))
def test_after_some_answers_predictions_are_near(reading, step):
    learning = learned(30, reading + step * 0.1, step * 0.05)
    factors = learning.factors("any", ROUTE, 100)
    assert factors.step == pytest.approx(step, rel=0.02)
    assert learning.ttft_s(TIMES, factors) == pytest.approx(reading + step * 0.1, rel=0.05)


def test_one_answer_changes_little_and_many_no_more_than_the_bounds():
    learning = learned(20, 1.1, 0.05)
    learning.saw("any", ROUTE, 100, TIMES, Seen(1000.0, 50.0))
    assert 1.1 < learning.factors("any", ROUTE, 100).step < 1.2
    assert learned(500, 1000.0, 50.0).factors("any", ROUTE, 100).step == 4.0
    assert learned(500, 1e-9, 1e-9).factors("any", ROUTE, 100).step == 0.25


def test_answer_of_a_few_tokens_says_less_of_steps():
    moved = {}
    for num_further in (ENOUGH_TOKENS // 4, ENOUGH_TOKENS, 1000):
        learning = Learning()
        learning.renew(COSTS)
        learning.saw("any", ROUTE, 100, TIMES, Seen(1.1, 1.5 * TIMES.step_s, num_further=num_further))
        moved[num_further] = math.log(learning.factors("any", ROUTE, 100).step)
    assert moved[ENOUGH_TOKENS // 4] == pytest.approx(moved[ENOUGH_TOKENS] / 4)
    assert moved[1000] == moved[ENOUGH_TOKENS] > 0


def test_answer_whose_first_token_says_nothing_teaches_of_steps_only():
    learning = Learning()
    learning.renew(COSTS)
    learning.saw("any", ROUTE, 100, TIMES, Seen(None, 1.5 * TIMES.step_s))
    factors = learning.factors("any", ROUTE, 100)
    assert (factors.reading, learning.overhead_s) == (1.0, Learning().overhead_s)
    assert factors.step > 1.1


def test_what_every_answer_needs_beside_computing_is_learned_from_short_ones():
    learning = learned(60, 0.051, None, Times(0.0, 0.001, 0.001))
    assert learning.overhead_s == pytest.approx(0.05, rel=0.05)
    assert learning.factors("any", ROUTE, 100).num_seen == 60


def test_what_one_size_teaches_does_not_make_another_worse():
    learning = Learning()
    learning.renew(COSTS)
    longer = Times(10.0, 0.1, 0.05)
    for _ in range(30):
        learning.saw("any", ROUTE, 100, TIMES, Seen(1.1, None))
        learning.saw("any", ROUTE, 2000, longer, Seen(14.1, None))
    short, long = (learning.factors("any", ROUTE, read_tokens) for read_tokens in (100, 2000))
    assert learning.ttft_s(TIMES, short) == pytest.approx(1.1, rel=0.05)
    assert learning.ttft_s(longer, long) == pytest.approx(14.1, rel=0.05)


def test_many_short_prompts_that_waited_say_little_of_a_long_one():
    learning = Learning()
    learning.renew(COSTS)
    longer = Times(16.0, 0.1, 0.05)
    learning.saw("any", ROUTE, 1600, longer, Seen(16.1, None))
    for _ in range(200):
        learning.saw("any", ROUTE, 100, TIMES, Seen(3.1, None))
    short, long = (learning.factors("any", ROUTE, read_tokens) for read_tokens in (100, 1600))
    assert learning.ttft_s(TIMES, short) == pytest.approx(3.1, rel=0.05)
    assert learning.ttft_s(longer, long) == pytest.approx(16.1, rel=0.1)


def test_a_size_that_was_never_seen_has_what_others_teach():
    learning = learned(30, 2.1, 0.05)
    assert learning.factors("any", ROUTE, 5000).reading == pytest.approx(2.0, rel=0.15)
    assert learning.factors("any", ROUTE, 100).reading == pytest.approx(2.0, rel=0.05)


def test_steps_with_guesses_are_learned_beside_plain_ones_and_no_answer_moves_them_far():
    learning = learned(5, 1.1, 0.05)
    for _ in range(20):
        learning.saw("any", ROUTE, 100, TIMES, Seen(1.1, 0.02, 4.0, 1000))
    before = learning.guessed("any", ROUTE)
    assert (before.tokens, before.token) == (pytest.approx(4.0), pytest.approx(0.02 / TIMES.step_s, rel=0.01))
    learning.saw("any", ROUTE, 100, TIMES, Seen(1.1, 5.0, 1.0, 1000))
    found = learning.guessed("any", ROUTE)
    assert found.tokens == pytest.approx(4.0 * 0.5**0.2)
    assert before.token < found.token < 1.1 * before.token
    assert learning.factors("any", ROUTE, 100).step == pytest.approx(1.0)
    learning.renew({ROUTE: route(stage(2.0))})
    assert learning.guessed("any", ROUTE) is None


@pytest.mark.parametrize("reading", [0.02, 0.1, 0.4])
def test_what_is_read_before_the_first_guess_is_learned_from_answers_of_all_lengths(reading):
    learning = Learning()
    learning.renew(COSTS)
    long, short = Times(2.0, 0.05, 0.05), Times(0.1, 0.05, 0.05)
    cases = [(times, count) for times in (long, short) for count in (8, 64, 256)]

    def seconds(times, count):
        return reading * (times.read_s + times.first_s) + count * 0.02

    for _ in range(40):
        for times, count in cases:
            learning.saw("any", ROUTE, 100, times, Seen(1.1, seconds(times, count) / count, 4.0, count))
    found = learning.guessed("any", ROUTE)
    for times, count in cases:
        assert found.seconds(times, count) == pytest.approx(seconds(times, count), rel=0.1)


def test_answers_of_each_length_take_what_such_ones_took_with_guesses():
    """Short ones are read for in vain, long ones repeat themselves."""
    learning = Learning()
    learning.renew(COSTS)
    steps = {7: 1.4, 63: 0.9, 255: 0.4}
    for _ in range(15):
        for count, share in steps.items():
            learning.saw("any", ROUTE, 100, TIMES, Seen(1.1, share * TIMES.step_s, 2.0, count))
    found = learning.guessed("any", ROUTE)
    for count, share in steps.items():
        assert found.seconds(TIMES, count) == pytest.approx(share * count * TIMES.step_s, rel=0.1)


def test_guesses_are_expected_for_answers_as_long_as_those_that_had_some():
    learning = Learning()
    learning.renew(COSTS)
    for _ in range(6):
        learning.saw("any", ROUTE, 100, TIMES, Seen(1.1, 0.02, 4.0, 200))
        learning.saw("any", ROUTE, 100, TIMES, Seen(1.1, 0.05, None, 7))
        learning.saw("any", ROUTE, 100, TIMES, Seen(1.1, 0.05, None, 200, may_guess=False))
    found = learning.guessed("any", ROUTE)
    assert [found.are_usual(count) for count in (1, 7, 200, 3000)] == [False, False, True, True]


def test_strategy_that_was_never_seen_on_a_route_has_the_steps_of_those_that_were():
    learning = learned(30, 1.2, 0.1)
    found = learning.factors("another", ROUTE, 100)
    assert (found.step, found.reading, found.num_seen) == (
        pytest.approx(2.0, rel=0.01),
        pytest.approx(1.0, rel=0.01),
        0,
    )
    learning.renew({ROUTE: route(stage(2.0))})
    assert learning.factors("another", ROUTE, 100).step == 1.0


def test_route_that_was_never_seen_is_half_as_far_off_as_those_that_were():
    other = Route(("w1",))
    learning = Learning()
    learning.renew(COSTS | {other: route(stage())})
    for _ in range(30):
        learning.saw("any", ROUTE, 100, TIMES, Seen(4.2, 0.1))
    found = learning.factors("another", other, 100)
    assert (found.step, found.reading) == pytest.approx((2.0**0.5, 4.0**0.5), rel=0.05)
    assert found.num_seen == 0
    learning.renew({ROUTE: route(stage(2.0)), other: route(stage())})
    assert learning.factors("another", other, 100) == AS_MEASURED


def test_what_was_learned_of_other_stages_is_forgotten():
    learning = learned(5, 2.0, 0.1)
    learning.renew(COSTS)
    assert learning.factors("any", ROUTE, 100).num_seen == 5
    learning.renew({ROUTE: route(stage(2.0))})
    assert learning.factors("any", ROUTE, 100).num_seen == 0


def test_answers_are_expected_as_long_as_those_before():
    lengths = AnswerLengths()
    assert lengths.expected(("me",), 100) == 100
    for _ in range(3):
        lengths.saw(("talk", "me"), 20, stopped=True)
    lengths.saw(("me",), 100, stopped=False)
    assert lengths.expected(("talk", "me"), 100) == 20
    assert lengths.expected(("new", "me"), 100) == 40
    assert lengths.expected(("talk",), 10) == 10


def test_answers_of_prompts_that_take_no_time_teach_what_tokens_take():
    learning = Learning()
    learning.renew(COSTS)
    for _ in range(20):
        learning.saw("any", ROUTE, 0, Times(0.0, 0.0, 0.05), Seen(0.01, 0.02, 4.0, 50))
    assert learning.guessed("any", ROUTE).token == pytest.approx(0.4)
