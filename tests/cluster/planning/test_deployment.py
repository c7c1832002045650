"""From workers to a plan and from one plan to the next: what is wanted when somebody comes, goes or breaks."""

import msgspec
import pytest

from cluster.planning.deployment import (
    PATIENCE_S,
    SETTLE_S,
    TRANSITIONS,
    BeginPlan,
    Candidate,
    Deployment,
    DeploymentEvent,
    DeploymentState,
    EndPlan,
    Inspect,
    Prepare,
    Refuse,
    SendPlan,
)
from cluster.planning.plan import Loss
from protocol.errors import IllegalEvent
from protocol.messages import Inspected
from protocol.values import LayerRange
from strategy.partition import GroupSizes, ModelSizes
from strategy.vocabulary import NO_LAYERS, Route

GB = 10**9
SIZES = ModelSizes(layers=(100,) * 9, embedding=0, head=0, tied=False)
FOUND = Inspected(
    worker="a",
    architecture="llama",
    num_layers=9,
    legal_cuts=tuple(range(1, 9)),
    why_not=None,
    batches=True,
    last_position_only=True,
    context_tokens=None,
)


def died(name):
    return Loss(workers=(name,), sentence=f"{name} died")


class Played:
    """A deployment of workers with room for `room` bytes each."""

    def __init__(self, *wanted, room=600, kv_copies=0, **options):
        self.deployment = Deployment(wanted=wanted, kv_copies=kv_copies, **options)
        self.room = room
        self.held = {}
        self.deaths = {}

    def there(self, *names):
        return {
            name: Candidate(
                name=name,
                memory_limit_bytes=self.room,
                held=self.held.get(name, ()),
                deaths=self.deaths.get(name, 0),
            )
            for name in names
        }

    def changed(self, *names, now=0.0, lost=None, gone=""):
        return self.deployment.changed(self.there(*names), now, lost, gone)

    def serving(self, *names, sizes=SIZES):
        """Bring it to serve with all of these."""
        self.changed(*names)
        (load,) = self.deployment.inspected(FOUND, sizes, 0)
        self.all_loaded(load)
        return load.partition

    def all_loaded(self, load, now=0.0, unmet=None):
        for stage in load.partition.stages:
            self.held[stage.worker] = () if stage.layers == NO_LAYERS else (stage.layers,)
            actions = self.loaded(stage.worker, now, unmet)
        assert actions[0] == BeginPlan()

    def loaded(self, name, now, unmet=None):
        return self.deployment.loaded(name, self.held.get(name, ()), now, unmet or {})

    def prepared(self, name, now, **demand):
        return self.deployment.prepared(name, self.held.get(name, ()), now, **demand)


def layers(load):
    return {stage.worker: tuple(stage.layers) for stage in load.partition.stages}


@pytest.mark.parametrize("event", DeploymentEvent)
@pytest.mark.parametrize("state", DeploymentState)
def test_every_event_in_every_state_moves_on_by_the_table_or_changes_nothing(state, event):
    subject = Deployment(wanted=("a",))
    subject.state = state
    if (state, event) in TRANSITIONS:
        subject._apply(event)
        assert subject.state is TRANSITIONS[state, event]
    else:
        with pytest.raises(IllegalEvent):
            subject._apply(event)
        assert subject.state is state


def test_first_worker_inspects_and_the_first_plan_waits_for_all():
    played = Played("a", "b", "c")
    assert played.changed("b") == [Inspect("b")]
    assert played.deployment.inspected(FOUND, SIZES, 1) == []
    assert played.changed("a", "b", now=2) == []
    (load,) = played.changed("a", "b", "c", now=3)
    assert layers(load) == {"a": (0, 3), "b": (3, 6), "c": (6, 9)}
    assert played.loaded("a", 4) == []
    assert played.loaded("c", 4) == []
    assert played.loaded("b", 4) == [BeginPlan()]


def test_another_worker_inspects_when_the_first_is_lost():
    played = Played("a", "b")
    assert played.changed("a", "b") == [Inspect("a")]
    assert played.changed("b", lost=died("a"), gone="a") == [Inspect("b")]


def test_first_plan_that_does_not_fit_is_refused_with_the_reason():
    played = Played("a", "b", room=100)
    played.changed("a", "b")
    (refuse,) = played.deployment.inspected(FOUND, SIZES, 0)
    assert isinstance(refuse, Refuse)
    assert "do not fit" in refuse.reason


def test_loss_ends_the_plan_and_survivors_read_only_what_the_lost_one_held():
    played = Played("a", "b", "c")
    played.serving("a", "b", "c")
    end, load = played.changed("a", "c", now=5, lost=died("b"), gone="b")
    assert end == EndPlan(died("b"))
    assert layers(load) in ({"a": (0, 4), "c": (4, 9)}, {"a": (0, 5), "c": (5, 9)})


def test_loss_while_a_plan_loads_makes_another_without_ending_one_that_never_was():
    played = Played("a", "b", "c")
    played.serving("a", "b", "c")
    played.changed("a", "c", lost=died("b"), gone="b")
    played.room = GB
    (load,) = played.changed("a", lost=died("c"), gone="c")
    assert layers(load) == {"a": (0, 9)}


def test_answer_to_an_older_plan_is_none_to_the_next():
    played = Played("a", "b")
    played.serving("a", "b")
    _, load = played.deployment.broken("a link broke", 1)
    assert played.loaded("z", 1) == []
    assert layers(load) == {"a": (0, 4), "b": (4, 9)} or layers(load) == {"a": (0, 5), "b": (5, 9)}


def test_survivors_without_room_wait_and_go_on_when_somebody_comes_back():
    played = Played("a", "b")
    played.serving("a", "b")
    end, refuse = played.changed("a", lost=died("b"), gone="b")
    assert isinstance(end, EndPlan)
    assert isinstance(refuse, Refuse)
    (load,) = played.changed("a", "b", now=9)
    assert {stage.worker for stage in load.partition.stages} == {"a", "b"}


def test_broken_link_begins_a_new_epoch_with_the_same_layers():
    played = Played("a", "b")
    before = played.serving("a", "b")
    end, load = played.deployment.broken("a link broke", 1)
    assert end == EndPlan(Loss(workers=(), sentence="a link broke", cause="link"))
    assert load.partition == before


@pytest.mark.parametrize("is_loaded", [True, False])
def test_plans_that_hardly_live_come_ever_later_until_one_lives_or_somebody_comes(is_loaded):
    played = Played("a", "b")
    played.serving("a", "b")

    def seconds_to_the_next(now):
        """After the plan broke that is sent now, or in force now."""
        if is_loaded:
            for name in "ab":
                played.loaded(name, now)
        broke_at, actions = now, played.deployment.broken("a link broke", now)
        while not any(isinstance(action, SendPlan) for action in actions):
            now += 0.25
            actions = played.deployment.tick(now)
        return now - broke_at

    def waits(now, count):
        found = []
        for _ in range(count):
            found.append(seconds_to_the_next(now))
            now += found[-1]
        return found

    assert seconds_to_the_next(1000) == 0  # it had lived for long
    assert waits(1000, 10) == [0, 0, 1, 2, 4, 8, 16, 32, 60, 60]
    played.changed("a", "b", "c", now=2000)
    assert waits(2000, 3) == [0, 0, 1]
    for name in "abc":
        played.loaded(name, 3000)
    assert isinstance(played.deployment.broken("it lived", 3002)[-1], SendPlan)
    assert waits(3002, 3) == [0, 0, 1]


def test_worker_that_begins_anew_breaks_the_plan_it_was_part_of():
    played = Played("a", "b")
    played.serving("a", "b")
    back = Loss(workers=(), sentence="b came back")
    end, load = played.changed("a", "b", lost=back, gone="b")
    assert (end, type(load)) == (EndPlan(back), SendPlan)


def newcomer(played, now):
    """The plan of a and c, b back at `now`; what was wanted of it."""
    played.serving("a", "b", "c")
    _, load = played.changed("a", "c", lost=died("b"), gone="b")
    played.all_loaded(load)
    played.held["b"] = ()
    return played.changed("a", "b", "c", now=now)


def test_newcomer_reads_ahead_and_is_taken_in_when_it_is_quiet():
    played = Played("a", "b", "c")
    assert newcomer(played, 10) == [Prepare("b", LayerRange(3, 6))]
    tick = played.deployment.tick
    assert tick(10 + SETTLE_S, is_idle=True) == []  # it still reads
    assert played.prepared("b", 10.5, is_idle=True) == []  # others may follow
    assert tick(10 + SETTLE_S, is_idle=False) == []
    end, load = tick(11 + SETTLE_S, is_idle=True)
    assert end.loss.workers == ()
    assert layers(load) == {"a": (0, 3), "b": (3, 6), "c": (6, 9)}


def test_plan_that_breaks_after_a_newcomer_was_taken_in_is_followed_by_the_same():
    """What the others held while it was away is no longer in their memory."""
    played = Played("a", "b", "c")
    newcomer(played, 10)
    played.held["b"] = (LayerRange(3, 6),)
    played.prepared("b", 10.5, is_idle=True)
    _, load = played.deployment.tick(11 + SETTLE_S, is_idle=True)
    played.all_loaded(load, now=20)
    _, again = played.deployment.broken("a step is overdue", 30)
    assert layers(again) == layers(load) == {"a": (0, 3), "b": (3, 6), "c": (6, 9)}


def test_newcomer_is_taken_in_at_the_latest_after_a_while():
    played = Played("a", "b", "c")
    newcomer(played, 10)
    played.prepared("b", 10, is_idle=False)
    assert played.deployment.tick(10 + SETTLE_S + PATIENCE_S - 0.1, is_idle=False) == []
    assert len(played.deployment.tick(10 + SETTLE_S + PATIENCE_S, is_idle=False)) == 2


def test_who_died_often_settles_longer():
    played = Played("a", "b", "c")
    played.deaths["b"] = 3
    newcomer(played, 10)
    played.prepared("b", 10, is_idle=True)
    assert played.deployment.tick(10 + 4 * SETTLE_S - 0.1, is_idle=True) == []
    assert len(played.deployment.tick(10 + 4 * SETTLE_S, is_idle=True)) == 2


def test_newcomer_for_whom_requests_wait_is_taken_in_as_soon_as_it_has_read():
    played = Played("a", "b", "c")
    played.deaths["b"] = 4
    newcomer(played, 10)
    assert played.deployment.tick(10.1, is_idle=True, is_awaited=True) == []  # it still reads
    _, load = played.prepared("b", 10.2, is_idle=False, is_awaited=True)
    assert layers(load) == {"a": (0, 3), "b": (3, 6), "c": (6, 9)}


def test_newcomer_that_is_lost_again_is_forgotten():
    played = Played("a", "b", "c")
    newcomer(played, 10)
    assert played.changed("a", "c", now=11, lost=died("b"), gone="b") == []
    assert played.deployment.tick(100, is_idle=True) == []


def test_after_a_restart_workers_are_waited_for_and_what_they_hold_stays():
    played = Played("a", "b", "c", waits_until=5.0)
    played.held = {"a": (LayerRange(0, 2),), "b": (LayerRange(2, 5),), "c": (LayerRange(5, 9),)}
    played.changed("a", "c")
    assert played.deployment.inspected(FOUND, SIZES, 1) == []
    (load,) = played.changed("a", "b", "c", now=2)
    assert layers(load) == {"a": (0, 2), "b": (2, 5), "c": (5, 9)}


def test_after_a_restart_those_who_do_not_come_are_done_without():
    played = Played("a", "b", "c", waits_until=5.0)
    played.changed("a", "c")
    played.deployment.inspected(FOUND, SIZES, 1)
    assert played.deployment.tick(4.9) == []
    (load,) = played.deployment.tick(5.0)
    assert set(layers(load)) == {"a", "c"}


def test_with_kv_copies_the_neighbour_that_has_them_takes_the_layers_over():
    played = Played("a", "b", "c", kv_copies=1, room=700)
    played.serving("a", "b", "c")
    _, load = played.changed("a", "c", lost=died("b"), gone="b")
    assert layers(load) == {"a": (0, 3), "c": (3, 9)}


def test_model_that_cannot_be_cut_is_held_whole_by_each_with_room():
    played = Played("a", "b", room=GB)
    played.changed("a", "b")
    whole = Inspected(
        **{**{name: getattr(FOUND, name) for name in FOUND.__struct_fields__}, "legal_cuts": (), "why_not": "it loops"}
    )
    (load,) = played.deployment.inspected(whole, SIZES, 0)
    assert layers(load) == {"a": (0, 9), "b": (0, 9)}
    assert load.partition.pipeline is None


def test_stopped_deployment_wants_nothing():
    played = Played("a", "b")
    played.serving("a", "b")
    played.deployment.stop()
    assert played.changed("a", lost=died("b"), gone="b") == []


def test_group_that_holds_only_its_parts_gives_way_to_what_survivors_can_hold_and_comes_back():
    group = GroupSizes(route=Route(("a", "b"), 2), layers=(LayerRange(0, 9),), rank_bytes=(500, 500))
    sizes = msgspec.structs.replace(SIZES, groups=(group,))
    played = Played("a", "b", "c")
    first = played.serving("a", "b", "c", sizes=sizes)
    assert {stage.worker for stage in first.stages if stage.layers == NO_LAYERS} == {"a", "b", "c"}
    assert (first.pipeline, first.groups) == (None, (group,))
    ended, load = played.changed("a", "c", now=10, lost=died("b"), gone="b")
    assert isinstance(ended, EndPlan)
    assert (load.partition.pipeline, load.partition.groups) == (Route(("a", "c")), ())
    played.all_loaded(load, now=11)
    assert played.changed("a", "b", "c", now=20) == []  # nothing is read in advance
    assert played.deployment.tick(20 + SETTLE_S, is_idle=False) == []
    ended, load = played.deployment.tick(20 + SETTLE_S, is_idle=True)
    assert isinstance(ended, EndPlan)
    assert load.partition.groups == (group,)


def test_rank_without_which_nobody_has_room_is_waited_for():
    group = GroupSizes(route=Route(("a", "b"), 2), layers=(LayerRange(0, 9),), rank_bytes=(500, 500))
    played = Played("a", "b")
    first = played.serving("a", "b", sizes=msgspec.structs.replace(SIZES, groups=(group,)))
    ended, refuse = played.changed("a", now=10, lost=died("b"), gone="b")
    assert isinstance(ended, EndPlan)
    assert isinstance(refuse, Refuse)
    (load,) = played.changed("a", "b", now=12)
    assert load.partition == first
