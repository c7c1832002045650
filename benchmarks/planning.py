"""How long it takes to find the best split of a model over nodes (`strategy/optimal_split.py`), and to decide how one request runs
(`strategy/decision.py`): both alone, without a cluster.

Random clusters of unlike nodes whose memory binds, with unlike layers and unlike links, so that no two can stand for each
other; each with several kinds of requests. Up to eight nodes the split is the optimum, beyond that a good one. Beside the
times stands how much cheaper the split is than even layers over all nodes in the order in which they came.
"""

import argparse
import itertools
import random
import statistics
import time

import msgspec

from benchmarks.support import machine
from benchmarks.support.figures import Bar, bar_chart
from benchmarks.support.main import main
from benchmarks.support.many_nodes import many_nodes
from benchmarks.support.reporting import Report
from strategy.decision import decide
from strategy.optimal_split import OptimalSplit, optimal_split
from strategy.partition import ModelSizes
from strategy.situation import Asked
from strategy.split_costs import HopCosts, NodeSpeeds, Stages, Workload, cost_of
from strategy.vocabulary import LayerRange

EXACT_NODES = (2, 4, 8)
MORE_NODES = (16, 64)
DECISIONS = 300
WORKLOADS = {
    "prefill": Workload(num_chunks=64, generated_tokens=16),
    "both": Workload(num_chunks=16, generated_tokens=256),
    "decode": Workload(num_chunks=1, generated_tokens=512),
}


class PlanningTask(msgspec.Struct, frozen=True, kw_only=True):
    """A model and a cluster."""

    sizes: ModelSizes
    kv_bytes: tuple[int, ...]
    nodes: tuple[NodeSpeeds, ...]
    hops: HopCosts

    def solve(self, workload: Workload) -> OptimalSplit | None:
        return optimal_split(self.sizes, self.kv_bytes, self.nodes, self.hops, workload, range(1, len(self.kv_bytes)))

    def even(self) -> Stages:
        """Layers as even as can be over all nodes in the order in which they came, whether they fit or not."""
        num_layers = len(self.kv_bytes)
        sharing = self.nodes[:num_layers]
        bounds = [round(num_layers * index / len(sharing)) for index in range(len(sharing) + 1)]
        ranges = [LayerRange(start, end) for start, end in itertools.pairwise(bounds)]
        return [(node.name, layers) for node, layers in zip(sharing, ranges, strict=True)]


class Planned(msgspec.Struct, frozen=True, kw_only=True):
    """The splits of one kind of cluster and request. share: their cost, of that of even layers; stages: nodes in use."""

    num_nodes: int
    workload: str
    seconds: tuple[float, ...]
    shares: tuple[float, ...]
    stages: tuple[int, ...]


def random_task(num_nodes: int, num_layers: int, seed: int) -> PlanningTask:
    """Nodes with room for two to five times an even share (at least about two layers), whose speeds and links differ tenfold."""
    draw = random.Random(seed)
    sizes = ModelSizes(
        layers=tuple(draw.randint(80_000_000, 120_000_000) for _ in range(num_layers)),
        embedding=300_000_000,
        head=300_000_000,
        tied=False,
    )
    work = [draw.uniform(0.7, 1.4) for _ in range(num_layers)]
    names = [f"node-{index}" for index in range(num_nodes)]
    pairs = list(itertools.permutations(names, 2))
    return PlanningTask(
        sizes=sizes,
        kv_bytes=tuple(draw.randint(1_000_000, 9_000_000) for _ in range(num_layers)),
        nodes=tuple(_random_node(draw, name, work, sizes.total / min(num_nodes, num_layers)) for name in names),
        hops=HopCosts(
            default_decode_s=0.0,
            default_chunk_s=0.0,
            pair_decode_s={pair: draw.uniform(0.0001, 0.002) for pair in pairs},
            pair_chunk_s={pair: draw.uniform(0.002, 0.1) for pair in pairs},
        ),
    )


def _random_node(draw: random.Random, name: str, work: list[float], even_bytes: float) -> NodeSpeeds:
    decode_s, chunk_s = draw.uniform(0.0004, 0.002), draw.uniform(0.01, 0.1)
    return NodeSpeeds(
        name=name,
        decode_s=tuple(decode_s * part * draw.uniform(0.95, 1.05) for part in work),
        chunk_s=tuple(chunk_s * part * draw.uniform(0.95, 1.05) for part in work),
        embed_decode_s=0.0001,
        embed_chunk_s=0.001,
        head_decode_s=decode_s * 2,
        head_chunk_s=decode_s * 2,
        room_bytes=int(even_bytes * draw.uniform(2, 5)),
    )


def measure(num_nodes: int, num_layers: int, workload: str, clusters: int) -> Planned:
    """Plan once for each cluster."""
    seconds, shares, stages = [], [], []
    for seed in range(clusters):
        task = random_task(num_nodes, num_layers, seed)
        began = time.perf_counter()
        found = task.solve(WORKLOADS[workload])
        seconds.append(time.perf_counter() - began)
        if found is not None:
            even = cost_of(task.even(), task.nodes, task.hops, WORKLOADS[workload])
            shares.append(found.cost_s / even.cost_s)
            stages.append(len(found.stages))
    return Planned(
        num_nodes=num_nodes, workload=workload, seconds=tuple(seconds), shares=tuple(shares), stages=tuple(stages)
    )


def run(arguments: argparse.Namespace) -> Report:
    """All sizes of clusters, all kinds of requests."""
    report = Report("planning")
    report.fact("machine", machine.describe())
    report.fact(
        "model", f"{arguments.layers} unlike layers, cut anywhere; {arguments.clusters} random clusters of each size"
    )
    found = [
        measure(num_nodes, arguments.layers, workload, arguments.clusters)
        for num_nodes in (*EXACT_NODES, *MORE_NODES)
        for workload in WORKLOADS
    ]
    rows = [
        [
            f"{planned.num_nodes}, {planned.workload}",
            statistics.median(planned.seconds) * 1000,
            max(planned.seconds) * 1000,
            statistics.median(planned.stages) if planned.stages else None,
            statistics.median(planned.shares) if planned.shares else None,
        ]
        for planned in found
    ]
    report.table(
        "time to plan", ["nodes, request", "median ms", "largest", "nodes in use", "cost, of even layers"], rows
    )
    exact = max(max(planned.seconds) for planned in found if planned.num_nodes == EXACT_NODES[-1])
    report.check("seconds for the optimum over 8 nodes, the longest", exact, at_most=1.0)
    _add_decisions(report)
    report.data["planned"] = msgspec.to_builtins(found)
    bars = [Bar(row[0], row[2]) for row in rows]
    report.figure = bar_chart("Time to plan, the longest", "ms", bars)
    return report


def _add_decisions(report: Report) -> None:
    rows = []
    for num_nodes in (*EXACT_NODES, *MORE_NODES):
        rows.append([num_nodes, *(_decision_us(num_nodes, busy=busy) for busy in (False, True))])
    report.table("time to decide", ["nodes", "idle, us", "streams on every route, us"], rows)
    report.check(f"microseconds to decide at {num_nodes} nodes", rows[-1][1], at_most=200)
    report.check(f"microseconds to decide at {num_nodes} busy nodes", rows[-1][2], at_most=200)


def _decision_us(num_nodes: int, *, busy: bool) -> float:
    """The median; what one decision calculated is not there for the next."""
    snapshot = many_nodes(num_nodes, busy=busy)
    asked = Asked(prompt_tokens=700, max_tokens=100)
    times = []
    for _ in range(DECISIONS):
        anew = msgspec.structs.replace(snapshot, conditions=msgspec.structs.replace(snapshot.conditions, found={}))
        began = time.perf_counter()
        decide(asked, anew, "measured")
        times.append((time.perf_counter() - began) * 1e6)
    return statistics.median(times)


def options(parser: argparse.ArgumentParser) -> None:
    """What this benchmark takes."""
    parser.add_argument("--layers", type=int, default=80)
    parser.add_argument("--clusters", type=int, default=10, help="random ones, of each size")


if __name__ == "__main__":
    raise SystemExit(main("planning", __doc__, options, run, quick={"layers": 16, "clusters": 1}))
