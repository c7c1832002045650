"""Whose turn it is of the heads of one worker."""

from protocol.messages import Generate
from protocol.values import Route, Sampling
from strategy.chunking import ChunkCost
from workers.engine.heads import Heads
from workers.model.stage_loading import LoadedStages

ALONE, PIPELINE = Route(("a",)), Route(("a", "b"))


def test_head_whose_ids_arrive_while_another_steps_comes_before_that_one_steps_again():
    heads = Heads("a")
    heads.renew(LoadedStages(chunk_costs=dict.fromkeys((ALONE, PIPELINE), ChunkCost(0.001, 0.001))))
    for number, route in enumerate((ALONE, PIPELINE)):
        heads.begin(
            Generate(
                sequence=number,
                request_id="",
                route=route,
                cached=True,
                max_tokens=1,
                end_tokens=(),
                sampling=Sampling(),
                seed=0,
            ),
            [1, 2],
        )
    alone, pipeline = heads
    heads.launched(alone, alone.next_step(0.0).step)
    assert list(heads) == [pipeline, alone]
    heads.launched(pipeline, pipeline.next_step(0.0).step)
    assert list(heads) == [alone, pipeline]
