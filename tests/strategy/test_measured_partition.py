"""The partition by measured speed: slow workers hold less, and a plan is replaced for a clear gain only."""

import random

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from strategy.layer_speeds import LayerSpeeds, PartSpeed
from strategy.measured_partition import Pace, is_worth_it, measured_partition
from strategy.partition import ModelSizes, Node, partition
from strategy.stage_speed import Hop
from strategy.vocabulary import LayerRange, Route

LAYERS = 12
SIZES = ModelSizes(layers=(100,) * LAYERS, embedding=50, head=50, tied=False)
CUTS = tuple(range(1, LAYERS))
NAMES = ("a", "b", "c")


def speeds(scale=1.0, **changes):
    fields = {
        "decode_s": (0.001 * scale,) * LAYERS,
        "chunk_s": (0.01 * scale,) * LAYERS,
        "chunk_tokens": 128,
        "overhead": PartSpeed(1e-5, 1e-4),
        "embedding": PartSpeed(1e-5, 1e-4),
        "head": PartSpeed(0.001 * scale, 0.001 * scale),
    }
    return LayerSpeeds(**(fields | changes))


HOP = Hop(1e-4, 1e9)


def paces(*scales, hop=HOP):
    return {
        name: Pace(speeds=speeds(scale), hops={other: hop for other in NAMES if other != name}, payload_bytes=1000)
        for name, scale in zip(NAMES, scales, strict=False)
    }


def nodes(number=3, limit=10_000):
    return [Node(name=name, memory_limit_bytes=limit) for name in NAMES[:number]]


def widths(found):
    return {
        stage.worker: stage.layers.end - stage.layers.start for stage in found.stages if stage.worker in found.pipeline
    }


def test_layers_go_by_speed():
    found = measured_partition(SIZES, nodes(), paces(1.0, 1.0, 2.0), CUTS)
    held = widths(found)
    assert sum(held.values()) == LAYERS
    assert held["c"] < held["a"]
    assert all(stage.holds_full_model for stage in found.stages)


def test_worker_that_became_slower_loses_layers():
    even = paces(1.0, 1.0, 1.0)
    slowed = even | {"b": msgspec.structs.replace(even["b"], slowness=3.0)}
    before, after = (measured_partition(SIZES, nodes(), each, CUTS) for each in (even, slowed))
    assert widths(after).get("b", 0) < widths(before)["b"]
    assert is_worth_it(SIZES, nodes(), slowed, before, after)
    assert not is_worth_it(SIZES, nodes(), even, before, after)


def test_worker_that_only_holds_others_up_serves_alone_where_it_can():
    hopeless = paces(1.0, 1.0, 100.0)
    found = measured_partition(SIZES, nodes(), hopeless, CUTS)
    assert found.pipeline in (Route(("a", "b")), Route(("b", "a")))
    assert found.stages[-1].worker == "c"
    assert found.stages[-1].layers == LayerRange(0, LAYERS)
    assert found.stages[-1].holds_full_model


def test_memory_limits_are_kept():
    limits = [
        msgspec.structs.replace(node, memory_limit_bytes=limit)
        for node, limit in zip(nodes(), (400, 700, 700), strict=True)
    ]
    found = measured_partition(SIZES, limits, paces(0.1, 1.0, 1.0), CUTS)
    for stage in found.stages:
        limit = next(node.memory_limit_bytes for node in limits if node.name == stage.worker)
        assert stage.weights_bytes * 1.1 <= limit + 1
        assert not stage.holds_full_model


@given(
    frees=st.lists(st.integers(0, 120), min_size=LAYERS, max_size=LAYERS),
    limits=st.tuples(*[st.integers(150, 1200)] * 3),
)
def test_room_for_caches_is_kept(frees, limits):
    model = msgspec.structs.replace(SIZES, caches=tuple(frees))
    there = [
        msgspec.structs.replace(node, memory_limit_bytes=limit) for node, limit in zip(nodes(), limits, strict=True)
    ]
    found = measured_partition(model, there, paces(0.5, 1.0, 1.0), CUTS)
    for stage in found.stages if found else ():
        assert model.needed(*stage.layers) <= dict(zip("abc", limits, strict=True))[stage.worker]
        assert stage.worker not in found.pipeline or stage.layers != LayerRange(0, LAYERS)


@pytest.mark.parametrize(
    "known",
    [
        paces(1.0, 1.0),
        paces(1.0, 1.0, 1.0) | {"c": Pace(speeds=speeds(head=None))},
        paces(1.0, 1.0, 1.0) | {"c": Pace(speeds=speeds(decode_s=(None,) * LAYERS))},
    ],
)
def test_what_is_not_known_of_every_worker_gives_no_partition(known):
    assert measured_partition(SIZES, nodes(), known, CUTS) is None


def test_manual_split_and_a_worker_alone_stay_as_they_are():
    assert measured_partition(SIZES, nodes(1), paces(1.0), CUTS) is None
    manual = [msgspec.structs.replace(node, layers=LayerRange(0, 1)) for node in nodes()]
    assert measured_partition(SIZES, manual, paces(1.0, 1.0, 1.0), CUTS) is None


def test_noise_of_a_day_replaces_no_plan():
    """Each worker's figures move by a twentieth or so, anew every five minutes."""
    generator = random.Random(0)
    even = paces(1.0, 1.3, 0.8)
    current = measured_partition(SIZES, nodes(), even, CUTS)
    for _ in range(24 * 60 // 5):
        noisy = {
            name: msgspec.structs.replace(pace, slowness=generator.gauss(1.0, 0.05)) for name, pace in even.items()
        }
        found = measured_partition(SIZES, nodes(), noisy, CUTS)
        assert not is_worth_it(SIZES, nodes(), noisy, current, found)


def test_gain_is_against_the_plan_in_force_whatever_made_it():
    even = partition(SIZES, nodes(), CUTS, why_not=None)
    slowed = paces(1.0, 1.0, 4.0)
    assert is_worth_it(SIZES, nodes(), slowed, even, measured_partition(SIZES, nodes(), slowed, CUTS))
