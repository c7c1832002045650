"""Ranks as threads: sums in rank order, parts of unequal width, and an end for whoever waits.

In a child process: one that ran MLX on several threads may abort when it ends.
"""

import mlx.core as mx
import pytest

from tests.support.in_child import run_cases, run_in_child
from workers.tensor.group import GroupBroken, on_threads


def sums_have_the_same_bits_on_all_ranks():
    parts = [mx.random.normal((3, 5), key=mx.random.key(rank)) for rank in range(3)]
    mx.eval(parts)
    expected = ((parts[0] + parts[1]) + parts[2]).tolist()
    found = on_threads(3, lambda group: group.sum(parts[group.rank] + 0).tolist())
    assert found == [expected] * 3


def parts_of_unequal_width_are_gathered_in_rank_order():
    def gather(group):
        mine = mx.full((2, (3, 0, 1)[group.rank]), group.rank, mx.bfloat16)
        return group.gather(mine).tolist(), group.gather(mine.T, axis=0).shape

    assert on_threads(3, gather) == [([[0.0, 0.0, 0.0, 2.0]] * 2, (4, 2))] * 3


def an_error_of_one_rank_frees_the_others_and_is_raised():
    freed = []

    def fail(group):
        if group.rank == 1:
            raise ValueError("of rank 1")
        try:
            group.sum(mx.zeros(1))
        except GroupBroken:
            freed.append(group.rank)
            raise

    with pytest.raises(ValueError, match="of rank 1"):
        on_threads(3, fail)
    assert sorted(freed) == [0, 2]


CASES = (
    sums_have_the_same_bits_on_all_ranks,
    parts_of_unequal_width_are_gathered_in_rank_order,
    an_error_of_one_rank_frees_the_others_and_is_raised,
)


@pytest.mark.parametrize("case", [case.__name__ for case in CASES])
def test_ranks_of_threads(case):
    run_in_child(__name__, case)


if __name__ == "__main__":
    run_cases({case.__name__: case for case in CASES})
