"""A cluster of many unlike nodes as a decision sees it: a pipeline through all, and each with the full model, all of them busy."""

import random
from collections.abc import Mapping, Sequence
from types import MappingProxyType

from strategy.chunking import ChunkCost
from strategy.cost import RouteCosts, RouteLoad
from strategy.learning import Learning
from strategy.memory import KvGrowth, KvNeeds, WorkerBudget
from strategy.occupation import Occupation
from strategy.prediction import Conditions
from strategy.situation import Snapshot, Thresholds
from strategy.stage_speed import Hop, StageSpeed
from strategy.vocabulary import Route
from strategy.wishes import Mode, Objective

_HOP = Hop(1e-4, 1e9)
_NEEDS = KvNeeds(fixed_bytes=0, growth=(KvGrowth(1000, None),), snapshots=False)


def many_nodes(num_nodes: int, *, busy: bool) -> Snapshot:
    """busy: some streams run on every route."""
    draw = random.Random(num_nodes)
    scales = {f"node-{number}": draw.uniform(0.5, 3.0) for number in range(num_nodes)}
    pipeline = Route(tuple(scales))
    routes = [pipeline, *(Route((name,)) for name in scales)]
    costs = {
        route: RouteCosts(
            route=route,
            stages=tuple(_stage(scales[name] / len(route)) for name in route),
            hops=(_HOP,) * len(route),
        )
        for route in routes
    }
    loads = {route: RouteLoad(decoding=draw.randrange(1, 5), context=200.0) for route in routes}
    handed = {(pipeline, name): Hop(1e-4, 1e6) for name in scales}
    return snapshot(costs, loads if busy else {}, pipeline, tuple(scales), handed)


def snapshot(
    costs: Mapping[Route, RouteCosts],
    loads: Mapping[Route, RouteLoad],
    pipeline: Route,
    holders: Sequence[str],
    handed: Mapping[tuple[Route, str], Hop] = MappingProxyType({}),
) -> Snapshot:
    """Of a cluster with room for everything, of which everything was measured. handed: as of `Conditions`."""
    occupation = Occupation(costs)
    occupation.changed(loads)
    return Snapshot(
        pipeline=pipeline,
        why_not=None,
        splittable=True,
        holders={name: occupation.load(Route((name,))).decoding for name in holders},
        shortage=None,
        needs={route: dict.fromkeys(route, _NEEDS) for route in costs},
        budgets={name: WorkerBudget(prefix_bytes=0, sequence_bytes=10**9) for route in costs for name in route},
        measured=None,
        visited={},
        thresholds=Thresholds(),
        mode=Mode.AUTO,
        conditions=Conditions(
            costs=costs,
            occupation=occupation,
            learning=Learning(),
            objective=Objective.TOTAL,
            num_decided=0,
            handed=handed,
        ),
    )


def _stage(scale: float) -> StageSpeed:
    return StageSpeed(
        decode=((1, 0.004 * scale), (2, 0.005 * scale), (4, 0.007 * scale), (8, 0.011 * scale)),
        decode_context_s=1e-8 * scale,
        chunk=ChunkCost(0.003 * scale, 0.0005 * scale),
        chunk_context_s=1e-8 * scale,
        payload_bytes=8000,
    )
