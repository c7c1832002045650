"""The numbers that reports are made of."""

import pytest

from benchmarks.support.arithmetic import (
    chunk_seconds,
    gaps,
    gaps_within,
    paired_ratios,
    percentile,
    summarize,
    turns,
)


def test_percentile_interpolates_between_neighbours():
    assert percentile([3.0, 1.0, 2.0], 0.5) == 2.0
    assert percentile([0.0, 10.0], 0.25) == 2.5
    assert percentile(list(range(101)), 0.99) == 99
    assert percentile([7.0], 0.99) == 7.0


def test_percentile_of_nothing_is_an_error():
    with pytest.raises(ValueError, match="no values"):
        percentile([], 0.5)


def test_summary_holds_median_extremes_and_count():
    summary = summarize([4.0, 1.0, 3.0, 2.0])
    assert (summary.count, summary.median, summary.smallest, summary.largest) == (4, 2.5, 1.0, 4.0)
    assert summarize([]) is None


def test_ratios_are_taken_round_by_round():
    # The sums have the ratio 1; each round has another.
    assert paired_ratios([2.0, 1.0, 3.0], [1.0, 2.0, 3.0]).median == 1.0
    assert paired_ratios([2.0, 4.0], [1.0, 1.0]).largest == 4.0


def test_a_round_without_a_value_does_not_count():
    assert paired_ratios([2.0, None, 5.0], [1.0, 1.0, 0.0]).count == 1
    assert paired_ratios([None], [1.0]) is None


def test_sides_with_different_numbers_of_rounds_cannot_be_paired():
    with pytest.raises(ValueError, match="zip"):
        paired_ratios([1.0], [1.0, 2.0])


def test_every_other_round_runs_backwards():
    assert turns(["a", "b", "c"], 3) == [["a", "b", "c"], ["c", "b", "a"], ["a", "b", "c"]]


def test_gaps_are_between_successive_times():
    assert gaps([1.0, 3.0, 3.5]) == [2.0, 0.5]
    assert gaps([1.0]) == []


def test_a_gap_that_began_before_the_window_counts_as_a_whole():
    assert gaps_within([0.0, 5.0, 6.0, 9.0], 4.0, 7.0) == [5.0, 1.0]


def test_chunk_seconds_ignore_the_shorter_last_chunk():
    reports = [(0.0, 0), (2.0, 512), (3.0, 1024), (4.0, 1536), (4.1, 1600)]
    assert chunk_seconds(reports) == 1.0
    assert chunk_seconds([(0.0, 0)]) is None
