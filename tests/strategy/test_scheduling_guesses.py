"""Steps of sequences whose next tokens are guessed: what they compute, when they wait, and that no token is missed."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from strategy.scheduling import Schedule
from strategy.step_plan import RowPlan
from tests.support.fixed_chunks import FixedChunks


class Told:
    """Guesses so many tokens each time, where it is told to, and behind guesses so many further ones."""

    def __init__(self, count=3, *, further=0, forgets=True):
        self.count = count
        self.further = further
        self.forgets = forgets

    def is_due(self, _sequence, _num_due):
        return self.count > 0

    def guess(self, _sequence, _num_due):
        return self.count

    def go_on(self, _sequence):
        return self.further


def schedule(guesses, *, num_stages=1):
    return Schedule(num_stages=num_stages, chunks=FixedChunks(4), max_rows=8, guesses=guesses)


def test_step_has_the_guesses_behind_the_last_known_token_and_samples_at_each():
    plan = schedule(Told(3))
    plan.add(1, prompt_tokens=5, cached=True, computed_tokens=4, runs_ahead=True)
    assert plan.next().rows == (RowPlan(1, 4, 4, num_sampled=4),)
    assert plan.next() is None  # what it samples is not known, nor how much of it counts


@pytest.mark.parametrize(("forgets", "start", "count"), [(True, 6, 4), (False, 4, 6)])
def test_wrong_guesses_are_not_computed_and_where_caches_cannot_forget_nothing_of_the_step_is(forgets, start, count):
    plan = schedule(Told(3, forgets=forgets))
    plan.add(1, prompt_tokens=5, cached=True, computed_tokens=4)
    plan.done(plan.next(), [2])
    assert plan.next().rows == (RowPlan(1, start, count, num_sampled=4),)


def test_guesses_that_all_came_true_are_computed():
    plan = schedule(Told(3, forgets=False))
    plan.add(1, prompt_tokens=5, cached=True, computed_tokens=4)
    plan.done(plan.next(), [4])
    assert plan.next().rows == (RowPlan(1, 8, 4, num_sampled=4),)


def test_slot_runs_ahead_again_when_nothing_is_guessed():
    told = Told(3)
    plan = schedule(told)
    plan.add(1, prompt_tokens=5, cached=True, computed_tokens=4, runs_ahead=True)
    step = plan.next()
    told.count = 0
    assert plan.next() is None
    plan.done(step, [1])
    assert [plan.next().rows[0].start, plan.next().rows[0].start] == [5, 6]


def test_sequence_is_brought_to_its_last_token_before_it_shares_a_step():
    plan = schedule(Told(3, forgets=False))
    plan.add(1, prompt_tokens=5, cached=True, computed_tokens=4)
    step = plan.next()
    plan.add(2, prompt_tokens=9, cached=True, computed_tokens=8)
    plan.done(step, [2])
    first, second = plan.next(), plan.next()
    assert (first.slot, first.rows) == (None, (RowPlan(1, 4, 2, num_sampled=0),))
    assert second.rows == (RowPlan(1, 6, 1, num_sampled=1), RowPlan(2, 8, 1, num_sampled=1))


def test_nothing_is_guessed_while_as_many_decode_as_there_are_stages():
    plan = schedule(Told(3), num_stages=2)
    for sequence in (1, 2):
        plan.add(sequence, prompt_tokens=5, cached=True, computed_tokens=4)
    assert [plan.next().rows[0].num_sampled for _ in range(2)] == [1, 1]


def test_whole_sequence_is_computed_with_its_guesses_whoever_else_is_there():
    plan = schedule(Told(2))
    for sequence in (1, 2):
        plan.add(sequence, prompt_tokens=5, cached=False)
    step = plan.next()
    assert step.rows == (RowPlan(1, 0, 7, num_sampled=3),)
    plan.done(step, [2])
    assert plan.next().rows == (RowPlan(2, 0, 7, num_sampled=3),)


def going_on(*, num_stages=2, sequences=1):
    """A schedule and the first steps that it has in flight."""
    plan = schedule(Told(3, further=4), num_stages=num_stages)
    for sequence in range(1, sequences + 1):
        plan.add(sequence, prompt_tokens=5, cached=True, computed_tokens=4)
    return plan, list(iter(plan.next, None))


def test_as_many_steps_of_guesses_follow_as_there_are_stages():
    _, steps = going_on(num_stages=3)
    assert [step.rows for step in steps] == [(RowPlan(1, start, 4, num_sampled=4),) for start in (4, 8, 12)]


def test_step_that_goes_on_counts_where_the_guesses_before_it_came_true():
    plan, (first, second) = going_on()
    plan.done(first, [4])
    third = plan.next()
    assert third.rows == (RowPlan(1, 12, 4, num_sampled=4),)
    assert not plan.is_stale(second)
    plan.done(second, [2], is_kept=False)
    assert plan.is_stale(third)
    assert plan.next().rows == (RowPlan(1, 10, 4, num_sampled=4),)


@pytest.mark.parametrize(("found", "start"), [(2, 6), (4, 8)])
def test_what_goes_on_behind_a_wrong_guess_is_stale_and_nobody_waits_for_it(found, start):
    plan, (first, second) = going_on()
    plan.done(first, [found], is_kept=False)
    again = plan.next()
    assert again.rows == (RowPlan(1, start, 4, num_sampled=4),)
    assert (plan.is_stale(second), plan.is_stale(again)) == (True, False)
    assert plan.next() is None
    plan.done(second)
    assert plan.next().rows == (RowPlan(1, start + 4, 4, num_sampled=4),)


def test_sequence_that_ends_leaves_nothing_behind_whatever_is_on_its_way():
    plan, (first, second) = going_on()
    plan.done(first, [2], is_kept=False)
    again = plan.next()
    plan.remove(1)
    plan.add(2, prompt_tokens=5, cached=True, computed_tokens=4)
    plan.done(second)
    plan.done(again, [1])
    assert [step.rows[0].sequence for step in iter(plan.next, None)] == [2, 2]


def test_everything_else_comes_before_a_step_that_goes_on():
    plan = schedule(Told(3, further=4), num_stages=2)
    plan.add(1, prompt_tokens=5, cached=True, computed_tokens=4)
    assert plan.next().rows[0].num_sampled == 4
    plan.add(2, prompt_tokens=9, cached=True)
    plan.add(3, prompt_tokens=5, cached=False)
    assert [plan.next().rows[0].sequence for _ in range(2)] == [3, 2]


def test_nothing_goes_on_while_as_many_decode_as_there_are_stages_nor_where_caches_cannot_forget():
    plan, steps = going_on(sequences=2)
    assert [step.rows[0].num_sampled for step in steps] == [1, 1]
    plan = schedule(Told(3, further=4, forgets=False), num_stages=2)
    plan.add(1, prompt_tokens=5, cached=True, computed_tokens=4)
    assert len(list(iter(plan.next, None))) == 1


def goes_on_behind(plan, step, in_flight):
    """Whether something counts that was guessed behind the guesses of a step."""
    (first, *others) = [row.sequence for row in step.rows]
    behind = [other for other in in_flight if [row.sequence for row in other.rows] == [first]]
    return step.rows[0].num_sampled > 1 and not others and not all(map(plan.is_stale, behind))


def answered(data, plan, step, in_flight, known):
    """A step comes back; of each row of what is known how many tokens were found, and whether what goes on behind it counts."""
    if plan.is_stale(step):
        plan.done(step)
        return []
    found = [data.draw(st.integers(1, row.num_sampled)) if row.num_sampled else 0 for row in step.rows]
    is_kept = data.draw(st.booleans()) or not goes_on_behind(plan, step, in_flight)
    plan.done(step, found, is_kept=is_kept)
    return [(row, count, is_kept) for row, count in zip(step.rows, found, strict=True) if row.sequence in known]


@given(st.data())
def test_every_token_is_computed_in_order_whatever_becomes_of_the_guesses(data):
    told = Told(0, forgets=data.draw(st.booleans()))
    num_stages = data.draw(st.integers(1, 3))
    plan = schedule(told, num_stages=num_stages)
    known: dict[int, int] = {}
    computed: dict[int, int] = {}
    in_flight = []
    for number in range(data.draw(st.integers(1, 60))):
        told.count, told.further = data.draw(st.integers(0, 5)), data.draw(st.sampled_from([0, 2, 4]))
        action = data.draw(st.sampled_from(["add", "next", "next", "done", "done", "cancel"]))
        if action == "add" and len(known) < 3:
            known[number], computed[number] = data.draw(st.integers(1, 9)), 0
            plan.add(number, prompt_tokens=known[number], cached=True, runs_ahead=data.draw(st.booleans()))
        elif action == "cancel" and known:
            gone = data.draw(st.sampled_from(sorted(known)))
            plan.remove(gone)
            del known[gone]
        elif action == "next" and (step := plan.next()):
            assert len({row.count for row in step.rows}) == 1
            for row in step.rows:
                assert row.start == computed[row.sequence]
                computed[row.sequence] += row.count
                assert row.num_sampled <= 1 or len(step.rows) == 1
            in_flight.append(step)
        elif action == "done" and in_flight:
            step = in_flight.pop(0)
            for row, count, is_kept in answered(data, plan, step, in_flight, known):
                known[row.sequence] += count
                if count < row.num_sampled or not is_kept:
                    right = row.count - row.num_sampled + count
                    computed[row.sequence] = row.start + (right if told.forgets else 0)
                    assert not goes_on_behind(plan, step, in_flight)
    assert all(computed[sequence] <= length + 1 for sequence, length in known.items() if not in_flight)
    for step in in_flight:
        plan.done(step)
    assert plan.num_in_flight == 0
