"""The last hour in points: differences of what is counted, and percentiles of what lies in ranges."""

import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from cluster.serving.counts import Counts
from cluster.serving.history import STEP_S, History, percentile
from cluster.serving.ledger import Ledger
from cluster.serving.lifecycle import RequestState
from cluster.serving.measures import Distribution

BOUNDS = (0.1, 0.5, 1.0, 5.0)


def ledger():
    return Ledger(Counts(), lambda: (), now=lambda: 0.0, clock=lambda: 1000.0)


def test_point_is_what_happened_since_the_one_before():
    kept = ledger()
    counts, measures = kept.counts, kept.counts.measures.of["single-device-cached"]
    measures.grew(100, 0.02)
    history = History(kept, at=1000.0)
    counts.arrived()
    counts.arrived()
    counts.moved(RequestState.WAITING, RequestState.RUNNING)
    measures.grew(40, 0.02)
    measures.answered(0.2, 0.7, None)
    counts.read(80)
    counts.reused(60)
    point = history.note(1005.0)
    assert (point.at, point.tokens_per_s, point.hit_rate) == (1005.0, 8.0, 0.75)
    assert (point.running, point.waiting) == (1, 1)
    assert 0.1 < point.ttft_p50_s <= point.ttft_p99_s <= 0.25
    assert 0.01 < point.gap_p50_s <= point.gap_p99_s <= 0.02
    quiet = history.note(1010.0)
    assert (quiet.tokens_per_s, quiet.finished, quiet.running) == (0, 0, 1)
    assert (quiet.ttft_p50_s, quiet.gap_p99_s, quiet.hit_rate) == (None, None, None)
    assert history.points == (point, quiet)


def test_an_hour_is_kept():
    history = History(ledger(), at=0.0)
    for number in range(1, 1000):
        history.note(number * STEP_S)
    assert [point.at for point in history.points] == [number * STEP_S for number in range(1000 - 720, 1000)]


def test_point_of_no_time_has_figures_all_the_same():
    history = History(ledger(), at=5.0)
    assert math.isfinite(history.note(5.0).tokens_per_s)


@given(st.lists(st.floats(0, 5), min_size=1), st.floats(0, 1))
def test_percentile_lies_in_the_range_of_the_value_that_it_stands_for(values, share):
    found = Distribution(BOUNDS)
    for value in values:
        found.observe(value)
    told = percentile(found, found.counts, share)
    exact = sorted(values)[max(math.ceil(share * len(values)), 1) - 1]
    above = next(bound for bound in BOUNDS if exact <= bound)
    below = max((bound for bound in BOUNDS if bound < exact), default=0.0)
    assert below <= told <= above


@given(st.lists(st.floats(0, 10), min_size=1))
def test_percentiles_grow_with_their_share(values):
    found = Distribution(BOUNDS)
    for value in values:
        found.observe(value)
    told = [percentile(found, found.counts, share) for share in (0, 0.5, 0.9, 0.99, 1)]
    assert told == sorted(told)


@pytest.mark.parametrize("share", [0.5, 0.99])
def test_nothing_has_no_percentile_and_what_is_beyond_all_bounds_has_the_last(share):
    found = Distribution(BOUNDS)
    assert percentile(found, found.counts, share) is None
    found.observe(100.0)
    assert percentile(found, found.counts, share) == BOUNDS[-1]
