"""Parts of features and heads: everything is covered, nothing is cut where it must not be."""

import pytest

from workers.tensor.spans import feature_spans, head_spans, spans


def test_what_does_not_divide_goes_to_the_first_ranks():
    assert spans(50, 4) == [(0, 13), (13, 26), (26, 38), (38, 50)]


def test_quantization_groups_stay_whole():
    assert feature_spans(50 * 64, 4, unit=64) == [(0, 832), (832, 1664), (1664, 2432), (2432, 3200)]
    assert feature_spans(96, 2, unit=64) is None
    assert feature_spans(64, 2, unit=64) is None


def test_cuts_lie_at_multiples_of_fast_kernels_where_that_costs_no_balance():
    assert feature_spans(96, 2) == [(0, 48), (48, 96)]
    assert feature_spans(1_000, 3) == [(0, 336), (336, 672), (672, 1_000)]
    assert feature_spans(5, 2) == [(0, 3), (3, 5)]


def test_query_heads_stay_with_the_key_head_that_they_share():
    assert head_spans(8, 2, 2) == [((0, 4), (0, 1)), ((4, 8), (1, 2))]
    assert head_spans(6, 3, 2) == [((0, 4), (0, 2)), ((4, 6), (2, 3))]


def test_of_fewer_key_heads_than_ranks_each_rank_keeps_the_one_it_needs():
    assert head_spans(8, 2, 3) == [((0, 2), (0, 1)), ((2, 4), (0, 1)), ((4, 8), (1, 2))]
    assert head_spans(4, 1, 4) == [((rank, rank + 1), (0, 1)) for rank in range(4)]


@pytest.mark.parametrize(("queries", "keys", "size", "unit"), [(4, 4, 8, 1), (5, 2, 2, 1), (4, 2, 2, 4), (8, 1, 4, 4)])
def test_heads_that_cannot_be_cut_are_not(queries, keys, size, unit):
    assert head_spans(queries, keys, size, unit) is None


def test_heads_are_cut_where_the_quantization_of_what_reads_them_allows():
    assert head_spans(8, 4, 2, unit=4) == [((0, 4), (0, 2)), ((4, 8), (2, 4))]
