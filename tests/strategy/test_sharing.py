"""What routes that share a worker cost each other, beside what its engine does."""

import numpy as np
import pytest

from strategy.sharing import Busy, Elsewhere, Visits

# A route of one stage, always with a step ready; two batches of a pipeline; the same where this worker is not the head.
READY = Visits(0.004, 1, 0.004, is_head=True)
SELDOM = Visits(0.002, 2, 0.020, is_head=True)
ARRIVING = Visits(0.002, 2, 0.020, is_head=False)


def test_between_two_steps_of_a_head_another_head_has_one_at_most():
    assert Elsewhere((READY,)).between_s(0.1) == pytest.approx(0.004)
    assert Elsewhere((SELDOM,)).between_s(0.1) == pytest.approx(0.002)
    assert Elsewhere((SELDOM,)).between_s(0.001) < 0.0005


def test_arrivals_come_before_heads_as_many_as_there_are():
    assert Elsewhere((ARRIVING,)).between_s(0.1) == pytest.approx(0.004)


def test_who_arrives_waits_for_what_runs_and_for_no_turn_of_a_head():
    there = Elsewhere((READY,), waits_turns=False)
    assert there.between_s(0.1) == 0
    assert there.wait_s() == pytest.approx(0.002)
    assert there.wait_s(0.001) == pytest.approx(0.003)
    assert Elsewhere((SELDOM,)).wait_s() == pytest.approx(0.2 * 0.001)


def test_many_stages_at_once_are_as_each_by_itself():
    busy = Busy({0: Elsewhere((READY, ARRIVING)), 3: Elsewhere((SELDOM,), waits_turns=False), 5: Elsewhere((SELDOM,))})
    own_s = np.array([0.001, 0.004, 0.003])
    alone = [busy.elsewhere[stage].between_s(own) for stage, own in zip(busy.stages, own_s, strict=True)]
    assert busy.between_s(own_s) == pytest.approx(alone)
    assert busy.wait_s == pytest.approx(sum(there.wait_s() for there in busy.elsewhere.values()))
