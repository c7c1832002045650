"""What loading measures; the loading itself is tried by the tests of clusters."""

import pytest

from workers.stage_loading import chunk_cost


def measured(fixed_s: float, token_s: float) -> tuple[list[int], float, float]:
    """The chunks that were run on a machine of these costs, the first of them three times as slow, and what was found."""
    ran: list[int] = []

    def run(num_tokens: int) -> float:
        ran.append(num_tokens)
        return (fixed_s + num_tokens * token_s) * (3 if len(ran) == 1 else 1)

    found = chunk_cost(run)
    return ran, found.fixed_s, found.token_s


def test_chunk_costs_are_found_from_many_sizes_on_a_fast_machine():
    ran, fixed_s, token_s = measured(0.002, 0.0001)
    assert ran == [16, 16, 32, 64, 128, 256, 512]
    assert (fixed_s, token_s) == (pytest.approx(0.002), pytest.approx(0.0001))


def test_chunk_costs_are_found_from_two_sizes_where_one_takes_long():
    ran, fixed_s, token_s = measured(0.5, 0.1)
    assert ran == [16, 16, 32]
    assert (fixed_s, token_s) == (pytest.approx(0.5), pytest.approx(0.1))
