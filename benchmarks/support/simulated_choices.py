"""What `decide` chooses on simulated clusters, beside what would have been best there: every choice runs under the real schedule.

A planned pipeline of 2 to 64 nodes and, beside it, two nodes with the full model, on one of which streams may run. How long each
choice takes is not what was predicted of it, but what `SimulatedWorkers` says.
"""

import random
from collections.abc import Iterator

import msgspec

from benchmarks.support.many_nodes import snapshot
from benchmarks.support.random_clusters import random_cluster
from benchmarks.support.simulated_loads import LAYERS, NODES, planned_route, running, whole_model
from benchmarks.support.simulated_workers import Placed, SimulatedWorkers
from strategy.cost import RouteCosts, RouteLoad
from strategy.decision import decide
from strategy.situation import Asked
from strategy.vocabulary import Route

STREAMS = (0, 1, 4)
_HOLDERS = ("holder-0", "holder-1")
_PROMPTS, _ANSWERS = (128, 1024, 4096), (16, 64, 256)


class Chosen(msgspec.Struct, frozen=True, kw_only=True):
    """One request. Seconds until its answer is complete: by the strategy that was chosen, and by the best one; streams: on
    the first node with the full model.
    """

    nodes: int
    streams: int
    prompt_tokens: int
    generated_tokens: int
    strategy: str
    chosen_s: float
    best_s: float

    @property
    def regret(self) -> float:
        return self.chosen_s / self.best_s - 1


def chosen(seed: int, num_clusters: int) -> Iterator[Chosen]:
    """Each load on so many clusters of each size."""
    draw = random.Random(seed)
    for num_nodes in NODES:
        for _ in range(num_clusters):
            costs = _routes(draw, num_nodes)
            for streams in STREAMS:
                yield _choose(costs, num_nodes, streams, draw.choice(_PROMPTS), draw.choice(_ANSWERS))


def _routes(draw: random.Random, num_nodes: int) -> dict[Route, RouteCosts]:
    """The pipeline first."""
    cluster = random_cluster(draw, num_nodes, LAYERS, rooms=(1 / num_nodes, 3 / num_nodes))
    row_share = draw.uniform(0.05, 0.6)
    found = [planned_route(draw, cluster, row_share)]
    found += [whole_model(draw.choice(cluster.nodes), name, row_share) for name in _HOLDERS]
    return {costs.route: costs for costs in found}


def _choose(
    costs: dict[Route, RouteCosts], num_nodes: int, streams: int, prompt_tokens: int, generated_tokens: int
) -> Chosen:
    asked = Asked(prompt_tokens=prompt_tokens, max_tokens=generated_tokens)
    loads = {Route(_HOLDERS[:1]): RouteLoad(decoding=streams, context=prompt_tokens)} if streams else {}
    decision = decide(asked, snapshot(costs, loads, next(iter(costs)), _HOLDERS), "measured")
    assert decision.cached
    seconds = {route: _seconds(costs[route], asked, loads.get(route, RouteLoad()).decoding) for route in costs}
    return Chosen(
        nodes=num_nodes,
        streams=streams,
        prompt_tokens=prompt_tokens,
        generated_tokens=generated_tokens,
        strategy=decision.strategy,
        chosen_s=seconds[decision.route],
        best_s=min(seconds.values()),
    )


def _seconds(costs: RouteCosts, asked: Asked, streams: int) -> float:
    """Behind others that decode already."""
    own = Placed(route=costs.route, arrives_s=1.0, prompt_tokens=asked.prompt_tokens, generated_tokens=asked.max_tokens)
    others = running(costs.route, streams, asked.prompt_tokens)
    return SimulatedWorkers({costs.route: costs}, [own, *others]).tokens_at(0)[-1] - own.arrives_s
