"""What loading measures."""

import pytest

from workers.model.chunk_costs import chunk_cost, fastest_runs


def measured(fixed_s: float, token_s: float, *, disturbed: tuple[int, ...] = (0,)) -> tuple[list[int], float, float]:
    """The chunks that were run on a machine of these costs, and what was found. disturbed: runs that took thrice as long."""
    ran: list[int] = []

    def run(num_tokens: int) -> float:
        ran.append(num_tokens)
        return (fixed_s + num_tokens * token_s) * (3 if len(ran) - 1 in disturbed else 1)

    found = chunk_cost(run)
    return ran, found.fixed_s, found.token_s


def test_chunk_costs_are_found_from_many_sizes_on_a_fast_machine():
    ran, fixed_s, token_s = measured(0.002, 0.0001)
    assert ran == [16, *[16, 32, 64, 128, 256, 512] * 2]
    assert (fixed_s, token_s) == (pytest.approx(0.002), pytest.approx(0.0001))


def test_chunk_costs_are_found_from_two_sizes_where_one_takes_long():
    ran, fixed_s, token_s = measured(0.5, 0.1)
    assert ran == [16, *[16, 32] * 2]
    assert (fixed_s, token_s) == (pytest.approx(0.5), pytest.approx(0.1))


@pytest.mark.parametrize("disturbed", [(0, 1, 2), (0, 4), (0, 2, 3)])
def test_what_disturbed_a_run_is_not_taken_for_its_cost(disturbed):
    _, fixed_s, token_s = measured(0.05, 0.01, disturbed=disturbed)
    assert (fixed_s, token_s) == (pytest.approx(0.05), pytest.approx(0.01))


def test_smaller_size_that_was_disturbed_twice_takes_no_longer_than_a_larger_one():
    told = {1: 9.0, 4: 2.0, 8: 3.0, 2: 1.5}
    assert fastest_runs(told.__getitem__, (1, 4, 8, 2), limit_s=100) == [(1, 1.5), (2, 1.5), (4, 2.0), (8, 3.0)]


def test_once_time_is_over_two_sizes_are_tried_and_none_twice():
    tried = []

    def run(size):
        tried.append(size)
        return float(size)

    assert fastest_runs(run, (1, 4, 8), limit_s=100, is_over=lambda: True) == [(1, 1.0), (4, 4.0)]
    assert tried == [1, 4]
