"""Splits by real bytes, within limits, at legal cuts."""

import itertools

import pytest
from hypothesis import given
from hypothesis import strategies as st

from cluster.errors import ModelError, UsageError
from cluster.model_files import ModelSizes
from cluster.planner import Node, fits, plan

GB = 10**9


def sizes(layers, embedding=0, head=0, tied=False) -> ModelSizes:
    return ModelSizes(layers=tuple(layers), embedding=embedding, head=head, tied=tied)


def nodes(*limits: int) -> list[Node]:
    return [Node(name=f"worker-{index}", memory_limit_bytes=limit) for index, limit in enumerate(limits)]


def bounds(stages) -> list[tuple[int, int]]:
    return [(stage.start, stage.end) for stage in stages]


def cut_anywhere(model: ModelSizes) -> range:
    return range(1, len(model.layers))


def test_equal_layers_are_split_evenly():
    model = sizes([10] * 8)
    assert bounds(plan(model, nodes(GB, GB), cut_anywhere(model), why_not=None)) == [(0, 4), (4, 8)]


def test_split_is_even_by_bytes_not_by_layers():
    model = sizes([60, 10, 10, 10, 10, 10, 10], embedding=0)
    assert bounds(plan(model, nodes(GB, GB), cut_anywhere(model), why_not=None)) == [(0, 1), (1, 7)]


def test_embedding_and_head_count_and_tied_embeddings_count_twice():
    model = sizes([10] * 4, embedding=20, tied=True)
    assert model.stage(0, 2) == 40
    assert model.stage(2, 4) == 40
    assert model.total == 60


def test_small_worker_gets_fewer_layers_and_only_the_large_one_holds_the_full_model():
    model = sizes([100_000_000] * 10)
    stages = plan(model, nodes(3 * GB, 350_000_000), cut_anywhere(model), why_not=None)
    assert bounds(stages) == [(0, 7), (7, 10)]
    assert [stage.holds_full_model for stage in stages] == [True, False]


def test_only_legal_cuts_are_used():
    model = sizes([10] * 8)
    assert bounds(plan(model, nodes(GB, GB), [6], why_not=None)) == [(0, 6), (6, 8)]
    with pytest.raises(UsageError, match="at 6 only, so at most 2 workers"):
        plan(model, nodes(GB, GB, GB), [6], why_not=None)


def test_more_workers_than_layers_says_both_numbers():
    model = sizes([10] * 2)
    with pytest.raises(UsageError, match="3 workers are more than the model's 2 layers"):
        plan(model, nodes(GB, GB, GB), [1], why_not=None)


def test_model_that_fits_nowhere_says_how_much_is_there():
    model = sizes([GB] * 4)
    with pytest.raises(UsageError, match=r"4.00 GB of weights do not fit the 2 workers, which have room for 1.82 GB"):
        plan(model, nodes(GB, GB), cut_anywhere(model), why_not=None)


def test_model_that_cannot_be_cut_goes_whole_to_the_largest_worker():
    model = sizes([10] * 4)
    stages = plan(model, nodes(100, 1000), [], why_not="it loops over its layers")
    assert [(stage.worker, stage.start, stage.end, stage.holds_full_model) for stage in stages] == [
        ("worker-1", 0, 4, True)
    ]
    with pytest.raises(ModelError, match="it loops over its layers"):
        plan(model, nodes(10, 20), [], why_not="it loops over its layers")


def test_manual_split_is_taken_as_it_is():
    model = sizes([10] * 8)
    manual = [
        Node(name="a", memory_limit_bytes=GB, layers=(0, 6)),
        Node(name="b", memory_limit_bytes=GB, layers=(6, 8)),
    ]
    assert bounds(plan(model, manual, cut_anywhere(model), why_not=None)) == [(0, 6), (6, 8)]


@pytest.mark.parametrize("second", [(5, 8), (6, 7), (6, 9), None])
def test_manual_split_must_cover_the_model(second):
    model = sizes([10] * 8)
    manual = [
        Node(name="a", memory_limit_bytes=GB, layers=(0, 6)),
        Node(name="b", memory_limit_bytes=GB, layers=second),
    ]
    with pytest.raises(UsageError):
        plan(model, manual, cut_anywhere(model), why_not=None)


@given(
    st.lists(st.integers(1, 50), min_size=1, max_size=12),
    st.lists(st.integers(20, 400), min_size=1, max_size=4),
    st.booleans(),
)
def test_stages_are_disjoint_cover_the_model_and_keep_the_limits(layers, limits, tied):
    model = sizes(layers, embedding=7, head=3, tied=tied)
    members = nodes(*limits)
    try:
        stages = plan(model, members, cut_anywhere(model), why_not=None)
    except UsageError:
        return
    assert bounds(stages)[0][0] == 0
    assert bounds(stages)[-1][1] == len(layers)
    assert all(left.end == right.start for left, right in itertools.pairwise(stages))
    for node, stage in zip(members, stages, strict=True):
        assert stage.start < stage.end
        assert stage.weights_bytes * 1.1 <= node.memory_limit_bytes + 2
        assert stage.holds_full_model == fits(model, node)
