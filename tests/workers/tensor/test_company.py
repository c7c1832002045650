"""Ranks are met with each plan, left with the next, and freed from each other at any time."""

import msgspec
import pytest

from protocol.messages import GroupPlan, StagePlan
from protocol.values import LayerRange, Peer, Route
from tests.support.load_stages import load_stage
from tests.workers.engine.test_together import Ranks
from workers.engine.checks import Checks
from workers.engine.fitness import UnfitMessage
from workers.model.shelf import Overtaken
from workers.model.stage_loading import LoadedStages
from workers.tensor import meeting
from workers.tensor.company import Company
from workers.tensor.group import NotMet

INBOX = Peer(endpoint="tcp://coordinator:1", public_key="coordinator")
GROUP = GroupPlan(route=Route(("a", "b"), ranks=2), layers=(LayerRange(0, 1),), cut="{}", secret="00")
STAGES = GroupPlan(
    route=Route(("a", "b", "c", "d"), ranks=2), layers=(LayerRange(0, 1), LayerRange(1, 3)), cut="{}", secret="00"
)


def plan_of(*names, groups=(GROUP,)):
    stages = tuple(
        StagePlan(
            worker=name,
            peer=Peer(endpoint=f"tcp://{name}:1", public_key=name),
            layers=LayerRange(0, 1),
            holds_full_model=True,
        )
        for name in names
    )
    return msgspec.structs.replace(load_stage("digest", INBOX), stages=stages, groups=groups)


class Meetings:
    """Each meets new ranks."""

    def __init__(self):
        self.met = []

    def __call__(self, plan, name, peers, is_over, waiting):
        self.met.append((plan, name, sorted(peers), Ranks()))
        self.waiting = waiting
        return self.met[-1][-1]


def test_each_plan_meets_anew_and_leaves_those_of_the_one_before():
    meetings = Meetings()
    company = Company(meetings, lambda: False)
    assert company.renew("a", plan_of("a", "b", "c")) == GROUP
    assert [met[:3] for met in meetings.met] == [(GROUP, "a", ["a", "b", "c"])]
    first = company.group
    company.renew("a", plan_of("a", "b"))
    assert first.is_closed
    assert company.group is meetings.met[1][3]
    company.abort()
    assert company.group.is_aborted


def test_worker_that_met_nobody_loads_what_else_the_plan_wants_and_says_why():
    def meet_nobody(*_):
        raise NotMet("b did not come to a in 10 s")

    company = Company(meet_nobody, lambda: False)
    assert company.renew("a", plan_of("a", "b")) == GROUP
    assert (company.group, company.unmet) == (None, "b did not come to a in 10 s")
    company.renew("a", plan_of("a", "c"))
    assert company.unmet is None


@pytest.mark.parametrize(("plan", "own"), [(plan_of("a", "c"), GROUP), (plan_of("a", "b", groups=()), None)])
def test_nobody_is_met_where_somebody_is_missing_or_there_is_no_group(plan, own):
    meetings = Meetings()
    company = Company(meetings, lambda: False)
    assert company.renew("a", plan) == own
    assert (company.group, meetings.met) == (None, [])
    company.abort()


def test_worker_of_no_group_meets_nobody():
    meetings = Meetings()
    assert Company(meetings, lambda: False).renew("c", plan_of("a", "b", "c")) is None
    assert meetings.met == []


def test_what_came_while_they_met_is_not_kept_waiting():
    company = Company(Meetings(), lambda: True)
    with pytest.raises(Overtaken):
        company.renew("a", plan_of("a", "b"))


def test_who_waits_is_told_only_while_somebody_wants_to_know():
    meetings, told, waited = Meetings(), [], []
    company = Company(meetings, lambda: False, waits=lambda: waited.append("waits"))
    company.renew("a", plan_of("a", "b"))
    meetings.waiting()
    with company.awaiting(lambda: told.append("waits")):
        meetings.waiting()
    meetings.waiting()
    assert told == ["waits"]
    assert waited == ["waits"] * 3


@pytest.mark.parametrize(
    ("workers", "ranks", "layers"),
    [
        ("abc", 2, [(0, 1)]),
        ("aa", 2, [(0, 1)]),
        ("ab", 1, [(0, 1), (1, 2)]),
        ("abcd", 2, [(0, 1)]),
        ("abcd", 2, [(0, 1), (2, 3)]),
        ("abcd", 2, [(0, 1), (1, 1)]),
        ("ab", 2, [(1, 2)]),
    ],
)
def test_plan_with_a_group_that_is_none_is_refused(workers, ranks, layers):
    group = GroupPlan(
        route=Route(tuple(workers), ranks), layers=tuple(LayerRange(*each) for each in layers), cut="{}", secret="00"
    )
    checks = Checks("a", LoadedStages)
    checks.check(plan_of("a", "b"), ())
    checks.check(plan_of("a", "b", groups=(STAGES,)), ())
    with pytest.raises(UnfitMessage, match="a group that is none"):
        checks.check(plan_of("a", "b", groups=(group,)), ())


def test_rank_has_the_layers_of_its_stage_and_meets_those_of_it(monkeypatch):
    called = []

    def meet_nobody(door, call, is_over):
        called.append(call)
        raise NotMet

    monkeypatch.setattr(meeting, "meet", meet_nobody)
    door = meeting.RankDoor(("127.0.0.1",), lambda peer: peer.endpoint, lambda *_: None)
    peers = {name: Peer(endpoint=f"tcp://{name}:1", public_key=name, rank_port=7) for name in STAGES.route}
    with pytest.raises(NotMet):
        door(STAGES, "d", peers, lambda: False, lambda: None)
    (call,) = called
    assert (call.rank, tuple(call.names), call.addresses) == (1, ("c", "d"), [("c", 7), ("d", 7)])
    assert [tuple(STAGES.layers_of(name)) for name in STAGES.route] == [(0, 1), (0, 1), (1, 3), (1, 3)]
