"""What steps usually take, by kind and length, and from when on one is overdue."""

import pytest

from protocol.messages import Row, Step
from protocol.values import Route
from strategy.chunking import ChunkCost
from workers.engine.step_kind import StepKind, kind_of
from workers.engine.usual_times import LIMIT_OF_UNKNOWN_S, OVERDUE_FACTOR, SHORTEST_LIMIT_S, UsualTimes

COST = ChunkCost(fixed_s=1.0, token_s=0.5)


@pytest.mark.parametrize(
    ("slot", "cached", "kind"),
    [(0, True, StepKind.DECODE), (None, True, StepKind.PREFILL), (None, False, StepKind.RECOMPUTE)],
)
def test_slot_and_cache_tell_the_kind(slot, cached, kind):
    step = Step(number=1, route=Route(("a",)), slot=slot, cached=cached, rows=(Row(1, 0, num_sampled=1),), num_tokens=1)
    assert kind_of(step) is kind


def test_nothing_known_allows_long():
    assert UsualTimes(None).limit_s(StepKind.DECODE, 1) == LIMIT_OF_UNKNOWN_S


@pytest.mark.parametrize("kind", StepKind)
@pytest.mark.parametrize("num_stages", [1, 3])
def test_at_first_the_cost_of_chunks_says_what_is_usual(kind, num_stages):
    usual = UsualTimes(COST, num_stages=num_stages)
    assert usual.limit_s(kind, 8) == OVERDUE_FACTOR * num_stages * (1.0 + 8 * 0.5)


@pytest.mark.parametrize("kind", [StepKind.PREFILL, StepKind.RECOMPUTE])
def test_steps_of_many_tokens_are_learned_by_the_token(kind):
    usual = UsualTimes(COST)
    usual.observe(kind, 100, 20.0)
    assert usual.limit_s(kind, 50) == pytest.approx(OVERDUE_FACTOR * 10.0)


def test_decode_is_learned_by_the_step_and_apart_from_prefill():
    usual = UsualTimes(None)
    usual.observe(StepKind.DECODE, 1, 2.0)
    assert usual.limit_s(StepKind.DECODE, 1) == pytest.approx(OVERDUE_FACTOR * 2.0)
    assert usual.limit_s(StepKind.PREFILL, 1) == LIMIT_OF_UNKNOWN_S


def test_one_slow_step_changes_little_and_many_change_all():
    usual = UsualTimes(None)
    usual.observe(StepKind.DECODE, 1, 1.0)
    usual.observe(StepKind.DECODE, 1, 2.0)
    assert usual.limit_s(StepKind.DECODE, 1) < OVERDUE_FACTOR * 1.3
    for _ in range(50):
        usual.observe(StepKind.DECODE, 1, 2.0)
    assert usual.limit_s(StepKind.DECODE, 1) == pytest.approx(OVERDUE_FACTOR * 2.0, rel=1e-3)


def test_quick_steps_still_have_a_few_seconds():
    usual = UsualTimes(None)
    usual.observe(StepKind.DECODE, 1, 0.001)
    assert usual.limit_s(StepKind.DECODE, 1) == SHORTEST_LIMIT_S
