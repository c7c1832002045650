"""Who holds copies of whose parts, and what of a worker's room is left for its own."""

import pytest

from strategy.copies import copied_by, copy_holder, share
from strategy.vocabulary import Route

ALONE, TWO, THREE = Route(("a",)), Route(("a", "b")), Route(("a", "b", "c"))


def test_copies_are_with_the_worker_behind_and_the_last_ones_with_the_one_before():
    assert copy_holder(ALONE, "a") is None
    assert [copy_holder(TWO, worker) for worker in TWO] == ["b", "a"]
    assert [copy_holder(THREE, worker) for worker in THREE] == ["b", "c", "b"]


def test_worker_that_is_not_on_the_route_is_an_error():
    with pytest.raises(ValueError, match="tuple"):
        copy_holder(TWO, "c")


def test_who_holds_copies_shares_its_room_evenly_among_whose_they_are():
    assert [copied_by(THREE, worker) for worker in THREE] == [(), ("a", "c"), ("b",)]
    assert [share(60, THREE, worker) for worker in THREE] == [60, 20, 30]
    assert share(60, ALONE, "a") == 60
