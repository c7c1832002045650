"""Splits by real bytes, within limits, at legal cuts."""

import itertools

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from strategy.partition import ModelSizes, Node, NoPlan, fits, partition, partition_of_survivors
from strategy.vocabulary import LayerRange

GB = 10**9


def sizes(layers, embedding=0, head=0, tied=False) -> ModelSizes:
    return ModelSizes(layers=tuple(layers), embedding=embedding, head=head, tied=tied)


def nodes(*limits: int) -> list[Node]:
    return [Node(name=f"worker-{index}", memory_limit_bytes=limit) for index, limit in enumerate(limits)]


def bounds(found) -> list[tuple[int, int]]:
    return [stage.layers for stage in found.stages]


def cut_anywhere(model: ModelSizes) -> range:
    return range(1, len(model.layers))


def test_equal_layers_are_split_evenly():
    model = sizes([10] * 8)
    assert bounds(partition(model, nodes(GB, GB), cut_anywhere(model), why_not=None)) == [(0, 4), (4, 8)]


def test_split_is_even_by_bytes_not_by_layers():
    model = sizes([60, 10, 10, 10, 10, 10, 10], embedding=0)
    assert bounds(partition(model, nodes(GB, GB), cut_anywhere(model), why_not=None)) == [(0, 1), (1, 7)]


def test_embedding_and_head_count_and_tied_embeddings_count_twice():
    model = sizes([10] * 4, embedding=20, tied=True)
    assert model.stage(0, 2) == 40
    assert model.stage(2, 4) == 40
    assert model.total == 60


def test_small_worker_gets_fewer_layers_and_only_the_large_one_holds_the_full_model():
    model = sizes([100_000_000] * 10)
    found = partition(model, nodes(3 * GB, 350_000_000), cut_anywhere(model), why_not=None)
    assert bounds(found) == [(0, 7), (7, 10)]
    assert [stage.holds_full_model for stage in found.stages] == [True, False]


def test_only_legal_cuts_are_used():
    model = sizes([10] * 8)
    assert bounds(partition(model, nodes(GB, GB), [6], why_not=None)) == [(0, 6), (6, 8)]
    with pytest.raises(NoPlan, match="at 6 only, so at most 2 workers"):
        partition(model, nodes(GB, GB, GB), [6], why_not=None)


def test_more_workers_than_layers_says_both_numbers():
    model = sizes([10] * 2)
    with pytest.raises(NoPlan, match="3 workers are more than the model's 2 layers"):
        partition(model, nodes(GB, GB, GB), [1], why_not=None)


def test_model_that_fits_nowhere_says_how_much_is_there():
    model = sizes([GB] * 4)
    with pytest.raises(
        NoPlan,
        match=r"needs 4.40 GB, 4.00 GB of weights and 0.40 GB for caches and activations, and they have 2.00 GB",
    ):
        partition(model, nodes(GB, GB), cut_anywhere(model), why_not=None)


def with_caches(size, free, num_layers=4):
    return msgspec.structs.replace(sizes([size] * num_layers), caches=(free,) * num_layers, caches_of="two requests")


def test_what_has_no_room_for_its_caches_is_refused_with_the_sum():
    model = with_caches(100_000_000, 50_000_000)
    assert bounds(partition(model, nodes(300_000_000, 300_000_000), cut_anywhere(model), why_not=None)) == [
        (0, 2),
        (2, 4),
    ]
    told = r"0.60 GB, 0.40 GB of weights and 0.20 GB for caches and activations \(two requests\)"
    with pytest.raises(NoPlan, match=rf"needs {told}, and they have 0.60 GB together"):
        partition(model, nodes(299_000_000, 299_000_000), cut_anywhere(model), why_not=None)
    with pytest.raises(NoPlan, match=rf"the full model needs {told}, on one worker"):
        partition(model, nodes(599_000_000), [], why_not="it loops")


def test_small_caches_are_part_of_the_headroom():
    model = with_caches(100_000_000, 9_000_000)
    assert model.needed(0, 4) == sizes([100_000_000] * 4).needed(0, 4)


def test_worker_with_less_room_for_caches_gets_fewer_layers():
    model = with_caches(10, 90, num_layers=8)
    assert bounds(partition(model, nodes(600, 200), cut_anywhere(model), why_not=None)) == [(0, 6), (6, 8)]


def test_manual_split_without_room_for_its_caches_says_what_it_needs():
    model = with_caches(100_000_000, 50_000_000)
    split = [
        Node(name=name, memory_limit_bytes=400_000_000, layers=LayerRange(*layers))
        for name, layers in (("a", (0, 1)), ("b", (1, 4)))
    ]
    with pytest.raises(NoPlan, match=r"what b is given needs 0.45 GB, 0.30 GB of weights and 0.15 GB"):
        partition(model, split, cut_anywhere(model), why_not=None)


def test_model_that_cannot_be_cut_is_held_whole_by_each_worker_with_room_and_the_reason_is_kept():
    model = sizes([10] * 4)
    found = partition(model, nodes(100, 30, 1000), [], why_not="it loops over its layers")
    assert [(stage.worker, stage.layers, stage.holds_full_model) for stage in found.stages] == [
        ("worker-0", (0, 4), True),
        ("worker-2", (0, 4), True),
    ]
    assert found.pipeline is None
    assert "it loops over its layers" in found.why_not
    with pytest.raises(NoPlan, match="it loops over its layers"):
        partition(model, nodes(10, 20), [], why_not="it loops over its layers")


def held(name, limit, *ranges, copies=()):
    return Node(name=name, memory_limit_bytes=limit, held=ranges, copies=copies)


def test_survivors_read_only_what_the_lost_worker_alone_held():
    model = sizes([10] * 8, embedding=5, head=5)
    survivors = [held("a", GB, LayerRange(0, 3)), held("c", GB, LayerRange(6, 8))]
    found = partition_of_survivors(model, survivors, cut_anywhere(model), why_not=None)
    assert bounds(found) == [(0, 4), (4, 8)]
    assert (
        sum(model.missing(*stage.layers, node.held) for node, stage in zip(survivors, found.stages, strict=True)) == 30
    )


def test_survivors_give_up_layers_only_where_the_limit_asks_for_it():
    model = sizes([10] * 8)
    found = partition_of_survivors(
        model, [held("a", 45, LayerRange(0, 4)), held("c", GB, LayerRange(6, 8))], cut_anywhere(model), why_not=None
    )
    assert bounds(found) == [(0, 4), (4, 8)]


def test_kv_copies_decide_between_splits_that_read_the_same():
    model = sizes([10] * 9)
    survivors = [
        held("a", GB, LayerRange(0, 3), copies=(LayerRange(0, 3),)),
        held("c", GB, LayerRange(6, 9), copies=(LayerRange(3, 9),)),
    ]
    assert bounds(partition_of_survivors(model, survivors, cut_anywhere(model), why_not=None)) == [(0, 3), (3, 9)]


def test_manual_split_is_taken_as_it_is():
    model = sizes([10] * 8)
    manual = [
        Node(name="a", memory_limit_bytes=GB, layers=(0, 6)),
        Node(name="b", memory_limit_bytes=GB, layers=(6, 8)),
    ]
    assert bounds(partition(model, manual, cut_anywhere(model), why_not=None)) == [(0, 6), (6, 8)]


@pytest.mark.parametrize("second", [(5, 8), (6, 7), (6, 9), None])
def test_manual_split_must_cover_the_model(second):
    model = sizes([10] * 8)
    manual = [
        Node(name="a", memory_limit_bytes=GB, layers=(0, 6)),
        Node(name="b", memory_limit_bytes=GB, layers=second),
    ]
    with pytest.raises(NoPlan):
        partition(model, manual, cut_anywhere(model), why_not=None)


@given(
    st.lists(st.integers(1, 50), min_size=1, max_size=12),
    st.lists(st.integers(20, 400), min_size=1, max_size=4),
    st.booleans(),
)
def test_stages_are_disjoint_cover_the_model_and_keep_the_limits(layers, limits, tied):
    model = sizes(layers, embedding=7, head=3, tied=tied)
    members = nodes(*limits)
    try:
        found = partition(model, members, cut_anywhere(model), why_not=None)
    except NoPlan:
        return
    assert bounds(found)[0][0] == 0
    assert bounds(found)[-1][1] == len(layers)
    assert all(left[1] == right[0] for left, right in itertools.pairwise(bounds(found)))
    for node, stage in zip(members, found.stages, strict=True):
        assert stage.layers.start < stage.layers.end
        assert stage.weights_bytes * 1.1 <= node.memory_limit_bytes + 2
        assert stage.holds_full_model == fits(model, node)
