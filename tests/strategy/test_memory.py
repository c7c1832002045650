"""The memory plan of caches."""

from hypothesis import given
from hypothesis import strategies as st

from strategy.memory import (
    KvGrowth,
    KvNeeds,
    prefix_capacity,
    reserved_tokens,
    sequence_bytes,
    worker_budget,
)

PLAIN = KvNeeds(fixed_bytes=0, growth=(KvGrowth(100, None),), snapshots=False)
WINDOW = KvNeeds(fixed_bytes=7, growth=(KvGrowth(100, None), KvGrowth(10, 512)), snapshots=True)


def test_cache_grows_by_whole_steps_and_windows_stop_growing():
    assert sequence_bytes(PLAIN, 1) == sequence_bytes(PLAIN, 256) == 25_600
    assert sequence_bytes(PLAIN, 257) == 51_200
    assert sequence_bytes(WINDOW, 1024) == 7 + 102_400 + 5_120


@given(st.integers(0, 10**12), st.integers(0, 10**12), st.none() | st.integers(1, 10**13), st.booleans())
def test_weights_prefixes_and_sequences_together_keep_the_limit(limit, weights, wanted, prefix):
    budget = worker_budget(limit_bytes=limit, weights_bytes=weights, prefix_limit=wanted, prefix=prefix)
    assert budget.prefix_bytes >= 0
    assert budget.sequence_bytes >= 0
    assert budget.prefix_bytes + budget.sequence_bytes <= max(limit - weights, 0)
    assert prefix or budget.prefix_bytes == 0


def test_route_keeps_as_many_blocks_as_its_smallest_stage_has_room_for():
    assert prefix_capacity([(PLAIN, 64_000), (PLAIN, 6_400)]) == 1


def test_room_is_a_step_ahead_of_what_a_sequence_has_and_never_beyond_its_most():
    assert [reserved_tokens(num_tokens, 10_000) for num_tokens in (1, 191, 192, 447, 448)] == [256, 256, 512, 512, 768]
    assert reserved_tokens(5, 100) == 100
    assert reserved_tokens(100, 100) == 100
