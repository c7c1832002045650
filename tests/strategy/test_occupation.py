"""Who is busy where, as loads come and go."""

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from strategy.cost import RouteLoad
from strategy.occupation import Occupation
from strategy.vocabulary import Route
from tests.strategy.test_cost import route, stage

PAIR = Route(("w0", "w1"))
FIRST, SECOND = Route(("w0",)), Route(("w1",))
COSTS = {PAIR: route(stage(0.5), stage(0.5)), FIRST: route(stage())}
LOADS = st.builds(
    RouteLoad,
    decoding=st.integers(0, 4),
    reading_tokens=st.integers(0, 500),
    uncached=st.integers(0, 2),
    context=st.floats(1, 300),
)


def test_workers_of_a_route_wait_for_other_routes_not_for_their_own():
    occupation = Occupation(COSTS)
    occupation.changed({FIRST: RouteLoad(decoding=2, context=10)})
    assert occupation.beside(FIRST).elsewhere == {}
    assert set(occupation.beside(PAIR).elsewhere) == {0}
    assert occupation.beside(PAIR).elsewhere[0].round_s == pytest.approx(stage().decode_s(2, 10))
    assert occupation.load(FIRST).decoding == 2


def test_stage_of_a_pipeline_with_one_stream_is_busy_half_of_the_time():
    occupation = Occupation(COSTS)
    occupation.changed({PAIR: RouteLoad(decoding=1, context=10)})
    assert occupation.beside(FIRST).elsewhere[0].share == pytest.approx(0.5, abs=0.05)


def test_pipeline_that_others_hold_up_comes_round_more_seldom():
    occupation = Occupation(COSTS | {SECOND: msgspec.structs.replace(route(stage()), route=SECOND)})
    pair = RouteLoad(decoding=4, context=10)
    occupation.changed({PAIR: pair})
    alone = occupation.beside(FIRST).elsewhere[0].share
    occupation.changed({PAIR: pair, SECOND: RouteLoad(decoding=1, context=10)})
    assert occupation.beside(FIRST).elsewhere[0].share < 0.9 * alone
    occupation.changed({PAIR: pair, FIRST: RouteLoad(decoding=1, context=10)})
    assert occupation.beside(FIRST).elsewhere[0].share == pytest.approx(alone)


def test_route_that_was_not_measured_occupies_nobody():
    occupation = Occupation({})
    occupation.changed({PAIR: RouteLoad(decoding=1, context=10)})
    assert occupation.beside(FIRST).elsewhere == {}


@given(steps=st.lists(st.tuples(LOADS, LOADS), max_size=8))
def test_however_loads_changed_idle_routes_leave_nobody_busy(steps):
    occupation = Occupation(COSTS)
    for pair, first in steps:
        occupation.changed({PAIR: pair, FIRST: first})
        for busy in (occupation.beside(PAIR), occupation.beside(FIRST)):
            assert all(there.round_s > 0 and 0 <= there.share <= 1 for there in busy.elsewhere.values())
    occupation.changed({})
    assert occupation.beside(PAIR).elsewhere == occupation.beside(FIRST).elsewhere == {}
