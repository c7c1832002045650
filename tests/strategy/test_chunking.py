"""Chunk sizes from measured costs."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from strategy.chunking import MAX_CHUNKS, MAX_TOKENS, MIN_TOKENS, ChunkCost, ChunkSize

COST = ChunkCost(0.004, 0.001)


def size(num_stages=2, cost=COST, fixed_tokens=None) -> ChunkSize:
    return ChunkSize(num_stages=num_stages, cost=cost, fixed_tokens=fixed_tokens)


def test_line_through_measured_chunks_is_found():
    cost = ChunkCost.fit([(10, 0.03), (20, 0.05), (40, 0.09)])
    assert cost.fixed_s == pytest.approx(0.01)
    assert cost.token_s == pytest.approx(0.002)


def test_two_stages_take_the_chunk_that_is_fastest_in_total():
    cost = ChunkCost(0.02, 0.001)
    chosen = size(cost=cost).tokens(2000, others_decode=False)

    def total_s(chunk: int) -> float:
        return (1 + 2000 / chunk) * (cost.fixed_s + chunk * cost.token_s)

    best = min(range(MIN_TOKENS, MAX_TOKENS), key=total_s)
    assert total_s(chosen) == pytest.approx(total_s(best), rel=0.01)


def test_one_stage_takes_large_chunks_and_users_choice_wins():
    assert size(num_stages=1).tokens(3000, others_decode=False) == MAX_TOKENS
    assert size(fixed_tokens=77).tokens(3000, others_decode=True) == 77


def test_chunk_costs_a_few_decode_steps_while_others_decode():
    sizes = size(num_stages=1)
    sizes.observe_decode(0.0205)
    assert sizes.tokens(3000, others_decode=True) == 57
    assert sizes.tokens(3000, others_decode=False) == MAX_TOKENS


@given(st.integers(1, 8), st.integers(1, 100_000), st.floats(0, 1), st.floats(1e-9, 1), st.booleans())
def test_size_is_always_within_its_bounds(stages, prompt, fixed_s, token_s, others):
    sizes = size(stages, ChunkCost(fixed_s, token_s))
    sizes.observe_decode(fixed_s)
    chosen = sizes.tokens(prompt, others_decode=others)
    assert MIN_TOKENS <= chosen <= MAX_TOKENS
    if stages > 1 and not others and prompt <= MAX_TOKENS * MAX_CHUNKS:
        assert chosen * (MAX_CHUNKS + 1) >= min(prompt, MIN_TOKENS)
