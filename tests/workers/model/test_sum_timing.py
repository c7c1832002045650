"""What a pass exchanges is noted, and timed in the sizes that it has."""

import itertools

import mlx.core as mx

from strategy.group_sums import dearest_sum_s
from workers.model.sum_timing import NotedGroup
from workers.tensor.group import Carrier


class Alone:
    """The only rank of its group."""

    rank, size, carrier, in_graph = 0, 1, Carrier("tcp"), False

    def __init__(self):
        self.shapes = []

    def sum(self, x):
        self.shapes.append((x.shape, x.dtype))
        return x

    def gather(self, x, axis=-1, widths=None):
        return x


def test_exchanges_are_timed_in_the_usual_size_and_type():
    group = Alone()
    noted = NotedGroup(group)
    for _ in range(3):
        noted.sum(mx.zeros((1, 1, 8), mx.bfloat16))
    noted.sum(mx.zeros((1, 1, 1)))
    noted.gather(mx.zeros((1, 1, 100)))
    group.shapes.clear()
    ticks = itertools.count()
    found = noted.timed(lambda: float(next(ticks)))
    assert {shape for shape, _ in group.shapes} == {(1, 8), (256, 8)}
    assert {dtype for _, dtype in group.shapes} == {mx.bfloat16}
    assert (found.num_sums, found.row_bytes, found.row_s, found.chunk_bytes, found.token_s) == (5, 16, 1.0, 4096, 5.0)


def test_where_nothing_is_exchanged_nothing_is_timed():
    group = Alone()
    assert NotedGroup(group).timed() is None
    assert group.shapes == []


def test_sums_may_take_what_the_ranks_divide():
    assert dearest_sum_s(0.016, num_layers=8) == 0.0005
    assert dearest_sum_s(0.016, num_layers=8, ranks=4) == 0.00075
