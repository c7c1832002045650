"""Workers that compute the whole model together, each its part of every layer: what that takes of their memory, and which groups a
plan has.

A group's parts lie beside what its workers hold as stages or alone, so that every strategy stays possible and whoever goes on after
a loss has what it needs. So they are set aside before a split is made. A worker keeps its part while others of its group are missing.
Where the parts fit only without that, a complete group has its parts alone: whoever names a group wants it. Pure.
"""

import contextlib
import math
from collections.abc import Callable, Mapping, Sequence
from typing import TypeVar

import msgspec

from strategy.partition import HEADROOM, GroupSizes, ModelSizes, Node, NoPlan, Partition, Stage, even_bounds
from strategy.vocabulary import NO_LAYERS, LayerRange, Route

NO_GROUP = "no workers of this cluster compute a model together; name some in [[groups]] of the configuration"

_Split = TypeVar("_Split", Partition, Partition | None)


def group_sizes(
    sizes: ModelSizes, route: Route, shares: Sequence[float], legal_cuts: Sequence[int], *, why_not: str | None
) -> GroupSizes:
    """What the workers of a route hold for it, in stages as even as possible. shares: of its layers' weights, by rank; why_not: why the
    architecture cannot be cut at all. Raises NoPlan where it has no cuts for its stages.
    """
    if route.num_stages > 1 and why_not is not None:
        raise NoPlan(f"the model cannot be split into the stages of {route}: {why_not}", settings_at_fault=False)
    if route.num_stages > len(legal_cuts) + 1:
        raise NoPlan(f"the model cannot be split into the {route.num_stages} stages of {route}")
    layers = even_bounds(sizes, route.num_stages, legal_cuts)
    return GroupSizes(
        route=route,
        layers=layers,
        rank_bytes=tuple(_rank_bytes(sizes, stage, share) for stage in layers for share in shares),
    )


def _rank_bytes(sizes: ModelSizes, stage: LayerRange, share: float) -> int:
    """What is outside of the layers each rank may have whole."""
    of_layers = sum(sizes.layers[slice(*stage)])
    return math.ceil(share * of_layers) + sizes.stage(*stage) - of_layers


def beside_groups(sizes: ModelSizes, nodes: Sequence[Node], split: Callable[[Sequence[Node]], _Split]) -> _Split:
    """What `split` makes of what the groups leave of each node's memory. Where that is too little: of those that are in no group which
    has room for its parts alone; without such groups of all nodes, as if there were none.
    """
    left = [_without_part(sizes.groups, node) for node in nodes]
    if left == list(nodes):
        return split(nodes)
    try:
        found = split(left)
    except NoPlan as error:
        if alone := _fitting_alone(sizes, nodes):
            return _with_parts_alone(sizes, nodes, alone, split, str(error))
        found, why_not = split(nodes), f"there is no room for its parts beside the stages: {error}"
        return None if found is None else msgspec.structs.replace(found, why_no_group=why_not)
    return None if found is None else msgspec.structs.replace(found, groups=sizes.groups)


def _fitting_alone(sizes: ModelSizes, nodes: Sequence[Node]) -> tuple[GroupSizes, ...]:
    """Groups all of whose workers are there with room for their parts; none where somebody says which layers who has."""
    if any(node.layers is not None for node in nodes):
        return ()
    limits = {node.name: node.memory_limit_bytes for node in nodes}
    return tuple(
        group
        for group in sizes.groups
        if all(_needed(sizes, group, worker) <= limits.get(worker, 0) for worker in group.route)
    )


def _needed(sizes: ModelSizes, group: GroupSizes, worker: str) -> int:
    """The memory limit that a part alone takes, as `ModelSizes.needed` of a stage."""
    weights = group.bytes_of(worker)
    caches = math.ceil(sum(sizes.caches[slice(*group.layers_of(worker))]) / group.route.ranks)
    return max(math.ceil(weights * HEADROOM), weights + caches)


def _with_parts_alone(
    sizes: ModelSizes,
    nodes: Sequence[Node],
    alone: tuple[GroupSizes, ...],
    split: Callable[[Sequence[Node]], _Split],
    too_little: str,
) -> _Split:
    """These groups, and what the other workers make of the model, where they can. too_little: why there is no room for all, a clause."""
    grouped = {worker for group in alone for worker in group.route}
    rest = [node for node in nodes if node.name not in grouped]
    names = " and ".join(str(group.route) for group in alone)
    why_not = f"{names} have room for nothing but their parts of the model: {too_little}"
    found: Partition = Partition(stages=(), pipeline=None, why_not=why_not)
    others = msgspec.structs.replace(sizes, groups=tuple(group for group in sizes.groups if group not in alone))
    if rest:
        with contextlib.suppress(NoPlan):
            of_rest = beside_groups(others, rest, split)
            if of_rest is None:
                return of_rest
            found = of_rest
    idle: set[str] = {node.name for node in nodes} - {stage.worker for stage in found.stages}
    return msgspec.structs.replace(
        found,
        stages=(*found.stages, *(_no_stage(node.name) for node in nodes if node.name in idle)),
        groups=(*alone, *found.groups),
    )


def _no_stage(worker: str) -> Stage:
    return Stage(worker=worker, layers=NO_LAYERS, weights_bytes=0, holds_full_model=False)


class Groups(msgspec.Struct, frozen=True, kw_only=True):
    """Those of a plan all of whose workers are there and have met. why_none: a clause where there are none; are_awaited: they could still come."""

    routes: tuple[Route, ...] = ()
    why_none: str | None = NO_GROUP
    are_awaited: bool = False


def groups_of(found: Partition, sizes: ModelSizes, unmet: Mapping[Route, str] | None = None) -> Groups:
    """The groups of a plan. unmet: those whose ranks did not meet, and why."""
    unmet = unmet or {}
    there = {stage.worker for stage in found.stages}
    complete = tuple(
        group.route for group in found.groups if there.issuperset(group.route) and group.route not in unmet
    )
    if complete:
        return Groups(routes=complete, why_none=None)
    for why in unmet.values():
        return Groups(why_none=why, are_awaited=True)
    for group in found.groups:
        missing = ", ".join(worker for worker in group.route if worker not in there)
        return Groups(why_none=f"{missing} of the group {group.route} is not there", are_awaited=True)
    return Groups(why_none=found.why_no_group or sizes.why_no_group or NO_GROUP, are_awaited=bool(sizes.groups))


def _without_part(groups: Sequence[GroupSizes], node: Node) -> Node:
    part = sum(group.bytes_of(node.name) for group in groups)
    return msgspec.structs.replace(node, memory_limit_bytes=max(node.memory_limit_bytes - part, 0)) if part else node
