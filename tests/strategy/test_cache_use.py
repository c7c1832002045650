"""For which lengths a cache pays."""

import pytest

from strategy.cache_use import PayingRange, paying_range


@pytest.mark.parametrize(
    ("speedups", "expected"),
    [
        ({5: 1.2, 10: 2, 400: 30}, PayingRange()),
        ({5: 0.8, 10: 1.1, 400: 30}, PayingRange(first=10)),
        ({5: 0.8, 10: 1.1, 20: 1.3, 400: 0.9}, PayingRange(first=10, last=20)),
        ({5: 1.1, 10: 0.9, 20: 1.3, 30: 1.4}, PayingRange(first=20)),
        ({5: 1.1, 10: 1.2, 20: 0.7}, PayingRange(last=10)),
        ({5: 0.9, 10: 1.0}, PayingRange(never=True)),
    ],
)
def test_the_longest_run_of_faster_lengths_is_the_range(speedups, expected):
    assert paying_range(speedups) == expected


def test_the_ends_of_a_range_belong_to_it():
    found = PayingRange(first=10, last=20)
    assert [found.contains(length) for length in (9, 10, 20, 21)] == [False, True, True, False]
    assert PayingRange().contains(1)
    assert not PayingRange(never=True).contains(100)


def test_a_range_reads_as_words():
    assert str(PayingRange(first=10)) == "10 to the longest tokens"
    assert str(PayingRange()) == "at every measured length"
    assert str(PayingRange(never=True)) == "at no measured length"
