"""Parts of groups lie beside the rest of a plan, or there is no group, and it is said why."""

import msgspec
import pytest

from strategy.grouping import NO_GROUP, beside_groups, group_sizes, groups_of
from strategy.partition import GroupSizes, ModelSizes, Node, NoPlan, partition
from strategy.vocabulary import NO_LAYERS, LayerRange, Route

MB = 1_000_000
ROUTE = Route(("a", "b"), ranks=2)
SIZES = ModelSizes(
    layers=(50 * MB,) * 8,
    embedding=0,
    head=0,
    tied=False,
    groups=(GroupSizes(route=ROUTE, layers=(LayerRange(0, 8),), rank_bytes=(210 * MB, 190 * MB)),),
)


def nodes(**limits):
    return [Node(name=name, memory_limit_bytes=limit * MB) for name, limit in limits.items()]


def found(given, sizes=SIZES):
    return beside_groups(sizes, given, lambda nodes: partition(sizes, nodes, range(1, 8), why_not=None))


def test_parts_are_set_aside_before_layers_and_full_models_are_given():
    plan = found(nodes(a=660, b=620))
    assert [stage.holds_full_model for stage in plan.stages] == [True, False]
    assert plan.groups == SIZES.groups
    assert groups_of(plan, SIZES).routes == (ROUTE,)


def test_uneven_memory_beside_the_parts_moves_the_cut():
    plan = found(nodes(a=330, b=700))
    assert [tuple(stage.layers) for stage in plan.stages] == [(0, 2), (2, 8)]


def test_group_whose_parts_fit_only_alone_has_them_alone():
    plan = found(nodes(a=300, b=300))
    assert [(stage.layers, stage.weights_bytes, stage.holds_full_model) for stage in plan.stages] == [
        (NO_LAYERS, 0, False)
    ] * 2
    assert plan.pipeline is None
    assert plan.why_not.startswith("a+b have room for nothing but their parts of the model: ")
    assert groups_of(plan, SIZES).routes == (ROUTE,)


def test_parts_alone_take_as_much_beside_their_weights_as_stages_do():
    assert found(nodes(a=232, b=210)).groups == SIZES.groups
    assert found(nodes(a=230, b=230)).groups == ()
    sizes = msgspec.structs.replace(SIZES, caches=(10 * MB,) * 8)
    assert found(nodes(a=249, b=240), sizes).groups == ()
    assert found(nodes(a=250, b=240), sizes).groups == SIZES.groups


@pytest.mark.parametrize("given", [nodes(a=230, b=230), [*nodes(a=300, b=301)]])
def test_plan_without_room_for_the_parts_is_made_without_them(given):
    """Neither where somebody says which layers a worker has."""
    if given[0].memory_limit_bytes == 300 * MB:
        given = [
            msgspec.structs.replace(node, layers=layers)
            for node, layers in zip(given, (LayerRange(0, 4), LayerRange(4, 8)), strict=True)
        ]
    plan = found(given)
    assert (plan.groups, plan.pipeline) == ((), Route(("a", "b")))
    groups = groups_of(plan, SIZES)
    assert groups.routes == ()
    assert "no room for its parts beside the stages: " in groups.why_none


@pytest.mark.parametrize(
    ("limits", "held", "pipeline"),
    [
        ({"c": 441}, {"c": (0, 8)}, ("c",)),
        ({"c": 200, "d": 280}, {"c": (0, 3), "d": (3, 8)}, ("c", "d")),
        ({"c": 200}, {"c": (0, 0)}, None),
    ],
)
def test_workers_beside_a_group_of_parts_share_the_model_among_themselves(limits, held, pipeline):
    plan = found(nodes(a=240, b=240, **limits))
    stages = {stage.worker: tuple(stage.layers) for stage in plan.stages}
    assert stages == {"a": (0, 0), "b": (0, 0)} | held
    assert plan.pipeline == (None if pipeline is None else Route(pipeline))
    assert (plan.why_not is None) == (pipeline is not None)
    assert groups_of(plan, SIZES).routes == (ROUTE,)


def test_survivor_of_a_group_of_parts_has_what_it_can_hold():
    with pytest.raises(NoPlan, match="do not fit"):
        found(nodes(a=300))
    assert found(nodes(a=441)).stages[0].holds_full_model


def test_plan_that_has_no_room_at_all_is_refused_as_ever():
    with pytest.raises(NoPlan, match="do not fit"):
        found(nodes(a=200, b=200))


def test_group_of_which_a_worker_is_missing_is_waited_for_and_keeps_its_room():
    assert found(nodes(a=640)).groups == ()  # all of its memory goes to the layers
    groups = groups_of(found(nodes(a=660)), SIZES)
    assert groups.routes == ()
    assert (groups.why_none, groups.are_awaited) == ("b of the group a+b is not there", True)


def test_model_that_cannot_be_cut_so_says_why():
    sizes = ModelSizes(layers=(1,) * 8, embedding=0, head=0, tied=False, why_no_group="it has 3 heads")
    assert groups_of(found(nodes(a=600, b=600), sizes), sizes).why_none == "it has 3 heads"


def test_nobody_in_groups_is_said_how_to_have_one():
    sizes = ModelSizes(layers=(1,) * 8, embedding=0, head=0, tied=False)
    groups = groups_of(found(nodes(a=600, b=600), sizes), sizes)
    assert (groups.why_none, groups.are_awaited) == (NO_GROUP, False)


def test_stages_of_a_group_are_even_and_each_rank_has_its_share_of_one():
    sizes = ModelSizes(layers=(100, 100, 100, 100, 200, 200), embedding=7, head=30, tied=False)
    found = group_sizes(sizes, Route(("a", "b", "c", "d"), 2), (0.6, 0.41), range(1, 6), why_not=None)
    assert found.layers == (LayerRange(0, 4), LayerRange(4, 6))
    assert found.rank_bytes == (240 + 7, 164 + 7, 240 + 30, 164 + 30)
    whole = group_sizes(sizes, ROUTE, (0.5, 0.5), (), why_not="it is one block")  # which has no cuts, and needs none
    assert (whole.layers, whole.rank_bytes) == ((LayerRange(0, 6),), (437, 437))


@pytest.mark.parametrize(("cuts", "why_not"), [((), "it is one block"), ((3,), None)])
def test_group_in_more_stages_than_the_model_has_is_none(cuts, why_not):
    with pytest.raises(NoPlan, match=why_not or "into the 3 stages of a\\+b>c\\+d>e\\+f"):
        group_sizes(SIZES, Route(tuple("abcdef"), 2), (0.5, 0.5), cuts, why_not=why_not)
