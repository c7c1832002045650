"""Chunk sizes from measured costs."""

from itertools import accumulate, pairwise
from random import Random

import pytest
from hypothesis import given
from hypothesis import strategies as st

from strategy.chunking import LONGEST_S, MAX_CHUNKS, MAX_TOKENS, MIN_TOKENS, UNSEEN_S, ChunkCost, ChunkSize

COST = ChunkCost(0.004, 0.001)


def size(num_stages=2, cost=COST, fixed_tokens=None) -> ChunkSize:
    return ChunkSize(num_stages=num_stages, cost=cost, fixed_tokens=fixed_tokens)


def test_line_through_measured_chunks_is_found():
    cost = ChunkCost.fit([(10, 0.03), (20, 0.05), (40, 0.09)])
    assert cost.fixed_s == pytest.approx(0.01)
    assert cost.token_s == pytest.approx(0.002)


def test_two_stages_take_the_chunk_that_is_fastest_in_total():
    cost = ChunkCost(0.02, 0.001)
    chosen = size(cost=cost).tokens(2000, 0, num_decoding=0)

    def total_s(chunk: int) -> float:
        return (1 + 2000 / chunk) * (cost.fixed_s + chunk * cost.token_s)

    best = min(range(MIN_TOKENS, MAX_TOKENS), key=total_s)
    assert total_s(chosen) == pytest.approx(total_s(best), rel=0.01)


def test_one_stage_takes_large_chunks_and_users_choice_wins():
    assert size(num_stages=1).tokens(3000, 0, num_decoding=0) == MAX_TOKENS
    assert size(fixed_tokens=77).tokens(3000, 0, num_decoding=1) == 77


def test_on_a_slow_machine_a_chunk_ends_before_the_next_request_has_waited_long():
    slow = ChunkCost(0.1, 0.03)
    chosen = size(num_stages=1, cost=slow).tokens(3000, 0, num_decoding=0)
    assert slow.fixed_s + chosen * slow.token_s == pytest.approx(LONGEST_S, rel=0.05)


def test_chunk_costs_a_round_of_decode_steps_and_half_of_one_more_while_others_decode():
    sizes = size(num_stages=1)
    sizes.observe_decode(0.0205)
    assert sizes.tokens(3000, 0, num_decoding=1) == 26
    assert sizes.tokens(3000, 0, num_decoding=2) == 47
    assert sizes.tokens(3000, 0, num_decoding=0) == MAX_TOKENS


def test_what_is_left_is_read_at_once_where_the_pause_is_too_short_to_be_seen():
    sizes = size(num_stages=1)
    sizes.observe_decode(0.0205)
    rest = int((UNSEEN_S - COST.fixed_s) / COST.token_s)
    assert sizes.tokens(rest, 0, num_decoding=1) >= rest
    assert sizes.tokens(3000, 2000, num_left=rest, num_decoding=1) >= rest
    assert sizes.tokens(rest + 1, 0, num_decoding=1) == 26


def test_streams_wait_for_a_chunk_as_long_as_a_newcomer_where_only_the_end_of_all_counts():
    sizes = ChunkSize(num_stages=1, cost=COST, fixed_tokens=None, together=True, streams_wait=True)
    sizes.observe_decode(0.0205)
    for num_decoding in (0, 1, 3):
        assert sizes.tokens(3000, 0, num_decoding=num_decoding) == size(num_stages=1).tokens(3000, 0, num_decoding=0)
        assert sizes.joins([32] * 15, 32, num_decoding=num_decoding)


def test_prompts_are_read_together_where_filling_them_up_costs_less_than_another_pass():
    sizes = ChunkSize(num_stages=1, cost=COST, fixed_tokens=None, together=True)
    assert sizes.joins([30], 30, num_decoding=0)
    assert sizes.joins([30], 26, num_decoding=0)
    assert not sizes.joins([30], 25, num_decoding=0)
    assert not sizes.joins([30, 30, 30], 32, num_decoding=0), "all would be filled up for one"
    assert not size(num_stages=1).joins([30], 30, num_decoding=0), "no caches for it"


def test_prompts_are_read_together_only_as_far_as_a_pass_may_go():
    sizes = ChunkSize(num_stages=1, cost=COST, fixed_tokens=None, together=True)
    assert sizes.joins([32] * 15, 32, num_decoding=0)
    assert not sizes.joins([32] * 16, 32, num_decoding=0)
    sizes.observe_decode(0.01)
    assert sizes.joins([32] * 2, 32, num_decoding=1)
    assert not sizes.joins([32] * 3, 32, num_decoding=1), "a pause that is seen"
    chosen = ChunkSize(num_stages=1, cost=COST, fixed_tokens=64, together=True)
    assert chosen.joins([32], 32, num_decoding=0)
    assert not chosen.joins([32], 33, num_decoding=0)


def test_chunks_become_shorter_where_the_tokens_before_them_make_them_dearer():
    sizes = size(num_stages=1)
    sizes.observe_decode(0.1361)
    assert sizes.tokens(9000, 4000, num_decoding=1) == 200, "nothing was learned yet"
    for start in range(0, 4000, 100):
        sizes.observe_chunk(start, 100, 0.004 + 100 * (0.001 + start * 1e-6))
    assert sizes.tokens(9000, 0, num_decoding=1) == 200
    assert sizes.tokens(9000, 4000, num_decoding=1) == pytest.approx(40, abs=2)


@pytest.mark.parametrize("noise", [0.0, 0.03])
def test_tokens_before_a_chunk_are_told_apart_by_what_they_add_to_it_and_to_its_tokens(noise):
    sizes = size(cost=COST)
    random = Random(1)
    for start, tokens in pairwise(accumulate(random.choice((96, 192, 320)) for _ in range(40))):
        seconds = 0.004 + start * 2e-5 + (tokens - start) * (0.001 + start * 1e-6)
        sizes.observe_chunk(start, tokens - start, seconds * random.uniform(1 - noise, 1 + noise))
    behind = sizes.cost_behind(1000)
    assert behind.token_s == pytest.approx(0.002, rel=0.1)
    assert behind.fixed_s == pytest.approx(0.024, rel=0.25)


def prompt_s(sizes: ChunkSize, cost_behind, *, num_tokens: int, num_stages: int) -> float:
    """Of a prompt in chunks of these sizes, over stages alike, which learn of each."""
    ends = [0.0] * num_stages
    computed = 0
    while computed < num_tokens:
        left = num_tokens - computed
        count = min(left, sizes.tokens(num_tokens, computed, num_left=left, num_decoding=0))
        cost, end = cost_behind(computed + count / 2), 0.0
        seconds = cost.fixed_s + count * cost.token_s
        sizes.observe_chunk(computed, count, seconds)
        for stage, free in enumerate(ends):
            ends[stage] = end = max(free, end) + seconds
        computed += count
    return ends[-1]


@pytest.mark.parametrize("num_stages", [2, 4])
def test_what_tokens_before_add_is_learned_and_makes_prompts_faster(num_stages):
    def cost_behind(num_tokens: float) -> ChunkCost:  # much as a CPU takes for a small model
        return ChunkCost(0.0115 + 2.5e-5 * num_tokens, 0.00067 + 0.46e-6 * num_tokens)

    def read_s(sizes: ChunkSize) -> float:
        return prompt_s(sizes, cost_behind, num_tokens=2047, num_stages=num_stages)

    sizes = size(num_stages, cost_behind(0))
    first = read_s(sizes)
    later = [read_s(sizes) for _ in range(3)]
    fixed = min(read_s(size(num_stages, cost_behind(0), fixed_tokens=tokens)) for tokens in range(64, 513, 16))
    assert max(later) < 0.99 * first
    assert max(later) < 1.03 * fixed


def test_last_two_chunks_are_of_one_length_where_later_stages_follow():
    whole = size().tokens(2000, 0, num_decoding=0)
    assert size().tokens(2000, 0, num_left=2 * whole, num_decoding=0) == whole
    assert size().tokens(2000, 0, num_left=whole + 7, num_decoding=0) == -(-(whole + 7) // 2)
    assert size().tokens(2000, 0, num_left=whole, num_decoding=0) == whole
    assert size(num_stages=1).tokens(2000, 0, num_left=MAX_TOKENS + 1, num_decoding=0) == MAX_TOKENS
    assert size(fixed_tokens=77).tokens(3000, 0, num_left=78, num_decoding=0) == 77


def test_what_was_learned_of_long_contexts_is_unlearned_when_it_stops_being_so():
    sizes = size(num_stages=1)
    sizes.observe_chunk(1000, 100, 1.0)
    for _ in range(100):
        sizes.observe_chunk(1000, 100, 0.104)
    assert sizes.cost_behind(1000).token_s == pytest.approx(COST.token_s, rel=0.01)


@given(st.integers(1, 8), st.integers(1, 100_000), st.floats(0, 1), st.floats(1e-9, 1), st.booleans())
def test_size_is_always_within_its_bounds(stages, prompt, fixed_s, token_s, others):
    sizes = size(stages, ChunkCost(fixed_s, token_s))
    sizes.observe_decode(fixed_s)
    chosen = sizes.tokens(prompt, 0, num_decoding=others)
    assert MIN_TOKENS <= chosen <= MAX_TOKENS
    if stages > 1 and not others and prompt <= MAX_TOKENS * MAX_CHUNKS:
        assert chosen * (MAX_CHUNKS + 1) >= min(prompt, MIN_TOKENS)
