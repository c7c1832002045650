"""Groups whose ranks do not meet: plans do without them, and try them again."""

import msgspec

from cluster.planning.deployment import Refuse
from protocol.values import LayerRange, Route
from strategy.partition import GroupSizes
from strategy.vocabulary import NO_LAYERS
from tests.cluster.planning.test_deployment import FOUND, SIZES, Played, died

ROUTE = Route(("a", "b"), ranks=2)
GROUPED = msgspec.structs.replace(
    SIZES, groups=(GroupSizes(route=ROUTE, layers=(LayerRange(0, 9),), rank_bytes=(350, 350)),)
)
UNMET = {ROUTE: "a+b did not meet: b did not reach a"}


def without_group():
    """Serves, and its group did not meet in its first plan."""
    played = Played("a", "b", "c")
    played.changed("a", "b", "c")
    (load,) = played.deployment.inspected(FOUND, GROUPED, 0)
    assert load.partition.groups == GROUPED.groups
    played.all_loaded(load, 0, UNMET)
    return played


def groups_of(load):
    return load.partition.groups, load.partition.why_no_group


def test_plans_do_without_a_group_that_did_not_meet_until_it_is_tried_again_when_nothing_runs():
    played = without_group()
    tick = played.deployment.tick
    assert tick(9, is_idle=True) == []
    _, load = played.deployment.broken("a link broke", 9)
    assert groups_of(load) == ((), UNMET[ROUTE])
    played.all_loaded(load, 9)
    assert tick(11, is_idle=False) == []
    _, load = tick(11, is_idle=True)
    assert groups_of(load) == (GROUPED.groups, None)
    played.all_loaded(load, 11, UNMET)
    assert tick(30, is_idle=True) == []  # it rests longer now
    _, load = tick(31, is_idle=True)
    played.all_loaded(load, 31)
    assert tick(10_000, is_idle=True) == []  # it met
    _, load = played.deployment.broken("a link broke", 10_000)
    assert groups_of(load) == (GROUPED.groups, None)


def test_group_whose_worker_begins_anew_is_tried_at_once_and_no_other_loss_does_that():
    played = without_group()
    _, load = played.changed("a", "b", now=1, lost=died("c"), gone="c")
    assert groups_of(load) == ((), UNMET[ROUTE])
    played.all_loaded(load, 1)
    _, load = played.changed("a", "b", now=2, lost=died("b"), gone="b")
    assert groups_of(load) == (GROUPED.groups, None)


def test_group_for_which_there_is_no_room_when_it_is_to_be_tried_rests_again():
    played = without_group()
    played.room = 370  # for its stage alone
    assert played.changed("a", "b", "c", now=20) == []
    _, load = played.deployment.tick(20, is_idle=True)
    assert groups_of(load)[0] == ()
    played.all_loaded(load, 20)
    assert played.deployment.tick(29, is_idle=True) == []


def with_parts_alone(room):
    """Two workers that have no room for stages beside their parts; what came of their first plan, in which they did not meet."""
    parts = GroupSizes(route=ROUTE, layers=(LayerRange(0, 9),), rank_bytes=(450, 450))
    played = Played("a", "b", room=room)
    played.changed("a", "b")
    (load,) = played.deployment.inspected(FOUND, msgspec.structs.replace(SIZES, groups=(parts,)), 0)
    assert [stage.layers for stage in load.partition.stages] == [NO_LAYERS] * 2
    assert played.loaded("a", 1) == []
    return played, parts, played.loaded("b", 1, UNMET)


def test_workers_that_had_only_their_parts_get_stages_at_once():
    played, parts, (load,) = with_parts_alone(600)
    assert [stage.layers for stage in load.partition.stages] == [(0, 4), (4, 9)]
    assert groups_of(load) == ((), UNMET[ROUTE])
    played.all_loaded(load, 2)
    _, load = played.deployment.tick(12, is_idle=True)
    assert load.partition.groups == (parts,)


def test_group_without_which_nobody_has_room_is_named_as_the_reason_and_tried_again():
    played, parts, (refuse,) = with_parts_alone(541)
    assert isinstance(refuse, Refuse)
    assert "do not fit" in refuse.reason
    assert refuse.reason.endswith(UNMET[ROUTE])
    (load,) = played.deployment.tick(12)
    assert load.partition.groups == (parts,)
