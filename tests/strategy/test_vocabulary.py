"""Who is where on a route, and who tells whom, with one worker or several for each stage."""

import pytest

from strategy.vocabulary import Route

PIPELINE = Route(("a", "b", "c"))
GROUP = Route(("a", "b"), ranks=2)
BOTH = Route(("a", "b", "c", "d"), ranks=2)


@pytest.mark.parametrize(
    ("route", "said", "num_stages", "last"),
    [(PIPELINE, "a>b>c", 3, "c"), (GROUP, "a+b", 1, "a"), (BOTH, "a+b>c+d", 2, "c")],
)
def test_stages_and_who_samples(route, said, num_stages, last):
    assert (str(route), route.num_stages, route.last, route.head) == (said, num_stages, last, "a")


def test_group_is_another_route_than_a_pipeline_of_the_same_workers():
    assert Route(("a", "b")) != GROUP
    assert len({GROUP, Route(("a", "b")), Route(("a", "b"), ranks=2)}) == 2


@pytest.mark.parametrize(
    ("route", "told"),
    [
        (PIPELINE, {"a": ("b",), "b": ("c",), "c": ()}),
        (GROUP, {"a": ("b",), "b": ()}),
        (BOTH, {"a": ("b", "c"), "b": ("d",), "c": (), "d": ()}),
        (Route(("a",)), {"a": ()}),
    ],
)
def test_everyone_behind_the_head_is_told_once(route, told):
    assert {worker: route.told_by(worker) for worker in route} == told


def test_ranks_of_a_stage_know_each_other():
    assert [BOTH.rank_of(worker) for worker in BOTH] == [0, 1, 0, 1]
    assert [BOTH.beside(worker) for worker in BOTH] == [("b",), ("a",), ("d",), ("c",)]
    assert [BOTH.is_in_last_stage(worker) for worker in BOTH] == [False, False, True, True]
    assert PIPELINE.beside("b") == ()
    assert [BOTH.together_with(worker) for worker in BOTH] == [("a", "b")] * 2 + [("c", "d")] * 2
    assert [BOTH.stage_of(worker) for worker in BOTH] == [0, 0, 1, 1]
    assert (BOTH.heads, GROUP.heads, PIPELINE.heads) == (("a", "c"), ("a",), ("a", "b", "c"))


@pytest.mark.parametrize(
    ("route", "is_sound"),
    [
        (GROUP, True),
        (BOTH, True),
        (Route(("a", "b", "c"), 2), False),
        (Route(("a",), 0), False),
        (Route(("a", "a"), 2), False),
        (Route(()), False),
    ],
)
def test_route_with_a_rank_missing_is_not_sound(route, is_sound):
    assert route.is_sound == is_sound
