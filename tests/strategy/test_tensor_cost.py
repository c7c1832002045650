"""What a tensor group takes: one worker's times, divided where they are cut, and the sums."""

import msgspec
import pytest

from strategy.chunking import ChunkCost
from strategy.cost import RequestWork, RouteCosts, RouteLoad, cached_times
from strategy.sharing import Busy, Elsewhere, Visits
from strategy.stage_speed import StageSpeed
from strategy.tensor_cost import SumCost, TensorCosts, shared_speed, tensor_times
from strategy.vocabulary import Route

SINGLE = StageSpeed(
    decode=((1, 0.020), (8, 0.048)),
    decode_context_s=1e-6,
    chunk=ChunkCost(0.010, 0.001),
    chunk_context_s=1e-8,
    payload_bytes=1000,
)
FREE = SumCost(0.0, float("inf"))
WORK = RequestWork(prompt_tokens=1001, generated_tokens=100)
IDLE = RouteLoad()


def group(ranks, sum_cost=FREE, **changes):
    costs = TensorCosts(
        route=Route(tuple("abcd"[:ranks])),
        single=SINGLE,
        cut_decode=0.75,
        cut_chunk=1.0,
        num_layers=10,
        sum_cost=sum_cost,
        fixed_chunk_tokens=500,
    )
    return msgspec.structs.replace(costs, **changes)


def test_group_of_one_is_the_worker_alone():
    alone = RouteCosts(route=Route(("a",)), stages=(SINGLE,), hops=(), fixed_chunk_tokens=500)
    assert tensor_times(group(1, SumCost(1.0, 1.0)), WORK, IDLE) == cached_times(alone, WORK, IDLE)


@pytest.mark.parametrize("ranks", [2, 4])
def test_only_what_is_cut_shrinks(ranks):
    shared = shared_speed(group(ranks))
    assert shared.decode_s(1, 0) == pytest.approx(0.020 * 0.25 + 0.020 * 0.75 / ranks)
    assert shared.decode_s(8, 0) == pytest.approx(0.048 * 0.25 + 0.048 * 0.75 / ranks)
    assert shared.chunk_s(500, 1000) == pytest.approx(SINGLE.chunk_s(500, 1000) / ranks)


def test_attention_over_the_cache_is_cut_with_the_heads():
    shared = shared_speed(group(2))
    assert shared.decode_s(1, 10_000) - shared.decode_s(1, 0) == pytest.approx(10_000 * 1e-6 / 2)


def test_each_layer_has_two_sums_of_what_a_step_holds():
    shared = shared_speed(group(2, SumCost(0.001, 1e6)))
    free = shared_speed(group(2))
    assert shared.decode_s(1, 0) - free.decode_s(1, 0) == pytest.approx(20 * (0.001 + 0.001))
    assert shared.decode_s(8, 0) - free.decode_s(8, 0) == pytest.approx(20 * (0.001 + 8 * 0.001))
    assert shared.chunk_s(500, 0) - free.chunk_s(500, 0) == pytest.approx(20 * (0.001 + 500 * 0.001))


def test_sum_of_nothing_takes_its_latency():
    assert SumCost(0.25, 10.0).seconds(0) == 0.25
    assert SumCost(0.25, 10.0).seconds(5) == 0.75


def test_each_further_rank_adds_to_every_step():
    told = shared_speed(group(4, rank_s=0.002))
    assert told.decode_s(1, 0) - shared_speed(group(4)).decode_s(1, 0) == pytest.approx(3 * 0.002)
    assert told.chunk_s(500, 0) - shared_speed(group(4)).chunk_s(500, 0) == pytest.approx(3 * 0.002)


def test_group_pays_where_half_a_step_is_longer_than_its_sums():
    alone_s = SINGLE.decode_s(1, 0)
    just_s = alone_s * 0.75 / 2 / 20
    assert shared_speed(group(2, SumCost(0.9 * just_s, 1e12))).decode_s(1, 0) < alone_s
    assert shared_speed(group(2, SumCost(1.1 * just_s, 1e12))).decode_s(1, 0) > alone_s


def test_group_schedules_as_one_worker():
    costs = group(2, SumCost(0.0001, 1e9))
    as_one = RouteCosts(route=Route(("a",)), stages=(shared_speed(costs),), hops=(), fixed_chunk_tokens=500)
    assert tensor_times(costs, WORK, IDLE) == cached_times(as_one, WORK, IDLE)


def test_rank_that_is_busiest_elsewhere_delays_the_group():
    idle = tensor_times(group(2), WORK, IDLE)
    little, much = (Elsewhere((Visits(seconds, 1, 0.1, is_head=True),)) for seconds in (0.005, 0.05))
    busy = tensor_times(group(2), WORK, IDLE, Busy({1: much}))
    assert busy.step_s > idle.step_s
    assert tensor_times(group(2), WORK, IDLE, Busy({0: little, 1: much})) == busy
