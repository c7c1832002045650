"""Whose turn it is of the heads of one worker."""

from protocol.messages import Cancel, Generate
from protocol.values import Route, Sampling
from strategy.chunking import ChunkCost
from workers.engine.heads import Heads
from workers.model.stage_loading import LoadedStages

ALONE, PIPELINE = Route(("a",)), Route(("a", "b"))


def request(number, route=ALONE):
    """Of two tokens."""
    return Generate(
        sequence=number,
        request_id="",
        route=route,
        cached=True,
        max_tokens=1,
        end_tokens=(),
        sampling=Sampling(),
        seed=0,
    )


def heads_of(*routes, **stages):
    """Of the first worker."""
    heads = Heads("a")
    heads.renew(LoadedStages(chunk_costs=dict.fromkeys(routes, ChunkCost(0.001, 0.001)), **stages))
    return heads


def test_others_may_come_behind_a_first_request_where_the_end_of_all_counts_and_nothing_runs():
    heads = heads_of(ALONE, streams_wait=True)
    for number in range(40):
        heads.begin(request(number), [1, 2])
        assert (heads.gathering_s(request(number)) is None) == (number >= 31), "a few are waited for"
    heads = heads_of(ALONE, streams_wait=True)
    heads.begin(request(0), [1, 2])
    assert heads.gathering_s(Cancel(sequence=7)) is None
    (alone,) = heads
    heads.launched(alone, alone.next_step(0.0).step)
    assert heads.gathering_s(request(0)) is None, "a step runs"


def test_nobody_waits_for_others_as_a_rule():
    heads = heads_of(ALONE)
    heads.begin(request(0), [1, 2])
    assert heads.gathering_s(request(0)) is None


def test_head_whose_ids_arrive_while_another_steps_comes_before_that_one_steps_again():
    heads = heads_of(ALONE, PIPELINE)
    for number, route in enumerate((ALONE, PIPELINE)):
        heads.begin(request(number, route), [1, 2])
    alone, pipeline = heads
    heads.launched(alone, alone.next_step(0.0).step)
    assert list(heads) == [pipeline, alone]
    heads.launched(pipeline, pipeline.next_step(0.0).step)
    assert list(heads) == [alone, pipeline]
