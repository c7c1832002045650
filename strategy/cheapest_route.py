"""The cheapest route through a graph of stages, under a bound on the slowest stage, and the search for the best bound.

The arithmetic below `strategy/optimal_split.py` and `strategy/bounded_split.py`: those say in which orders nodes may follow
each other (a `RouteGraph`), this finds cuts and nodes. Uses NumPy: a pass relaxes a hundred thousand windows, which takes
two milliseconds in arrays and half a second in Python.

A state of the graph is "this node comes next, after those before it". For each state and cut position, a pass keeps the
least sum(prefill_i + hop_i) + G sum(decode_i + hop_i) of the stages before. The seconds of a stage are differences of
running sums, and both limits (room, and prefill + hop <= B) hold for all shorter stages where they hold for a longer one. So
the least cost of ending a stage at a position is a minimum over a window of positions where it can begin: from a table
of minima over 1, 2, 4 ... positions it is the lesser of two entries.
"""

import functools
import math
from collections.abc import Sequence
from typing import NamedTuple, overload

import numpy as np
from numpy.typing import NDArray

from strategy.partition import ModelSizes
from strategy.split_costs import HopCosts, NodeSpeeds, Workload, stage_bytes
from strategy.vocabulary import LayerRange

Floats = NDArray[np.float64]
Indices = NDArray[np.intp]
Flags = NDArray[np.bool_]

# More than any stage takes; finite, so that no infinite hop is subtracted from it.
NO_BOUND_S = 1e300
# Sums of the same seconds in another order differ by rounding; nothing closer than this share is told apart.
ROUNDING = 1e-12
# Steps down from a bound on the slowest stage: to the next one that differs by more than rounding, and a wide one.
EVERY_BOUND = 1 - 4 * ROUNDING
COARSE_STEP = 0.75


class RouteFound(NamedTuple):
    """A route: nodes by index, the position of each stage's end, its parts of J and J itself, in seconds.

    passing_s: J without the chunks after the first; bottleneck_s: the slowest stage with its hop.
    """

    nodes: tuple[int, ...]
    ends: tuple[int, ...]
    passing_s: float
    bottleneck_s: float
    cost_s: float


class Wave(NamedTuple):
    """States of a graph that follow from earlier ones: the first of them, and for each (rows) those it can follow."""

    begin: int
    sources: Indices


class RouteGraph(NamedTuple):
    """In which order nodes may hold stages. nodes: of each state; state 0 is the first stage. Every state may be the last."""

    nodes: Indices
    waves: tuple[Wave, ...]


class Windows(NamedTuple):
    """Where stages may begin that take at most `bound_s` and fit, by (node, next node or n for none, end): the first position,
    and two cells of a state's row of minima that cover all positions from there to the end.
    """

    bound_s: float
    begins: Indices
    low: Indices
    high: Indices


class StageTables:
    """All that a split's cost is made of, as arrays over n nodes and P positions where the model can be cut (0 and the end
    among them). chunk_s, decode_s, fits: (n, P, P) by node, begin and end; hop_*: (n, n), 0 to itself.
    """

    def __init__(
        self,
        sizes: ModelSizes,
        kv_bytes: Sequence[int],
        nodes: Sequence[NodeSpeeds],
        hops: HopCosts,
        workload: Workload,
        legal_cuts: Sequence[int],
    ):
        end = len(sizes.layers)
        self.positions = [0, *sorted({cut for cut in legal_cuts if 0 < cut < end}), end]
        self.repeats = workload.num_chunks - 1
        self.tokens = workload.generated_tokens
        # What is at the last position ends a stage, never begins one: so the head is in the sums there.
        self._chunk_sums = _running_sums([node.chunk_s for node in nodes], self.positions)
        self._chunk_sums[:, -1] += [node.head_chunk_s for node in nodes]
        decode_sums = _running_sums([node.decode_s for node in nodes], self.positions)
        decode_sums[:, -1] += [node.head_decode_s for node in nodes]
        self.chunk_s = _stage_seconds(self._chunk_sums, [node.embed_chunk_s for node in nodes])
        self.decode_s = _stage_seconds(decode_sums, [node.embed_decode_s for node in nodes])
        self.fits = _fitting(sizes, kv_bytes, self.positions, [node.room_bytes for node in nodes])
        self._earliest = _earliest_begins(self.fits)
        names = [node.name for node in nodes]
        self.hop_chunk_s = np.array([[hops.chunk_s(a, b) if a != b else 0.0 for b in names] for a in names])
        self.hop_decode_s = np.array([[hops.decode_s(a, b) if a != b else 0.0 for b in names] for a in names])
        self.passing_sums = self._chunk_sums + self.tokens * decode_sums
        self.embed_s = [node.embed_chunk_s + self.tokens * node.embed_decode_s for node in nodes]

    def __repr__(self) -> str:
        return f"StageTables({len(self.chunk_s)} nodes, {len(self.positions)} positions)"

    @functools.cached_property
    def hop_s(self) -> Floats:
        """(n, n): what a hop between two stages adds to J without further chunks."""
        return self.hop_chunk_s + (self.tokens * self.hop_decode_s if self.tokens else 0.0)

    @functools.cached_property
    def return_s(self) -> Floats:
        """(n, n), from the last stage's node to the first's: what the way of the ids adds to J."""
        return self.tokens * self.hop_decode_s if self.tokens else np.zeros_like(self.hop_decode_s)

    @functools.cached_property
    def leaving_s(self) -> Floats:
        """(n, n, P), by node, next node and end: the running sum of a stage and its hop."""
        return self.passing_sums[:, None, :] + self.hop_s[:, :, None]

    def windows(self, bound_s: float) -> Windows:
        """Of all stages but the first of a route."""
        num_nodes, num_positions = self.passing_sums.shape
        limits_s = _limits(self.hop_chunk_s, bound_s)
        begins = np.empty((num_nodes, num_nodes + 1, num_positions), np.intp)
        for node, sums in enumerate(self._chunk_sums):
            begins[node] = np.searchsorted(sums, sums - limits_s[node][:, None])
        begins = np.minimum(np.maximum(begins, self._earliest[:, None, :]), np.arange(num_positions))
        return Windows(bound_s, begins, *_covering_cells(begins))

    def begun_at(self, first: int, windows: Windows) -> Windows:
        """The same, but stages of node `first` are a route's first: they begin at 0 or not at all."""
        fits = self.fits[first, 0] & (
            self.chunk_s[first, 0] <= _limits(self.hop_chunk_s, windows.bound_s)[first][:, None]
        )
        begins = np.where(fits, 0, np.arange(fits.shape[1]))
        low, high = _covering_cells(begins)
        changed = Windows(windows.bound_s, windows.begins.copy(), windows.low.copy(), windows.high.copy())
        changed.begins[first], changed.low[first], changed.high[first] = begins, low, high
        return changed

    def priced(self, nodes: Sequence[int], ends: Sequence[int]) -> RouteFound:
        """A route with its costs, summed anew stage by stage."""
        steps, begins, stops = np.asarray(nodes), np.asarray([0, *ends[:-1]]), np.asarray(ends)
        chunk_s = self.chunk_s[steps, begins, stops]
        chunk_s[:-1] += self.hop_chunk_s[steps[:-1], steps[1:]]
        passing_s = float(chunk_s.sum())
        if self.tokens:
            round_s = float(self.hop_decode_s[steps, np.roll(steps, -1)].sum())
            passing_s += self.tokens * (float(self.decode_s[steps, begins, stops].sum()) + round_s)
        bottleneck_s = float(chunk_s.max())
        cost_s = passing_s + self.repeats * bottleneck_s if self.repeats else passing_s
        return RouteFound(tuple(nodes), tuple(ends), passing_s, bottleneck_s, cost_s)


class _Minima:
    """For each state and position the least cost so far, less the running sum of the state's node: alone, and as minima over
    1, 2, 4 ... positions. A row ends in a cell that holds infinity, for windows that are empty.
    """

    def __init__(self, num_states: int, num_positions: int):
        self._num_positions = num_positions
        self._num_levels = _num_levels(num_positions)
        self.width = self._num_levels * num_positions + 1
        self.rows = np.full((num_states, self.width), np.inf)

    def fill(self, begin: int, costs: Floats) -> None:
        """Set the states from `begin` on. costs: (states, positions)."""
        levels = self.rows[begin : begin + len(costs), :-1].reshape(len(costs), self._num_levels, self._num_positions)
        levels[:, 0] = costs
        for level in range(1, self._num_levels):
            half = 1 << (level - 1)
            np.minimum(levels[:, level - 1, :-half], levels[:, level - 1, half:], out=levels[:, level, :-half])

    def least(self, states: Indices, low: Indices, high: Indices) -> Floats:
        """The lesser of two cells of each state's row; the arguments' shapes are broadcast."""
        row = states * self.width
        flat = self.rows.reshape(-1)
        least: Floats = np.minimum(flat.take(row + low), flat.take(row + high))
        return least


def cheapest_route(tables: StageTables, graph: RouteGraph, windows: Windows) -> RouteFound | None:
    """The route of a graph with the least J without further chunks, among those whose stages keep to the windows' bound.

    None where no route fits. Of routes that cost the same the one that ends in the earliest state.
    """
    first, sums = int(graph.nodes[0]), tables.passing_sums
    windows = tables.begun_at(first, windows)
    minima = _Minima(len(graph.nodes), sums.shape[1])
    begun = np.full((1, sums.shape[1]), np.inf)
    begun[0, 0] = tables.embed_s[first]
    minima.fill(0, begun)
    for begin, sources in graph.waves:
        nodes = graph.nodes[begin : begin + len(sources)]
        hop = graph.nodes[sources], nodes[:, None]
        costs = minima.least(sources[:, :, None], windows.low[hop], windows.high[hop])
        costs += tables.leaving_s[hop]
        minima.fill(begin, costs.min(axis=1) - sums[nodes])
    last = graph.nodes
    totals = minima.least(np.arange(len(last)), windows.low[last, -1, -1], windows.high[last, -1, -1])
    totals += sums[last, -1] + tables.return_s[last, first]
    least = totals.min()
    if not np.isfinite(least):
        return None
    state = int(np.argmax(totals <= least * (1 + ROUNDING)))
    return tables.priced(*_traced(graph, minima, windows, tables.leaving_s, state))


def _traced(
    graph: RouteGraph, minima: _Minima, windows: Windows, leaving_s: Floats, state: int
) -> tuple[list[int], list[int]]:
    """Nodes and ends of the cheapest route whose last stage is `state`, found backwards."""
    sources = {wave.begin + row: found for wave in graph.waves for row, found in enumerate(wave.sources)}
    end = leaving_s.shape[-1] - 1
    nodes, ends = [int(graph.nodes[state])], [end]
    begin = _begin(minima, windows.begins[nodes[0], -1, end], state, end)
    while state:
        following, end = graph.nodes[state], begin
        found = sources[state]
        hop = graph.nodes[found], following
        costs = minima.least(found, windows.low[hop][:, end], windows.high[hop][:, end]) + leaving_s[hop][:, end]
        state = int(found[np.argmin(costs)])
        nodes.append(int(graph.nodes[state]))
        ends.append(end)
        begin = _begin(minima, windows.begins[nodes[-1], following, end], state, end)
    return nodes[::-1], ends[::-1]


def _begin(minima: _Minima, earliest: int, state: int, end: int) -> int:
    return int(earliest + np.argmin(minima.rows[state, earliest:end]))


def least_cost(
    tables: StageTables,
    graphs: Sequence[RouteGraph],
    *,
    incumbent: RouteFound | None = None,
    steps: Sequence[float] = (COARSE_STEP, EVERY_BOUND),
) -> RouteFound | None:
    """The route of any of the graphs with the least J, or the incumbent where none is better; None where nothing fits.

    Let F(B) be the least J without further chunks where no stage takes longer than B. Its route takes b <= B, and a route
    that takes less than b costs at least F(B) too, so that it can only beat the best cost C below b' = (C - F(B)) / (m - 1).
    So B goes down from the top to b or b', whichever is less, until nothing fits: each pass rules out all bounds between.

    steps: of each way down, the part of b that the next bound has at most. Below 1 it skips bounds, and finds a good C in
    few passes. The result is the optimum of the graphs when the last is EVERY_BOUND.
    """
    anywhere = tables.windows(NO_BOUND_S)
    unbounded = [cheapest_route(tables, graph, anywhere) for graph in graphs]
    best = functools.reduce(better_route, unbounded, incumbent)
    if best is None or not tables.repeats:
        return best
    for step in steps:
        for graph, route in zip(graphs, unbounded, strict=True):
            found, bound_s = route, NO_BOUND_S
            while found and best:
                useful_s = (best.cost_s - found.passing_s) / tables.repeats
                bound_s = min(found.bottleneck_s * step, bound_s * step, useful_s * EVERY_BOUND)
                found = cheapest_route(tables, graph, tables.windows(bound_s)) if bound_s > 0 else None
                best = better_route(best, found)
    return best


@overload
def better_route(best: RouteFound, found: RouteFound | None) -> RouteFound: ...


@overload
def better_route(best: RouteFound | None, found: RouteFound | None) -> RouteFound | None: ...


def better_route(best: RouteFound | None, found: RouteFound | None) -> RouteFound | None:
    """The cheaper of two routes; the former unless the latter saves more than rounding."""
    if found is None or not math.isfinite(found.cost_s):
        return best
    return found if best is None or found.cost_s < best.cost_s * (1 - ROUNDING) else best


def _running_sums(seconds: Sequence[Sequence[float]], positions: Sequence[int]) -> Floats:
    """(n, P): of each node's layers, those before a position."""
    sums = np.cumsum(np.array(seconds, np.float64), axis=1)
    return np.column_stack([np.zeros(len(sums)), sums])[:, list(positions)]


def _stage_seconds(sums: Floats, embed_s: Sequence[float]) -> Floats:
    """(n, P, P) by begin and end; infinite where a stage would end before it begins."""
    seconds = sums[:, None, :] - sums[:, :, None]
    seconds[:, 0, :] += np.array(embed_s)[:, None]
    seconds[:, *np.tril_indices(sums.shape[1])] = np.inf
    return seconds


def _fitting(sizes: ModelSizes, kv_bytes: Sequence[int], positions: Sequence[int], room_bytes: Sequence[int]) -> Flags:
    """(n, P, P) by begin and end: whether a stage has room on a node."""
    needed = np.zeros((len(positions), len(positions)))
    for begin, start in enumerate(positions):
        for end in range(begin + 1, len(positions)):
            needed[begin, end] = stage_bytes(sizes, kv_bytes, LayerRange(start, positions[end]))
    return needed <= np.array(room_bytes, np.float64)[:, None, None]


def _earliest_begins(fits: Flags) -> Indices:
    """(n, P) by end: the least begin from 1 on of a stage that fits, as one that begins later takes less."""
    ends = np.arange(fits.shape[1])
    too_early = ~fits[:, 1:, :] & (ends[1:, None] < ends)
    earliest: Indices = 1 + np.count_nonzero(too_early, axis=1)
    return earliest


def _limits(hop_chunk_s: Floats, bound_s: float) -> Floats:
    """(n, n + 1), by node and next node or none: the seconds that a bound leaves to a stage, with what rounding can take."""
    return np.column_stack([bound_s - hop_chunk_s, np.full(len(hop_chunk_s), bound_s)]) + bound_s * ROUNDING


def _covering_cells(begins: Indices) -> tuple[Indices, Indices]:
    """The cells of a row of `_Minima` that together cover [begin, end), by end on the last axis."""
    num_positions = begins.shape[-1]
    num_levels, ends = _num_levels(num_positions), np.arange(num_positions)
    lengths = ends - begins
    logarithms = np.array([0, *(length.bit_length() - 1 for length in range(1, num_positions))])
    levels = logarithms[lengths]
    low, high = levels * num_positions + begins, levels * num_positions + ends - (1 << levels)
    nothing = lengths == 0
    low[nothing] = high[nothing] = num_levels * num_positions
    return low, high


def _num_levels(num_positions: int) -> int:
    return max(num_positions - 1, 1).bit_length()
