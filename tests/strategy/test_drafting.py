"""How many tokens are guessed: many where guesses come true and long steps are cheap, none where they do not pay."""

import random

import pytest
from hypothesis import given
from hypothesis import strategies as st

from strategy.draft_costs import ChainCosts, ReadingCosts, StepCosts
from strategy.drafting import LENGTHS, ROUTE_FADING, Acceptances, DraftLength, DraftPatience, may_guess

FLOAT32 = {1: 1.0, 2: 1.08, 4: 1.24, 8: 1.43, 12: 1.7, 16: 2.0}
QUANTIZED = {1: 1.0, 2: 2.0, 4: 3.5, 8: 6.9, 12: 9.0, 16: 11.0}
GUESS_S = 0.12


class Route:
    """Answers on a route whose steps cost so much, beside what they would take without guesses."""

    def __init__(self, costs, patience=None):
        self._takes = costs
        self._patience = patience
        self._costs = StepCosts()
        self.num_asked = 0
        self._seen = Acceptances(ROUTE_FADING)
        self._random = random.Random(1)

    def answer(self, rate, count=200):
        """How many times as fast, with guesses that come true so often."""
        length = DraftLength(self._costs, self._seen, self._patience, grows=False)
        known, seconds = 1, 0.0
        while known <= count:
            guesses = length.best(known, 1, count - known)
            self.num_asked += guesses > 0
            right = 0
            while right < guesses and self._random.random() < rate:
                right += 1
            took_s = self._takes[1 + guesses] + GUESS_S * guesses
            length.stepped(known, 1, guesses, right, took_s)
            seconds += took_s
            known += 1 + right
        return count * self._takes[1] / seconds


@pytest.mark.parametrize("costs", [FLOAT32, QUANTIZED], ids=["float32", "4-bit"])
def test_guesses_that_are_always_wrong_cost_next_to_nothing(costs):
    route = Route(costs)
    route.answer(0.0)
    assert min(route.answer(0.0) for _ in range(10)) >= 0.97


def test_a_longer_step_that_was_once_the_faster_lets_nobody_guess_much_that_is_wrong():
    costs, seen = StepCosts(), Acceptances(ROUTE_FADING)
    length = DraftLength(costs, seen, grows=False)
    for _ in range(20):
        costs.plain(1, 1.0)
    for num_guesses, seconds in ((1, 0.9), (1, 0.9), (15, 0.8), (15, 0.8)) + ((1, 0.9),) * 40:
        length.stepped(50, 1, num_guesses, 0, seconds)
    assert DraftLength(costs, seen, grows=False).best(50, 1, 100) <= 1


@pytest.mark.parametrize("rate", [0.0, 0.2])
def test_who_guesses_badly_is_hardly_asked_by_one_short_answer_after_the_other(rate):
    route = Route(QUANTIZED, DraftPatience())
    for _ in range(20):
        route.answer(rate, 60)
    route.num_asked = 0
    for _ in range(50):
        route.answer(rate, 60)
    assert 1 <= route.num_asked <= 30


def test_who_has_much_to_read_before_a_guess_is_tried_more_rarely():
    def steps_until_tried(num_unread):
        patience = DraftPatience()
        for _ in range(3):
            while not patience.is_over(0):
                patience.passed()
            patience.guessed(is_right=False)
        count = 0
        while not patience.is_over(num_unread):
            patience.passed()
            count += 1
        return count

    assert steps_until_tried(0) == 128
    assert steps_until_tried(4000) > 500


def likely_guesses(reading, *, grows=False):
    """Of an answer whose guesses mostly come true, behind 2,000 tokens that were not read or were: by how many are still to come."""
    costs, seen = StepCosts(), Acceptances(ROUTE_FADING)
    for _ in range(10):
        costs.plain(1, 1.0)
    length = DraftLength(costs, seen, grows=grows, reading=reading)
    return lambda num_ahead, num_unread=2000: length.best(2000, 1, 100, num_unread, num_ahead)


@pytest.mark.parametrize("grows", [False, True])
def test_what_has_to_be_read_before_the_first_guess_is_weighed_against_what_is_still_to_come(grows):
    dear, cheap = ReadingCosts(), ReadingCosts()
    unit = 2000 if grows else 1  # a step of all tokens costs by all of them
    dear.saw(1000, 50.0 * unit)
    cheap.saw(1000, 0.1 * unit)
    asked = likely_guesses(dear, grows=grows)
    assert asked(8, num_unread=1) > 0
    assert not asked(8)
    assert not asked(60)
    assert asked(1000) > 0
    assert likely_guesses(cheap, grows=grows)(8) > 0


def test_nobody_reads_a_long_prompt_for_a_guess_that_is_only_tried():
    costs, reading = StepCosts(), ReadingCosts()
    reading.saw(1000, 20.0)
    length = DraftLength(costs, Acceptances(ROUTE_FADING), grows=False, reading=reading)
    for _ in range(10):
        costs.plain(1, 1.0)
    for _ in range(50):
        length.stepped(50, 1, 1, 0, 1.5)
    for _ in range(5000):
        length.stepped(50, 1, 0, 0, None)
    assert not length.best(2000, 1, 100, 2000, 100)
    assert length.best(2000, 1, 1000, 2000, 1000)
    assert length.best(2000, 1, 100, 1, 100)


@pytest.mark.parametrize("goes_on", [False, True])
def test_what_reading_takes_is_what_a_step_takes_beyond_the_usual(goes_on):
    costs, reading = StepCosts(), ReadingCosts()
    chain = ChainCosts(costs)
    length = DraftLength(costs, Acceptances(ROUTE_FADING), grows=False, chain=chain, reading=reading)
    for _ in range(10):
        costs.plain(1, 1.0)
        chain.behind.guessed(4, 0.5)
        chain.anew.guessed(4, 0.5)
        costs.guessed(4, 1.5)
    for _ in range(3):
        if goes_on:
            length.went_on(4, 3, 3, 4.5, is_behind=True, num_unread=2000)
        else:
            length.stepped(2000, 1, 3, 3, 5.5, num_unread=2000)
    assert reading.of(1000, 0.0) == pytest.approx(2.0)
    assert (costs.of(4), chain.behind.of(4)) == (1.5, 0.5)


def test_reading_that_goes_on_over_several_steps_is_added_up_and_not_given_up_half_way():
    costs, reading = StepCosts(), ReadingCosts()
    length = DraftLength(costs, Acceptances(ROUTE_FADING), grows=False, reading=reading)
    for _ in range(10):
        costs.plain(1, 1.0)
    for _ in range(10):
        costs.guessed(4, 1.5)
    assert length.best(2000, 1, 200, 2000, 201) > 0
    for num_more in range(1, 4):
        length.read_on(2000 + num_more, 1, 21.0)
        assert length.best(2000 + num_more, 1, 200, 2000 + num_more, 20) > 0
    length.stepped(2004, 1, 3, 3, 1.5, num_unread=2000)
    assert reading.of(2000, 0.0) == pytest.approx(60.0)
    assert not DraftLength(costs, Acceptances(ROUTE_FADING), grows=False, reading=reading).best(2000, 1, 20, 2000, 20)


def test_one_short_reading_that_was_disturbed_says_little_beside_long_ones():
    reading = ReadingCosts()
    for num_tokens, seconds in ((2000, 2.0), (40, 4.0), (33, 0.0)):
        reading.saw(num_tokens, seconds)
    assert reading.of(1000, 0.0) == pytest.approx(1.0)


def test_guesses_that_are_always_right_make_long_steps():
    route = Route(FLOAT32)
    route.answer(1.0)
    assert route.answer(1.0) > 0.9 * 16 / (FLOAT32[16] + 15 * GUESS_S)


def test_guesses_that_are_worth_nothing_where_long_steps_are_dear_are_not_made():
    route = Route(QUANTIZED)
    route.answer(0.6)
    assert min(route.answer(0.6) for _ in range(5)) >= 0.97


def test_guesses_for_which_much_speaks_are_made_where_those_for_which_little_speaks_are_wrong():
    route = Acceptances(ROUTE_FADING)
    asked = {3: [], 30: []}
    for _ in range(5):
        length = DraftLength(StepCosts(), route, grows=False)
        for step in range(40):
            support = 30 if step % 2 else 3
            length.expects(support)
            guesses = length.best(50, 1, 100)
            asked[support].append(guesses)
            length.stepped(50, 1, guesses, guesses if support == 30 else 0, FLOAT32[1 + guesses])
    assert sum(asked[3][-20:]) <= 3
    assert asked[30][-10:] == [15] * 10


def test_sequence_that_begins_to_repeat_is_found_out():
    length = DraftLength(StepCosts(), Acceptances(ROUTE_FADING), grows=False)
    known = 0
    for rate, steps in ((0, 60), (1, 200)):
        asked = []
        for _ in range(steps):
            known += 1
            guesses = length.best(known, 1, 100)
            asked.append(guesses)
            length.stepped(known, 1, guesses, guesses * rate, FLOAT32[1 + guesses])
        assert sum(asked[-20:]) <= 1 if rate == 0 else max(asked[-20:]) == 15


@pytest.mark.parametrize("num_due", [1, 2, 3, 7])
def test_steps_have_lengths_that_run_well(num_due):
    length = DraftLength(StepCosts(), Acceptances(ROUTE_FADING), grows=False)
    asked = set()
    for _ in range(20):
        guesses = length.best(10, num_due, 100)
        asked.add(guesses + num_due)
        length.stepped(10, num_due, guesses, guesses, 1.0)
    assert 16 in asked
    assert asked <= {num_due, *LENGTHS}


@given(st.integers(0, 20), st.integers(1, 20), st.integers(1, 30))
def test_no_more_is_guessed_than_may_be(most, num_due, num_known):
    costs = StepCosts()
    for _ in range(5):
        costs.plain(1, None)
    length = DraftLength(costs, Acceptances(ROUTE_FADING), grows=True)
    assert 0 <= length.best(num_known, num_due, most) <= most


def test_longer_steps_of_a_whole_sequence_are_cheap_where_it_is_long():
    def best(num_known):
        costs = StepCosts()
        for _ in range(5):
            costs.plain(1, 50.0, 50)
        for length in LENGTHS:  # all by their tokens
            for _ in range(2):
                costs.guessed(length, 49.0 + length, 49 + length)
        return DraftLength(costs, Acceptances(ROUTE_FADING), grows=True).best(num_known, 1, 100)

    assert best(4) < best(400)


def test_first_step_of_a_length_says_nothing_of_the_next():
    costs = StepCosts()
    costs.guessed(4, 50.0)
    assert costs.of(4) < 2
    costs.guessed(4, 3.0)
    assert costs.of(4) == 3.0


def test_one_slow_step_does_not_rule_a_length_out():
    costs = StepCosts()
    for seconds in (1.0, 1.0, 90.0, 1.1):
        costs.guessed(8, seconds)
    assert costs.of(8) == pytest.approx(1.1)


def test_what_lies_between_two_lengths_is_thought_to_cost_something_between():
    costs = StepCosts()
    for _ in range(5):
        costs.plain(1, 1.0)
    for _ in range(2):
        costs.guessed(8, 2.0)
    assert 1.0 < costs.of(4) < 2.0 < costs.of(12)


class Chain:
    """Answers on a route of two stages that goes on while steps are verified: the first stage's step and the guesses take half."""

    def __init__(self, costs):
        self._takes = costs
        self._costs, self._seen = StepCosts(), Acceptances(ROUTE_FADING)
        self._chain = ChainCosts(self._costs)
        self._random = random.Random(1)

    def answer(self, rate, count=300):
        """Of its steps that had guesses how many went on."""
        length = DraftLength(self._costs, self._seen, grows=False, chain=self._chain)
        known, found, goes_on = 1, [], False
        while known <= count:
            size = length.further(known, count - known) if goes_on else 1 + length.best(known, 1, count - known)
            is_behind, goes_on = goes_on and size > 0, False
            if size == 1 or not (is_behind or length.further(known + size, count - known)):
                num_right = self._num_right(size - 1, rate)
                length.stepped(known, 1, max(size - 1, 0), num_right, 2 * self._takes[max(size, 1)])
                known += 1 + num_right
            else:
                num_right = self._num_right(size, rate)
                seconds = self._takes[size] * (1.0 if is_behind else 2.5)
                length.went_on(size, size, num_right, seconds, is_behind=is_behind)
                known, goes_on = known + min(1 + num_right, size), num_right == size
            if size > 1:
                found.append(is_behind)
        return sum(found) / max(len(found), 1)

    def _num_right(self, most, rate):
        right = 0
        while right < most and self._random.random() < rate:
            right += 1
        return right


def test_guesses_go_on_where_they_come_true_and_not_where_they_do_not():
    chain = Chain(FLOAT32)
    chain.answer(0.98)
    assert chain.answer(0.98) > 0.5
    chain.answer(0.5)
    assert chain.answer(0.5) < 0.1


def test_guesses_do_not_go_on_where_stages_are_no_sooner_by_it():
    costs = StepCosts()
    for _ in range(5):
        costs.plain(1, 1.0)
    length = DraftLength(costs, Acceptances(ROUTE_FADING), grows=False, chain=ChainCosts(costs))
    for size in LENGTHS:
        for _ in range(4):
            length.stepped(9, 1, size - 1, size - 1, FLOAT32[size])
            length.went_on(size, size, size, FLOAT32[size], is_behind=True)
    assert length.further(9, 100) == 0
    assert length.best(9, 1, 100) == 15


def test_steps_that_overlap_count_as_long_as_they_take_on_average():
    costs = StepCosts()
    for seconds in (9.0, 0.5, 1.5, 0.5, 1.5):
        costs.plain(1, seconds)
    assert costs.of(1) == 1.0


@pytest.mark.parametrize(
    ("num_decoding", "num_stages", "expected"),
    [(1, 1, True), (2, 1, False), (1, 2, True), (2, 2, False), (3, 4, True), (4, 4, False)],
)
def test_sequences_are_guessed_for_while_there_are_fewer_than_stages(num_decoding, num_stages, expected):
    assert may_guess(num_decoding, num_stages) is expected
