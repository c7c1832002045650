"""What routes cost, from what workers said of themselves and of their links."""

import msgspec
import pytest

from cluster.membership.member import Member, Whereabouts
from cluster.planning.route_costs import (
    BETWEEN_HOSTS,
    NO_HOP,
    ON_ONE_HOST,
    MeasuredSpeeds,
    PresentCosts,
    hop_between,
    route_costs,
)
from protocol.messages import KeptPrefix, LinkFigures, Loaded
from protocol.values import Route
from strategy.chunking import ChunkCost
from strategy.group_sums import GroupSums
from strategy.layer_speeds import LayerSpeeds, PartSpeed
from strategy.memory import KvGrowth, KvNeeds
from strategy.stage_speed import Hop, StageSpeed
from tests.support.fake_cluster import BYTES_PER_TOKEN, plan_of

NAMES = ("alpha", "beta", "gamma")
PIPELINE, ALONE = Route(NAMES), Route(("alpha",))
NEEDS = KvNeeds(fixed_bytes=0, growth=(), snapshots=False)
LAYERS = LayerSpeeds(decode_s=(1.0,), chunk_s=(1.0,), chunk_tokens=64, overhead=PartSpeed(0.0, 0.0))


def speed(step_s):
    return StageSpeed(
        decode=((1, step_s),),
        decode_context_s=0.0,
        chunk=ChunkCost(step_s, step_s),
        chunk_context_s=0.0,
        payload_bytes=1024,
    )


def loaded(name, layers=None, **speeds):
    """speeds: of the route alone and of the pipeline."""
    routes = {"alone": Route((name,)), "pipeline": PIPELINE}
    prefixes = tuple(KeptPrefix(route=routes[key], needs=NEEDS, speed=found) for key, found in speeds.items())
    return Loaded(worker=name, weights_bytes=1, vocabulary_size=400, prefixes=prefixes, layers=layers)


def measured(*messages):
    speeds = MeasuredSpeeds()
    for message in messages:
        speeds.loaded(message)
    return speeds


@pytest.fixture
def costs():
    """Of three stages, of which the last is heard of first, and of the first worker alone."""
    return measured(
        loaded("gamma", pipeline=speed(0.3)),
        loaded("beta", pipeline=speed(0.2)),
        loaded("alpha", pipeline=speed(0.1), alone=speed(0.6), layers=LAYERS),
    ).costs(None, streams_wait=False)


def link(to, round_trip_us=200, bytes_per_s=10**9, *, in_use=True):
    return LinkFigures(
        to=to,
        interface="en0",
        kind="thunderbolt",
        address="tcp://10.0.0.1:5",
        round_trip_us=round_trip_us,
        bytes_per_s=bytes_per_s,
        in_use=in_use,
    )


def member(name, *links, host="here"):
    found = Member(name, memory_limit_bytes=1, place=Whereabouts(host=host))
    found.links = links
    return found


def test_route_has_its_stages_in_order_and_a_hop_behind_each(costs):
    assert costs[PIPELINE].stages == (speed(0.1), speed(0.2), speed(0.3))
    assert len(costs[PIPELINE].hops) == len(NAMES)
    assert (costs[ALONE].stages, costs[ALONE].hops) == ((speed(0.6),), (NO_HOP,))


def test_route_of_which_a_stage_was_not_measured_has_no_costs():
    found = measured(
        loaded("alpha", pipeline=speed(0.1)), loaded("beta", pipeline=None), loaded("gamma", pipeline=speed(0.1))
    )
    assert found.costs(None, streams_wait=False) == {}
    assert found.layers == {}


def test_fixed_chunk_is_that_of_every_route(costs):
    found = measured(loaded("alpha", alone=speed(0.1)))
    chosen = found.costs(77, streams_wait=True).values()
    assert {(each.fixed_chunk_tokens, each.streams_wait) for each in chosen} == {(77, True)}
    assert {each.fixed_chunk_tokens for each in costs.values()} == {None}


def test_layers_are_known_by_worker():
    assert measured(loaded("alpha", layers=LAYERS), loaded("beta")).layers == {"alpha": LAYERS}


@pytest.mark.parametrize(
    ("links", "hop"),
    [
        ([link("beta")], Hop(100e-6, 1e9)),
        ([link("beta", 500, in_use=False), link("beta", 40, 3 * 10**9)], Hop(20e-6, 3e9)),
        ([link("gamma", 40)], BETWEEN_HOSTS),
        ([link("beta", None, None)], BETWEEN_HOSTS),
        ([link("beta", 40, None)], Hop(20e-6, BETWEEN_HOSTS.bytes_per_s)),
        ([], BETWEEN_HOSTS),
    ],
)
def test_hop_between_hosts_is_the_link_in_use_as_far_as_it_was_measured(links, hop):
    assert hop_between(member("alpha", *links, host="one"), member("beta", host="two")) == hop


def test_hop_on_one_host_is_what_is_usual_there_unless_it_was_measured():
    assert hop_between(member("alpha"), member("beta")) == ON_ONE_HOST
    assert hop_between(member("alpha", link("beta")), member("beta")) == Hop(100e-6, 1e9)
    assert hop_between(None, member("beta")) == ON_ONE_HOST


def test_hops_lead_along_the_route_and_back_to_its_head(costs):
    members = {
        "alpha": member("alpha", link("beta", 20), link("gamma", 999), host="a"),
        "beta": member("beta", link("gamma", 40), link("alpha", 999), host="b"),
        "gamma": member("gamma", link("alpha", 60), link("beta", 999), host="c"),
    }
    found = route_costs(costs, members)
    assert [hop.latency_s for hop in found[PIPELINE].hops] == pytest.approx([10e-6, 20e-6, 30e-6])
    assert found[PIPELINE].stages == costs[PIPELINE].stages
    assert found[ALONE].hops == (NO_HOP,)


def test_stages_of_several_ranks_cost_what_their_first_ranks_take_and_pass_on():
    route = Route(("alpha", "x", "beta", "y"), ranks=2)
    told = [(name, KeptPrefix(route=route, needs=NEEDS, speed=speed(number))) for number, name in enumerate(route, 1)]
    found = measured(
        *(Loaded(worker=name, weights_bytes=1, vocabulary_size=9, prefixes=(each,)) for name, each in told)
    )
    (costs,) = route_costs(
        found.costs(None, streams_wait=False),
        {
            "alpha": member("alpha", link("beta", 20), link("x", 999), host="a"),
            "beta": member("beta", link("alpha", 40), link("y", 999), host="b"),
        },
    ).values()
    assert costs.stages == (speed(1), speed(3))
    assert [hop.latency_s for hop in costs.hops] == pytest.approx([10e-6, 20e-6])


def test_links_measured_while_the_plan_is_in_force_count_at_once_and_only_then(costs):
    plan = msgspec.structs.replace(plan_of(), costs=costs)
    members = {name: member(name, host=name) for name in NAMES}
    present = PresentCosts()
    before = present.of(plan, members).routes
    assert present.of(plan, members).routes is before
    assert before[PIPELINE].hops == (BETWEEN_HOSTS,) * 3
    assert before[PIPELINE].links.latency_s == pytest.approx(2 * BETWEEN_HOSTS.latency_s)
    members["alpha"].links = (link("beta", 20),)
    after = present.of(plan, members).routes
    assert after[PIPELINE].hops == (Hop(10e-6, 1e9), BETWEEN_HOSTS, BETWEEN_HOSTS)
    assert after[PIPELINE].links.latency_s == pytest.approx(10e-6 + BETWEEN_HOSTS.latency_s)
    assert present.of(plan, members).routes is after


def test_another_plan_has_its_own_costs(costs):
    plan, members = msgspec.structs.replace(plan_of(), costs=costs), {}
    present = PresentCosts()
    assert set(present.of(plan, members).routes) == {PIPELINE, ALONE}
    assert present.of(plan_of(), members).routes == {}


def test_caches_are_handed_over_as_fast_as_by_the_slowest_of_the_links_to_who_generates(costs):
    plan = msgspec.structs.replace(plan_of(), costs=costs)
    members = {name: member(name, host=name) for name in NAMES}
    members["beta"].links = (link("alpha", 20),)
    found = PresentCosts().of(plan, members).handed
    assert set(found) == {(PIPELINE, holder) for holder in plan.holders}
    assert found[PIPELINE, "alpha"].latency_s == BETWEEN_HOSTS.latency_s
    assert found[PIPELINE, "alpha"].bytes_per_s == pytest.approx(BETWEEN_HOSTS.bytes_per_s / BYTES_PER_TOKEN)


def test_caches_of_a_draft_are_not_handed_over(costs):
    draft = KvNeeds(fixed_bytes=0, growth=(KvGrowth(BYTES_PER_TOKEN // 2, None),), snapshots=False)
    plan = msgspec.structs.replace(plan_of(NAMES[:2], full=NAMES[:2]), costs=costs, drafts=dict.fromkeys(NAMES, draft))
    members = {name: member(name, host=name) for name in NAMES}
    rates = [
        found.bytes_per_s for found in PresentCosts().of(plan, members).handed.values()
    ]  # of the other, of the head
    assert rates == pytest.approx([BETWEEN_HOSTS.bytes_per_s / size for size in (BYTES_PER_TOKEN, BYTES_PER_TOKEN / 2)])


def test_head_of_a_group_says_what_its_sums_cost():
    group = Route(NAMES[:2], ranks=2)
    told = [GroupSums(num_sums=17, row_bytes=512, row_s=row_s, chunk_bytes=1024, chunk_s=0.5) for row_s in (0.25, 0.5)]
    messages = [
        Loaded(
            worker=worker,
            weights_bytes=1,
            vocabulary_size=400,
            prefixes=(KeptPrefix(route=group, needs=NEEDS, sums=sums),),
        )
        for worker, sums in zip(group, told, strict=True)
    ]
    assert measured(*messages).sums == {group: told[0]}
    assert told[0].token_s == 17 / 4


def test_sums_of_a_group_are_those_of_all_its_stages():
    first = GroupSums(transport="ring", num_sums=9, row_bytes=512, row_s=0.25, chunk_bytes=1024, chunk_s=0.5)
    second = GroupSums(why_not_wanted="no", num_sums=3, row_bytes=640, row_s=0.75, chunk_bytes=1024, chunk_s=0.9)
    found = GroupSums.of([first, second])
    assert (found.transport, found.why_not_wanted) == ("tcp", "no")
    assert GroupSums.of([first]).transport == "ring"
    assert (found.num_sums, found.token_s) == (12, pytest.approx(first.token_s + second.token_s))
    assert (found.row_bytes, found.chunk_s) == (640, pytest.approx(0.6))
