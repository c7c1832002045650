"""Which layout all streams take: by the steps that were published of four formats, and with little coming and going."""

import math

import msgspec
import pytest

from strategy.chunking import ChunkCost
from strategy.cost import RequestWork, RouteCosts, RouteLoad, Times
from strategy.decision import decide
from strategy.grouping import Groups
from strategy.layout import Replica, beside, replicated_s, together_s
from strategy.learning import Learning, Seen
from strategy.occupation import Occupation
from strategy.prediction import Conditions
from strategy.situation import Asked, Strategy
from strategy.stage_speed import Hop, StageSpeed
from strategy.tensor_cost import SumCost, TensorCosts, shared_speed
from strategy.vocabulary import Route
from strategy.wishes import Objective
from tests.strategy.test_decision import ANY, CACHED, NEEDS, PIPELINE, SINGLE

ALPHA, BETA, GROUP = Route(("alpha",)), Route(("beta",)), Route(("alpha", "beta"), ranks=2)
TENSOR = Strategy.TENSOR_PARALLEL
# Of a step, in ms: what all rows share, and each; as DESIGN has them of one process.
FORMATS = {"float32": (15, 1.1), "bfloat16": (20, 9.9), "4bit": (6, 23.9)}
BY_WIFI = "4bit by wifi"  # where each sum takes 5 ms
WORK = RequestWork(prompt_tokens=16, generated_tokens=64)
HOP = Hop(1.5e-4, 1e9)


def speed(of_format, share=1.0):
    shared_ms, row_ms = FORMATS["4bit" if of_format == BY_WIFI else of_format]
    return StageSpeed(
        decode=tuple((rows, share * (shared_ms + rows * row_ms) / 1e3) for rows in (1, 2, 4, 8)),
        decode_context_s=0.0,
        chunk=ChunkCost(share * shared_ms / 1e3, share * row_ms / 1e3),
        chunk_context_s=0.0,
        payload_bytes=2048,
    )


def costs_of(of_format):
    """Two workers; ranks divide four fifths of a step, and sum twice in each of eight layers."""
    group = TensorCosts(
        route=GROUP,
        single=speed(of_format),
        cut_decode=0.8,
        cut_chunk=0.8,
        num_layers=8,
        sum_cost=SumCost(5e-3 if of_format == BY_WIFI else 1e-4, 1e9),
    )
    stages = {ALPHA: 1, BETA: 1, PIPELINE: 2}
    found = {
        route: RouteCosts(
            route=route,
            stages=(speed(of_format, 1 / count),) * count,
            hops=(HOP,) * count if count > 1 else (Hop(0.0, math.inf),),
        )
        for route, count in stages.items()
    }
    return found | {
        GROUP: RouteCosts(route=GROUP, stages=(shared_speed(group),), hops=(Hop(0.0, math.inf),)),
    }


def decided(of_format, streams, loads=None, objective=Objective.THROUGHPUT, learning=None):
    costs = costs_of(of_format)
    occupation = Occupation(costs)
    occupation.changed(loads or {})
    conditions = Conditions(
        costs=costs,
        occupation=occupation,
        learning=learning or Learning(),
        objective=objective,
        num_decided=0,
        streams=streams,
    )
    snapshot = msgspec.structs.replace(
        ANY,
        groups=Groups(routes=(GROUP,), why_none=None),
        needs=ANY.needs | {GROUP: dict.fromkeys(GROUP, NEEDS)},
        conditions=conditions,
    )
    return decide(Asked(prompt_tokens=WORK.prompt_tokens, max_tokens=WORK.generated_tokens), snapshot, "measured")


def rate(seconds):
    return 8 * WORK.generated_tokens / sum(seconds)


@pytest.mark.parametrize(("of_format", "least"), [("float32", 1.3), ("bfloat16", 1.6), ("4bit", 1.9)])
def test_eight_streams_take_what_is_best_for_the_format(of_format, least):
    costs, chosen = costs_of(of_format), decided(of_format, 8)
    assert (chosen.strategy is TENSOR) == (of_format == "float32")
    one = rate(together_s(costs[ALPHA], WORK, 8))
    ways = {
        TENSOR: together_s(costs[GROUP], WORK, 8),
        CACHED: together_s(costs[PIPELINE], WORK, 8),
        SINGLE: replicated_s([Replica(costs[ALPHA]), Replica(costs[BETA])], WORK, 8),
    }
    assert rate(ways[chosen.strategy]) >= least * one
    assert rate(ways[chosen.strategy]) >= 0.97 * max(map(rate, ways.values()))
    assert "8 streams like this in" in chosen.reason


def test_one_stream_takes_the_group_in_every_format():
    assert {decided(of_format, 1).strategy for of_format in FORMATS} == {TENSOR}


def test_streams_stay_in_the_layout_that_most_of_them_have_unless_another_is_clearly_better():
    running = {GROUP: RouteLoad(decoding=7, context=20)}
    assert decided("bfloat16", 8).strategy is SINGLE
    assert decided("bfloat16", 8, running).strategy is TENSOR
    assert decided("4bit", 8).strategy is SINGLE
    assert decided("4bit", 8, running).strategy is TENSOR
    assert decided(BY_WIFI, 8, running).strategy is SINGLE
    arriving = {GROUP: RouteLoad(reading=7, reading_tokens=140)}
    assert decided("bfloat16", 8, arriving).strategy is TENSOR


def test_replicas_are_given_as_many_streams_as_they_are_fast():
    fast, slow = Replica(costs_of("4bit")[ALPHA]), Replica(costs_of("4bit")[BETA], reading=3.0, step=3.0)
    assert sum(replicated_s([fast, slow], WORK, 8)) == pytest.approx(
        max(sum(fast.ends(WORK, 6)), sum(slow.ends(WORK, 2)))
    )


def test_streams_on_replicas_go_to_the_worker_that_has_fewer():
    loads = {ALPHA: RouteLoad(decoding=3, context=20), BETA: RouteLoad(decoding=1, context=20)}
    assert decided("4bit", 5, loads).route == BETA


def test_total_of_one_request_is_no_matter_of_streams():
    assert decided("4bit", 8, objective=Objective.TOTAL).strategy is TENSOR


def test_where_next_tokens_are_guessed_they_count_as_far_as_they_come_true():
    learning, plain = Learning(), decided("4bit", 1, objective=Objective.TOTAL).forecast
    learning.renew(costs_of("4bit"))
    of_alone = decided("4bit", 1, {GROUP: RouteLoad(decoding=1)}, Objective.TOTAL).candidates
    assert plain.tokens is None
    assert not any("guesses" in (verdict.reason or "") for verdict in of_alone)
    for route in (ALPHA, BETA):
        learning.saw(SINGLE, route, 15, plain.times, Seen(plain.ttft_s, plain.times.step_s * 0.3, 4.0))
    guessed = decided("4bit", 1, objective=Objective.TOTAL, learning=learning)
    assert guessed.strategy is SINGLE
    assert guessed.forecast.tokens == 4.0
    assert "with guesses, 4 tokens a step" in guessed.reason
    busy = dict.fromkeys((ALPHA, BETA), RouteLoad(decoding=1, context=20))
    beside = decided("4bit", 3, busy, Objective.TOTAL, learning)
    assert all("guesses" not in (verdict.reason or "") for verdict in beside.candidates)


def test_steps_beside_others_are_those_of_as_many_rows():
    costs, times = costs_of("bfloat16")[ALPHA], Times(1.0, 0.1, 2.0)
    found = [beside(times, costs, WORK, 2, mean).step_s for mean in (2, 4, 3)]
    assert found[:2] == [2.0, pytest.approx(2.0 * (20 + 4 * 9.9) / (20 + 2 * 9.9))]
    assert found[2] == pytest.approx(sum(found[:2]) / 2)
    assert beside(times, costs, WORK, 2, 4) == msgspec.structs.replace(times, step_s=found[1])
