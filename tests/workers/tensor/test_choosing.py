"""Which cuts are chosen, by what comes out right, played by a script; and who says so when nothing can be cut."""

import msgspec
import pytest

from protocol.errors import ModelError
from workers import zoo
from workers.tensor.choosing import Choice
from workers.tensor.layout import fits
from workers.tensor.plan import CutPlan
from workers.tensor.trying import derive

ATTENTION, FEED_FORWARD = "self_attn:Attention", "mlp:MLP"


class Script:
    """Tries of a tiny model that come out as `verdict` says of a plan."""

    vocabulary_size = 320

    def __init__(self, verdict):
        self.model = zoo.random_model(zoo.tiny_config("qwen2"))
        self._verdict = verdict

    def right(self, plan):
        return self._verdict(plan)

    def likely(self, plan, sizes=None):
        return self._verdict(plan)

    def sizes_for(self, module, cut):
        return (2,) if fits(module, cut, 2) else ()


def chosen(verdict):
    return Choice(Script(verdict), "qwen2", 2).plan()


def kinds(plan):
    return {role: [cut.kind for cut in cuts] for role, cuts in plan.modules.items()}


def test_the_best_of_what_is_right_comes_first_and_gathering_behind_it():
    plan = chosen(lambda _: True)
    assert kinds(plan) == {ATTENTION: ["heads", "gather"], FEED_FORWARD: ["feed-forward", "gather"]}
    assert plan.projection == "lm_head"


def test_what_is_cut_in_no_better_way_is_gathered():
    plan = chosen(lambda plan: all(cut.kind != "heads" for cuts in plan.modules.values() for cut in cuts))
    assert kinds(plan) == {ATTENTION: ["gather"], FEED_FORWARD: ["feed-forward", "gather"]}


def test_what_is_right_alone_but_not_together_is_cut_in_one_place():
    plan = chosen(lambda plan: len(plan.modules) < 2)
    assert kinds(plan) == {ATTENTION: ["heads"]}


def test_a_projection_that_is_wrong_stays_whole():
    plan = chosen(lambda plan: plan.projection is None)
    assert plan.projection is None
    assert set(plan.modules) == {ATTENTION, FEED_FORWARD}


def test_nothing_is_cut_where_nothing_is_right():
    assert chosen(lambda _: False).modules == {}


def test_a_plan_survives_the_wire():
    plan = chosen(lambda _: True)
    assert msgspec.json.decode(msgspec.json.encode(plan), type=CutPlan) == plan


def test_what_mlx_lm_lacks_is_refused_with_the_reason():
    with pytest.raises(ModelError, match="no architecture 'nothing'"):
        derive({"model_type": "nothing"}, 2)
