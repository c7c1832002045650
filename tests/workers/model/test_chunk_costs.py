"""What loading measures."""

import pytest

from workers.model.chunk_costs import chunk_cost


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
