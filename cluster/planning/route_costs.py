"""What the routes of a plan cost: the speeds that workers measured of their stages, and the links between them as they are now.

Speeds belong to a plan; links are measured again and again while it is in force, so what crosses them is looked up anew
whenever a worker has said something new of its links.
"""

import math
from collections.abc import Mapping

import msgspec

from cluster.membership.member import Member
from cluster.planning.plan import Plan
from protocol.messages import LinkFigures, Loaded
from strategy.cost import RouteCosts
from strategy.group_sums import GroupSums
from strategy.layer_speeds import LayerSpeeds
from strategy.stage_speed import Hop, StageSpeed
from strategy.vocabulary import Route

# One way between workers of which nothing was measured: on one machine over loopback, and on two, as by Ethernet.
ON_ONE_HOST = Hop(150e-6, 1e9)
BETWEEN_HOSTS = Hop(500e-6, 100e6)
# From a worker to itself.
NO_HOP = Hop(0.0, math.inf)


class MeasuredSpeeds:
    """What the workers of a plan on its way say of themselves. layers: by worker."""

    def __init__(self) -> None:
        self.layers: dict[str, LayerSpeeds] = {}
        self._stages: dict[Route, dict[str, StageSpeed]] = {}
        self._sums: dict[Route, dict[str, GroupSums]] = {}

    def __repr__(self) -> str:
        return f"MeasuredSpeeds({len(self._stages)} routes)"

    def loaded(self, message: Loaded) -> None:
        """A worker loaded its stages."""
        if message.layers is not None:
            self.layers[message.worker] = message.layers
        for prefix in message.prefixes:
            if prefix.speed is not None:
                self._stages.setdefault(prefix.route, {})[message.worker] = prefix.speed
            if prefix.sums is not None:
                self._sums.setdefault(prefix.route, {})[message.worker] = prefix.sums

    @property
    def sums(self) -> dict[Route, GroupSums]:
        """Of groups, as the first ranks of their stages timed them."""
        return {
            route: GroupSums.of([found[worker] for worker in route.heads])
            for route, found in self._sums.items()
            if found.keys() >= set(route.heads)
        }

    def costs(self, fixed_chunk_tokens: int | None, *, streams_wait: bool) -> dict[Route, RouteCosts]:
        """Of the routes of which every stage was measured, with links of which nothing is known yet."""
        return {
            route: RouteCosts(
                route=route,
                stages=tuple(stages[worker] for worker in route.heads),
                hops=_hops(route, {}),
                fixed_chunk_tokens=fixed_chunk_tokens,
                streams_wait=streams_wait,
            )
            for route, stages in self._stages.items()
            if all(worker in stages for worker in route)
        }


class LinkedCosts(msgspec.Struct, frozen=True):
    """routes: what each costs; handed: how the caches of a route's prompt get to a worker, in tokens of the prompt."""

    routes: Mapping[Route, RouteCosts] = {}
    handed: Mapping[tuple[Route, str], Hop] = {}


class PresentCosts:
    """The costs of a plan with its links as they were measured last. The same objects until something changes."""

    def __init__(self) -> None:
        self._plan: Plan | None = None
        self._links: tuple[tuple[LinkFigures, ...], ...] = ()
        self._costs = LinkedCosts()

    def __repr__(self) -> str:
        return f"PresentCosts({len(self._costs.routes)} routes)"

    def of(self, plan: Plan, members: Mapping[str, Member]) -> LinkedCosts:
        """Of the plan in force and its workers."""
        present = {worker: members[worker] for worker in plan.workers if worker in members}
        links = tuple(member.links for member in present.values())
        if plan is not self._plan or links != self._links:
            self._plan, self._links = plan, links
            self._costs = LinkedCosts(route_costs(plan.costs, present), handed(plan, present))
        return self._costs


def handed(plan: Plan, members: Mapping[str, Member]) -> dict[tuple[Route, str], Hop]:
    """To each holder of the full model from all other stages at once: as fast as the slowest of them."""
    if plan.pipeline is None or plan.pipeline.is_single:
        return {}
    return {(plan.pipeline, holder): _handed(plan, plan.pipeline, holder, members) for holder in plan.holders}


def _handed(plan: Plan, pipeline: Route, holder: str, members: Mapping[str, Member]) -> Hop:
    latency_s, token_s = 0.0, 0.0
    for worker in pipeline.workers:
        needs = plan.needs.get(pipeline, {}).get(worker)
        if worker == holder or needs is None:
            continue
        hop = hop_between(members.get(worker), members.get(holder))
        latency_s = max(latency_s, hop.latency_s)
        token_bytes = sum(growth.token_bytes for growth in needs.growth)
        if worker == pipeline.head and worker in plan.drafts:  # of which nothing is handed over
            token_bytes -= sum(growth.token_bytes for growth in plan.drafts[worker].growth)
        token_s = max(token_s, token_bytes / hop.bytes_per_s)
    return Hop(latency_s, 1 / token_s if token_s else math.inf)


def route_costs(costs: Mapping[Route, RouteCosts], members: Mapping[str, Member]) -> dict[Route, RouteCosts]:
    """These costs with the hops that the members' links are now."""
    return {route: msgspec.structs.replace(found, hops=_hops(route, members)) for route, found in costs.items()}


def _hops(route: Route, members: Mapping[str, Member]) -> tuple[Hop, ...]:
    """Behind each stage of a route, back to the head in the end; of several ranks that pass on at once, the first one's."""
    if route.num_stages == 1:
        return (NO_HOP,)
    return tuple(
        hop_between(members.get(sender), members.get(receiver))
        for sender, receiver in zip(route.heads, (*route.heads[1:], route.head), strict=True)
    )


def hop_between(sender: Member | None, receiver: Member | None) -> Hop:
    """One way, by the link in use; where that was not measured, or does not answer, what is usual."""
    if sender is None or receiver is None:
        return ON_ONE_HOST
    usual = ON_ONE_HOST if sender.host == receiver.host else BETWEEN_HOSTS
    used = next((link for link in sender.links if link.to == receiver.name and link.in_use), None)
    if used is None or used.round_trip_us is None:
        return usual
    return Hop(used.round_trip_us / 2e6, used.bytes_per_s or usual.bytes_per_s)
