"""What runs on a group costs as one worker's would, on all ranks at once, and holds up what else they do."""

import pytest

from strategy.chunking import ChunkCost
from strategy.cost import RequestWork, RouteCosts, RouteLoad, cached_times
from strategy.learning import Learning
from strategy.occupation import Occupation
from strategy.prediction import Conditions, forecast
from strategy.stage_speed import Hop, StageSpeed
from strategy.vocabulary import Route
from strategy.wishes import Objective

GROUP, ALONE = Route(("a", "b"), ranks=2), Route(("b",))
WORK = RequestWork(prompt_tokens=100, generated_tokens=50)


def costs(route, factor):
    speed = StageSpeed(
        decode=((1, 0.010 * factor), (4, 0.016 * factor)),
        decode_context_s=1e-6 * factor,
        chunk=ChunkCost(0.005 * factor, 0.001 * factor),
        chunk_context_s=0.0,
        payload_bytes=0,
    )
    return RouteCosts(route=route, stages=(speed,), hops=(Hop(0.0, float("inf")),))


COSTS = {GROUP: costs(GROUP, 0.6), ALONE: costs(ALONE, 1.0)}


def conditions(loads):
    occupation = Occupation(COSTS)
    occupation.changed(loads)
    return Conditions(costs=COSTS, occupation=occupation, learning=Learning(), objective=Objective.TOTAL, num_decided=0)


def found(loads, route=GROUP):
    return forecast("tensor-parallel", route, WORK, conditions(loads), cached=True)


def test_group_takes_what_its_steps_take():
    idle = found({})
    assert idle.times == cached_times(COSTS[GROUP], WORK, RouteLoad())
    assert idle.times.step_s == pytest.approx(0.6 * found({}, ALONE).times.step_s)


def test_what_one_rank_does_alone_holds_the_group_up_and_the_other_way_round():
    load = RouteLoad(decoding=2, context=100)
    assert found({ALONE: load}).times.step_s > found({}).times.step_s
    assert found({GROUP: load}, ALONE).times.step_s > found({}, ALONE).times.step_s


def test_other_sequences_of_the_group_share_its_steps():
    assert found({GROUP: RouteLoad(decoding=3, context=100)}).times.step_s > found({}).times.step_s
