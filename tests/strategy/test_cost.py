"""What requests cost on routes: against small simulations of what heads and stages do."""

import math

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from strategy.chunking import ChunkCost
from strategy.cost import (
    RequestWork,
    RouteCosts,
    RouteLoad,
    batches,
    cached_times,
    chunk_tokens,
    handed_over_times,
    uncached_times,
)
from strategy.stage_speed import Hop, StageSpeed
from strategy.vocabulary import Route

IDLE = RouteLoad()
QUICK = Hop(1e-4, 1e9)


def stage(scale=1.0, *, context_s=0.0, payload_bytes=1000):
    return StageSpeed(
        decode=((1, 0.004 * scale), (2, 0.005 * scale), (4, 0.007 * scale), (8, 0.011 * scale)),
        decode_context_s=context_s,
        chunk=ChunkCost(0.003 * scale, 0.0005 * scale),
        chunk_context_s=context_s,
        payload_bytes=payload_bytes,
    )


def route(*stages, hop=QUICK, chunk=64):
    names = tuple(f"w{number}" for number in range(len(stages)))
    return RouteCosts(route=Route(names), stages=stages, hops=(hop,) * len(stages), fixed_chunk_tokens=chunk)


def simulated_reading_s(costs, num_chunks, chunk):
    """Each stage does the chunks in order, each as soon as the stage before has passed it on."""
    free = [0.0] * len(costs.stages)
    for _ in range(num_chunks):
        at = 0.0
        for place, each in enumerate(costs.stages):
            at = free[place] = max(free[place], at) + each.chunk_s(chunk, 0)
            if place < len(costs.stages) - 1:
                at += costs.hops[place].seconds(chunk * each.payload_bytes)
    return free[-1]


@given(
    scales=st.lists(st.floats(0.1, 10), min_size=1, max_size=6),
    num_chunks=st.integers(1, 20),
    chunk=st.sampled_from([16, 64, 512]),
)
def test_chunks_follow_each_other_through_the_stages(scales, num_chunks, chunk):
    costs = route(*map(stage, scales), chunk=chunk)
    work = RequestWork(prompt_tokens=num_chunks * chunk + 1, generated_tokens=1)
    assert cached_times(costs, work, IDLE).read_s == pytest.approx(simulated_reading_s(costs, num_chunks, chunk))


def test_what_the_caches_have_is_not_read():
    costs = route(stage(), stage())
    whole, rest = (
        cached_times(costs, RequestWork(prompt_tokens=641, cached_tokens=cached, generated_tokens=5), IDLE)
        for cached in (0, 576)
    )
    assert rest.read_s < whole.read_s / 4
    assert rest.first_s == whole.first_s
    assert cached_times(costs, RequestWork(prompt_tokens=65, cached_tokens=64, generated_tokens=5), IDLE).read_s == 0


def test_token_takes_a_step_through_all_stages_and_the_links():
    costs = route(stage(), stage(2.0))
    times = cached_times(costs, RequestWork(prompt_tokens=10, generated_tokens=10), IDLE)
    assert times.step_s == pytest.approx(0.004 + 0.008 + 2e-4 + 1000 / 1e9 + 200 / 1e9)
    slow = cached_times(
        route(stage(), stage(2.0), hop=Hop(0.01, 1e9)), RequestWork(prompt_tokens=10, generated_tokens=10), IDLE
    )
    assert slow.step_s == pytest.approx(times.step_s + 2 * (0.01 - 1e-4))


def test_alone_it_needs_no_link():
    times = cached_times(route(stage(), hop=Hop(5.0, 1.0)), RequestWork(prompt_tokens=10, generated_tokens=10), IDLE)
    assert times.first_s == times.step_s == pytest.approx(0.004)


@pytest.mark.parametrize(
    ("num_sequences", "num_stages", "expected"),
    [(1, 1, (1, 1)), (5, 1, (1, 5)), (1, 2, (1, 1)), (5, 2, (2, 3)), (2, 4, (2, 1))],
)
def test_decoding_sequences_go_into_as_many_batches_as_there_are_stages(num_sequences, num_stages, expected):
    assert batches(num_sequences, num_stages) == expected


def test_busy_route_goes_at_the_pace_of_its_slowest_stage():
    costs = route(stage(), stage(3.0))
    times = cached_times(costs, RequestWork(prompt_tokens=10, generated_tokens=10), RouteLoad(decoding=7, context=10))
    assert times.step_s == pytest.approx(2 * stage(3.0).decode_s(4, 0))


def test_batches_of_others_step_between_two_chunks_and_their_prompts_take_turns():
    costs, work = route(stage()), RequestWork(prompt_tokens=641, generated_tokens=1)
    alone = cached_times(costs, work, IDLE).read_s
    beside = cached_times(costs, work, RouteLoad(decoding=3, context=10)).read_s
    assert beside == pytest.approx(alone + 10 * stage().decode_s(3, 0))
    assert cached_times(costs, work, RouteLoad(reading_tokens=10_000)).read_s == pytest.approx(2 * alone)
    assert alone < cached_times(costs, work, RouteLoad(reading_tokens=64)).read_s < 1.2 * alone


def test_without_a_cache_every_token_reads_everything_again():
    costs = route(stage(), stage())
    times = uncached_times(costs, RequestWork(prompt_tokens=100, generated_tokens=20), IDLE)
    assert times.read_s == 0
    assert times.first_s == pytest.approx(2 * stage().chunk_s(100, 0) + 2e-4 + (100_000 + 200) / 1e9)
    assert times.step_s == pytest.approx(2 * stage().chunk_s(110, 0) + 2e-4 + (110_000 + 200) / 1e9)
    assert (
        uncached_times(costs, RequestWork(prompt_tokens=100, generated_tokens=20), RouteLoad(uncached=2)).first_s
        > times.first_s
    )


def test_batch_is_as_long_for_a_newcomer_as_for_the_longest_of_it():
    costs, work = route(stage(context_s=1e-6)), RequestWork(prompt_tokens=10, generated_tokens=2)
    beside = cached_times(costs, work, RouteLoad(decoding=3, context=800, longest=900))
    assert beside.step_s == pytest.approx(0.007 + 4 * 901e-6, rel=1e-3)


def test_newcomer_who_goes_with_no_batch_has_one_of_its_own():
    costs, load = route(stage()), RouteLoad(decoding=3, context=50)
    joined, apart = (
        cached_times(costs, RequestWork(prompt_tokens=prompt, cached_tokens=prompt - 1, generated_tokens=8), load)
        for prompt in (60, 3000)
    )
    assert joined.step_s == pytest.approx(stage().decode_s(4, 0))
    assert apart.step_s == pytest.approx(stage().decode_s(3, 0) + stage().decode_s(1, 0))


def test_while_a_long_prompt_is_read_others_come_nearer_to_its_length():
    costs, load = route(stage()), RouteLoad(decoding=3, context=1250)
    unread, read = (
        cached_times(costs, RequestWork(prompt_tokens=2100, cached_tokens=cached, generated_tokens=8), load).step_s
        for cached in (0, 2099)
    )
    assert unread < read


def test_prompt_for_which_streams_wait_is_read_sooner():
    costs, load = route(stage(), chunk=None), RouteLoad(decoding=3, context=50)
    work = RequestWork(prompt_tokens=2001, generated_tokens=8)
    waiting = msgspec.structs.replace(costs, streams_wait=True)
    assert chunk_tokens(waiting, work, load) == chunk_tokens(costs, work, IDLE) > chunk_tokens(costs, work, load)
    assert cached_times(waiting, work, load).read_s < cached_times(costs, work, load).read_s


def test_context_makes_chunks_and_steps_dearer():
    costs, work = route(stage(context_s=1e-6)), RequestWork(prompt_tokens=1001, generated_tokens=1000)
    times = cached_times(costs, work, IDLE)
    assert times.first_s == pytest.approx(0.004 + 1001e-6)
    assert times.step_s == pytest.approx(0.004 + 1501e-6)
    assert times.read_s == pytest.approx(1000 / 64 * 0.003 + 1000 * 0.0005 + 1000 * 500 * 1e-6, rel=1e-3)


def test_handed_over_it_is_read_by_all_and_generated_by_one():
    halves, whole = route(stage(0.5), stage(0.5)), route(stage())
    work = RequestWork(prompt_tokens=641, generated_tokens=50)
    alone = cached_times(whole, work, IDLE)
    handed = handed_over_times(cached_times(halves, work, IDLE), alone, work, Hop(1e-4, 1e6))
    assert handed.step_s == alone.step_s
    assert handed.read_s < 0.7 * alone.read_s
    late = handed_over_times(cached_times(halves, work, IDLE), alone, work, Hop(1e-4, 100.0))
    assert late.read_s > 640 / 100.0


@given(
    made=st.lists(st.tuples(*[st.sampled_from([0.001, 0.002, 0.005])] * 4), min_size=1, max_size=8),
    rows=st.integers(1, 12),
    context=st.integers(0, 500),
)
def test_slowest_stage_is_among_the_slow_ones_whatever_is_run(made, rows, context):
    stages = [
        StageSpeed(
            decode=((1, decode), (4, 2 * decode)),
            decode_context_s=context_s / 1000,
            chunk=ChunkCost(fixed, token),
            chunk_context_s=context_s / 1000,
            payload_bytes=10,
        )
        for decode, fixed, token, context_s in made
    ]
    costs = route(*stages)
    for run in (lambda one: one.decode_s(rows, context), lambda one: one.chunk_s(rows, context)):
        assert max(map(run, costs.slow)) == max(map(run, stages))
        assert run(costs.total) == pytest.approx(math.fsum(map(run, stages)))


def test_chunks_are_those_of_the_head():
    costs = route(stage(), stage(), chunk=None)
    work = RequestWork(prompt_tokens=2048, generated_tokens=1)
    assert chunk_tokens(costs, work, IDLE) < 512
    assert chunk_tokens(costs, work, RouteLoad(decoding=1, context=10)) < chunk_tokens(costs, work, IDLE)
    assert chunk_tokens(route(stage(), stage(), chunk=99), work, IDLE) == 99
