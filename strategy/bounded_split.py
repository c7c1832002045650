"""A good split over more nodes than an exact programme can take: `strategy/optimal_split.py` turns here beyond its limit.

For a given order of the nodes the best cuts, and which nodes to leave out, are found exactly (a chain of states in
`strategy/cheapest_route.py`); what is searched is the order:

1. Starts: from each of the fastest nodes as the first, the others by speed, and by the nearest next.
2. Exchange: with the stages' layers as they are, the best of all exchanges of two nodes, moves of one, reversals of a
   part and replacements by an unused node, until none helps.
3. The cuts anew, with each unused node where it makes the way least longer.
4. The same rearrangements of all nodes, the unused ones too, each with its own best cuts; there are too many to try all,
   so some are drawn, always the same.
5. From 2 on again as long as that helps; at last the cuts once more, with closer bounds on the slowest stage.

Where no start fits, a beam over sets of nodes, by how far into the model each set reaches, finds an order that does: exactly
where there are no more sets of one size than the beam is wide, which is up to ten nodes.
"""

from collections.abc import Iterator, Sequence

import numpy as np

from strategy.cheapest_route import (
    Flags,
    Floats,
    Indices,
    RouteFound,
    RouteGraph,
    StageTables,
    Wave,
    better_route,
    cheapest_route,
    least_cost,
)

_FIRST_NODES = 4
_BEAM = 256
# Exchanges, and rounds of exchanges and new cuts.
_MOST_EXCHANGES = 50
_MOST_ROUNDS = 20
# Of bounds on the slowest stage those a tenth apart are looked at; at last those a fiftieth apart.
_STEP = 0.9
_LAST_STEP = 0.98
# Beside an order's best route of no slower stages, that of stages so much faster is looked at.
_TIGHTER = 0.95
# Nodes in all orders that are tried anew at a time.
_REORDERED_NODES = 1600


def bounded_split(tables: StageTables) -> RouteFound | None:
    """A route over any number of nodes; None where none was found that fits."""
    best = _begun(tables)
    if best is None:
        return None
    for _ in range(_MOST_ROUNDS):
        exchanged = _exchanged(tables, best)
        found = _cut_anew(tables, _with_unused(tables, exchanged.nodes), exchanged) or exchanged
        found = _reordered(tables, found)
        if found is best:
            break
        best = found
    return _cut_anew(tables, _with_unused(tables, best.nodes), best, _LAST_STEP)


def _begun(tables: StageTables) -> RouteFound | None:
    best: RouteFound | None = None
    for order in _starts(tables):
        best = _cut_anew(tables, order, best)
    if best is None and (fitting := _order_that_fits(tables.fits)):
        best = _cut_anew(tables, fitting, None)
    return best


def _cut_anew(
    tables: StageTables, order: Sequence[int], incumbent: RouteFound | None, step: float = _STEP
) -> RouteFound | None:
    """The best route that begins at the first node of an order and takes others in that order, or the incumbent."""
    return least_cost(tables, [_chain(order)], incumbent=incumbent, steps=(step,))


def _chain(order: Sequence[int]) -> RouteGraph:
    """States are the nodes of an order; each can follow any before it."""
    waves = tuple(Wave(state, np.arange(state)[None, :]) for state in range(1, len(order)))
    return RouteGraph(np.array(order, np.intp), waves)


def _reordered(tables: StageTables, route: RouteFound) -> RouteFound:
    """The first route found better in another order of all nodes and with no slower stage, or the same."""
    order = np.array(_with_unused(tables, route.nodes), np.intp)
    orders = order[_rearrangements(len(order))]
    windows = [tables.windows(route.bottleneck_s * part) for part in (1.0, _TIGHTER)]
    for index in np.random.default_rng(0).permutation(len(orders))[: _REORDERED_NODES // len(order)]:
        for bound in windows:
            found = better_route(route, cheapest_route(tables, _chain(orders[index]), bound))
            if found is not route:
                return found
    return route


def _starts(tables: StageTables) -> Iterator[list[int]]:
    """Orders of all nodes."""
    alone_s = (tables.repeats + 1) * tables.chunk_s[:, 0, -1] + tables.tokens * tables.decode_s[:, 0, -1]
    by_speed = [int(node) for node in np.argsort(alone_s, kind="stable")]
    nearness_s = tables.hop_s + alone_s / len(by_speed)
    for first in by_speed[:_FIRST_NODES]:
        others = [node for node in by_speed if node != first]
        yield [first, *others]
        near = [first]
        while others:
            near.append(min(others, key=lambda node: nearness_s[near[-1], node]))
            others.remove(near[-1])
        yield near


def _exchanged(tables: StageTables, route: RouteFound) -> RouteFound:
    """A route of the same layers a stage, whose nodes no exchange makes better."""
    rearranged = _rearrangements(len(route.nodes))
    for _ in range(_MOST_EXCHANGES):
        neighbours = np.array(route.nodes, np.intp)[rearranged]
        neighbours = np.concatenate([neighbours, _replacements(route.nodes, len(tables.chunk_s))])
        if not len(neighbours):
            break
        costs = _costs(tables, neighbours, route.ends)
        found = better_route(route, tables.priced(neighbours[int(np.argmin(costs))].tolist(), route.ends))
        if found is route or not np.isfinite(costs.min()):
            break
        route = found
    return route


def _rearrangements(num_stages: int) -> Indices:
    """(rearrangements, stages): exchanges of two, moves of one, reversals of a part."""
    places = list(range(num_stages))
    found: dict[tuple[int, ...], None] = {}
    for low in places:
        for high in places[low + 1 :]:
            between = places[low + 1 : high]
            before, after = places[:low], places[high + 1 :]
            found[*before, high, *between, low, *after] = None
            found[*before, high, *reversed(between), low, *after] = None
            found[*before, *between, high, low, *after] = None
            found[*before, high, low, *between, *after] = None
    return np.array(list(found), np.intp).reshape(len(found), num_stages)


def _replacements(nodes: Sequence[int], num_nodes: int) -> Indices:
    """(replacements, stages): an unused node in the place of another."""
    unused = [node for node in range(num_nodes) if node not in nodes]
    found = np.tile(np.array(nodes, np.intp), (len(nodes) * len(unused), 1))
    found[np.arange(len(found)), np.repeat(np.arange(len(nodes)), len(unused))] = unused * len(nodes)
    return found


def _costs(tables: StageTables, routes: Indices, ends: Sequence[int]) -> Floats:
    """J of each row of nodes with the same ends of stages; infinite where a stage does not fit."""
    begins, stops = np.array([0, *ends[:-1]]), np.array(ends)
    following = np.roll(routes, -1, axis=1)
    passing_s = tables.chunk_s[routes, begins, stops]
    passing_s[:, :-1] += tables.hop_chunk_s[routes[:, :-1], following[:, :-1]]
    costs: Floats = passing_s.sum(axis=1)
    if tables.repeats:
        costs += tables.repeats * passing_s.max(axis=1)
    if tables.tokens:
        decode_s = tables.decode_s[routes, begins, stops] + tables.hop_decode_s[routes, following]
        costs += tables.tokens * decode_s.sum(axis=1)
    return np.where(tables.fits[routes, begins, stops].all(axis=1), costs, np.inf)


def _with_unused(tables: StageTables, nodes: Sequence[int]) -> list[int]:
    """An order of all nodes: those of a route, and every other behind the one where it makes the way least longer."""
    order = list(nodes)
    for node in range(len(tables.chunk_s)):
        if node not in nodes:
            before, after = np.array(order), np.array([*order[1:], order[0]])
            direct_s = tables.hop_s[before, after]
            way_s = tables.hop_s[before, node] + tables.hop_s[node, after]
            order.insert(int(np.argmin(way_s - np.where(np.isfinite(direct_s), direct_s, 0.0))) + 1, node)
    return order


def _order_that_fits(fits: Flags) -> list[int] | None:
    """An order of nodes whose rooms hold the model one after the other, by a beam over sets; None where it finds none.

    Of the orders of one set that which reaches furthest is as good as any: what follows is less.
    """
    num_nodes, end = len(fits), fits.shape[1] - 1
    # (n, P): how far a stage reaches that begins at a position; 0 for nowhere.
    reach = np.where(fits.any(axis=2), end - np.argmax(fits[:, :, ::-1], axis=2), 0)
    beam: dict[int, tuple[int, list[int]]] = {0: (0, [])}
    for _ in range(num_nodes):
        wider: dict[int, tuple[int, list[int]]] = {}
        for used, (position, order) in beam.items():
            for node in range(num_nodes):
                reached, members = int(reach[node, position]), used | 1 << node
                if used >> node & 1 or reached <= wider.get(members, (position, order))[0]:
                    continue
                wider[members] = reached, [*order, node]
                if reached == end:
                    return wider[members][1]
        beam = dict(sorted(wider.items(), key=lambda item: -item[1][0])[:_BEAM])
    return None
