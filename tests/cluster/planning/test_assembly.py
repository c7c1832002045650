"""What is told of a model that is being loaded."""

import msgspec
import pytest

from cluster.planning.assembly import Assembly, Part
from cluster.planning.plan import ModelFacts
from cluster.planning.progress import StartProgress
from cluster.settings import GroupSettings, ModelSettings, Settings, StrategySettings, WorkerSettings
from protocol.messages import KeptPrefix, Loaded, LoadProgress, RankCut
from protocol.values import LayerRange, Peer, Route
from strategy.memory import KvNeeds
from strategy.partition import GroupSizes, ModelSizes, Node, Partition, Stage, partition
from strategy.vocabulary import NO_LAYERS
from strategy.wishes import Objective
from tests.cluster.planning.test_known_model import FOUND

LAYER = 200_000_000
SIZES = ModelSizes(layers=(LAYER,) * 6, embedding=50_000_000, head=10_000_000, tied=False)

ROUTE = Route(("a", "b"), ranks=2)
PEER = Peer(endpoint="tcp://127.0.0.1:1", public_key="k")


def assembly(**strategy):
    names = ("a", "b")
    found = partition(SIZES, [Node(name=name, memory_limit_bytes=10**9) for name in names], (3,), why_not=None)
    facts = ModelFacts(id="m", digest="d", sizes=SIZES, inspected=FOUND)
    parts = {name: Part(10**9, PEER) for name in names}
    settings = Settings(
        model=ModelSettings(path="/m"),
        workers=tuple(WorkerSettings(name=name) for name in names),
        strategy=StrategySettings(**strategy),
    )
    return Assembly(1, facts, found, parts, settings)


def grouped(found):
    """With a group of its first two workers."""
    plan = assembly()
    settings = msgspec.structs.replace(plan._settings, groups=(GroupSettings(workers=ROUTE.workers, transport="ring"),))
    sizes = GroupSizes(route=ROUTE, layers=(LayerRange(0, 6),), rank_bytes=(LAYER, LAYER))
    cut = RankCut(ranks=2, plan="{}", shares=(0.5, 0.5))
    facts = msgspec.structs.replace(plan._model, inspected=msgspec.structs.replace(FOUND, rank_cuts=(cut,)))
    parts = {stage.worker: Part(10**9, PEER) for stage in found.stages}
    return Assembly(1, facts, msgspec.structs.replace(found, groups=(sizes,)), parts, settings)


@pytest.mark.parametrize("policy", ["measured", "thresholds"])
@pytest.mark.parametrize("objective", list(Objective))
def test_streams_wait_for_chunks_where_the_end_of_all_is_what_is_made_least(policy, objective):
    (told,) = {message.streams_wait for message in assembly(policy=policy, objective=objective).messages(PEER).values()}
    assert told is (policy == "measured" and objective is Objective.THROUGHPUT)


def test_ranks_that_hold_only_their_parts_are_told_of_their_transport_and_a_secret_of_their_own():
    plan = assembly()
    idle = tuple(Stage(worker=name, layers=NO_LAYERS, weights_bytes=0, holds_full_model=False) for name in "abc")
    told = grouped(Partition(stages=idle, pipeline=None, why_not="there is no room"))
    (group,), (again,) = (told.messages(PEER)["a"].groups for _ in range(2))
    assert (group.route, group.layers, group.transport) == (ROUTE, (LayerRange(0, 6),), "ring")
    assert group.secret != again.secret
    assert told.described == "a its part of a group's layers, b its part of a group's layers, c nothing"
    assert (told.held("a"), plan.held("a")) == ((), (LayerRange(0, 3),))
    assert told.budgets["a"].sequence_bytes < told.budgets["c"].sequence_bytes


@pytest.mark.parametrize(
    ("unmet", "why"),
    [
        ({}, None),
        ({"a": "b did not come", "b": "b did not reach a"}, "a+b did not meet: b did not reach a"),
        ({"a": "b did not come", "b": ""}, "a+b did not meet: b did not come"),
        ({"b": ""}, "a+b did not meet: a rank went away"),
    ],
)
def test_group_is_of_the_plan_where_all_its_ranks_have_met(unmet, why):
    plan, pipeline = grouped(assembly()._partition), Route(("a", "b"))
    for name in "ab":
        routes = [pipeline, *([] if name in unmet else [ROUTE])]
        prefixes = tuple(
            KeptPrefix(route=route, needs=KvNeeds(fixed_bytes=0, growth=(), snapshots=False)) for route in routes
        )
        loaded = Loaded(worker=name, weights_bytes=1, vocabulary_size=9, prefixes=prefixes, unmet=unmet.get(name))
        plan.loaded(loaded, (b"",) * 2 * len(routes))
    routes = [pipeline] if unmet else [pipeline, ROUTE]
    made = plan.plan()
    assert (made.groups.routes, made.groups.why_none) == (tuple(routes[1:]), why)
    assert made.groups.are_awaited == bool(unmet)
    assert list(made.needs) == list(plan.known_prefixes()) == routes


def read(worker, num_bytes):
    return LoadProgress(worker=worker, loaded_bytes=num_bytes)


def test_bytes_of_all_workers_count_until_every_layer_is_there_and_then_costs_are_measured():
    plan = assembly()
    assert plan.progress(read("a", 450_000_000)) == StartProgress(
        text="loading the model: 0.5 of 1.3 GB", done=450_000_000, total=SIZES.total
    )
    assert plan.progress(read("a", 650_000_000)).done == 650_000_000
    assert plan.progress(read("b", 410_000_000)).text == "loading the model: 1.1 of 1.3 GB"
    assert plan.progress(read("b", 610_000_000)) == StartProgress(
        text="all weights are loaded (1.3 GB); measuring what steps cost"
    )


def test_a_part_that_comes_from_another_host_is_counted_by_itself():
    told = assembly().progress(msgspec.structs.replace(read("b", 0), fetched_bytes=20_000_000, wanted_bytes=60_000_000))
    assert told == StartProgress(
        text="b fetches its part of the model: 20.0 of 60.0 MB", done=20_000_000, total=60_000_000
    )
