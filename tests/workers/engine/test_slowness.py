"""How much slower a worker became: slowly believed, and slowly forgotten."""

import pytest

from protocol.messages import Row, Step
from protocol.values import Route
from strategy.chunking import ChunkCost
from strategy.stage_speed import StageSpeed
from workers.engine.slowness import Slowness

SPEED = StageSpeed(
    decode=((1, 0.01), (2, 0.012)),
    decode_context_s=0.0,
    chunk=ChunkCost(0.01, 0.001),
    chunk_context_s=0.0,
    payload_bytes=1,
)


def step(rows=1, tokens=1, *, num_sampled=1, cached=True):
    return Step(
        number=1,
        route=Route(("a",)),
        slot=None if tokens > 1 else 0,
        cached=cached,
        rows=tuple(Row(number, 10, num_sampled) for number in range(rows)),
        num_tokens=tokens,
    )


@pytest.mark.parametrize(
    ("made", "usual_s"),
    [
        (step(), 0.01),
        (step(2), 0.012),
        (step(tokens=64, num_sampled=0), 0.074),
        (step(tokens=64, cached=False), 0.074),
    ],
)
def test_steps_of_every_kind_are_held_against_what_was_measured(made, usual_s):
    slowness = Slowness()
    for _ in range(400):
        slowness.observe(SPEED, made, 3 * usual_s, 0.0)
    assert slowness.value(0.0) == pytest.approx(3.0, rel=0.01)


def test_one_long_step_changes_little():
    slowness = Slowness()
    slowness.observe(SPEED, step(), 60.0, 0.0)
    assert slowness.value(0.0) < 1.05


def test_worker_that_has_nothing_to_do_is_believed_to_recover():
    slowness = Slowness()
    for _ in range(400):
        slowness.observe(SPEED, step(), 0.04, 100.0)
    values = [slowness.value(100.0 + minutes * 60) for minutes in (0, 5, 60)]
    assert values[0] > 3.9
    assert values == sorted(values, reverse=True)
    assert values[2] == pytest.approx(1.0, abs=0.01)
