"""The cost model against published figures, the planner against rules of thumb, and the closed form against the schedule.

Nothing is measured and no model is loaded: a cluster here is a list of speeds, links and loads. Five questions:

* Does the cost model, told only what one Mac does, predict what two and four do together? Every cell of a published table.
* Is the planner's split ever beaten by a rule of thumb? On random clusters, for two kinds of work.
* Does the cost model's closed form say what the schedule of a head then does? On planned routes of 2 to 64 nodes, under load.
* Is what `decide` chooses the best there, under that schedule? With a pipeline and two nodes that have the full model.
* Is it the best where streams run on workers that all routes share? With two that have the full model, and turns as their engines give.

With --page it prints the tables of docs/PLANNING.md instead.
"""

import argparse
import random
import statistics
from collections.abc import Sequence

import msgspec

from benchmarks.support.arithmetic import percentile
from benchmarks.support.figures import Bar, bar_chart
from benchmarks.support.main import main
from benchmarks.support.planning_page import tables
from benchmarks.support.published import STAGE_S, SUM_S, Cell, asked_sum_s, fit_machine, predictions
from benchmarks.support.random_clusters import RULES, WORKLOADS, random_cluster, ratios
from benchmarks.support.reporting import Report
from benchmarks.support.simulated_choices import Chosen, chosen
from benchmarks.support.simulated_loads import Compared, compared
from benchmarks.support.simulated_sharing import CHOOSERS, NUM_STREAMS, Beside, beside

# Sums of the same seconds in another order differ by so much.
_ROUNDING = 1e-9


def run(arguments: argparse.Namespace) -> Report:
    """All five, or the page."""
    if arguments.page:
        report = Report("planning")
        tables(report)
        return report
    report = Report("simulate")
    _published(report, list(predictions()))
    _rules(report, arguments.clusters, arguments.seed)
    _schedule(report, list(compared(arguments.seed, arguments.routes)))
    _choices(report, list(chosen(arguments.seed, arguments.routes)))
    _shared(report, list(beside(arguments.seed, arguments.routes)))
    return report


def _published(report: Report, cells: list[Cell]) -> None:
    machine = fit_machine()
    report.fact(
        "taken from the table beside its rows of one Mac",
        f"a sum {SUM_S * 1e3:.2f} ms, a further Mac {STAGE_S * 1e3:.2f} ms a step",
    )
    report.fact(
        "a step of one Mac",
        f"weights at {machine.bytes_per_s / 1e9:.0f} GB/s and {machine.layer_s * 1e6:.0f} microseconds a layer",
    )
    ways = list(dict.fromkeys(cell.way for cell in cells))
    rows = []
    for key in dict.fromkeys((cell.model, cell.context, cell.what) for cell in cells):
        of_row = {cell.way: cell for cell in cells if (cell.model, cell.context, cell.what) == key}
        rows.append([f"{key[0]}, {key[1] // 1024}K, {key[2]}", *(_beside(of_row.get(way)) for way in ways)])
    report.table("tokens per second, published -> predicted", ["model, context", *ways], rows)
    report.table(
        "the sum that each published decode speed would ask for",
        ["model, context", "Macs", "ms"],
        [[f"{row.model}, {row.context // 1024}K", macs, sum_s * 1e3] for row, macs, sum_s in asked_sum_s()],
    )
    report.check("largest deviation from a published cell", max(abs(cell.deviation) for cell in cells), at_most=0.15)
    report.data["cells"] = [msgspec.to_builtins(cell) for cell in cells]


def _beside(cell: Cell | None) -> str | None:
    if cell is None:
        return None
    ours = f"{cell.ours:.0f}" if cell.ours >= 100 else f"{cell.ours:.3g}"
    return f"{cell.published:g} -> {ours} ({cell.deviation:+.1%})"


def _rules(report: Report, num_clusters: int, seed: int) -> None:
    draw = random.Random(seed)
    found: dict[tuple[str, str], list[float]] = {(rule, work): [] for rule in RULES for work in WORKLOADS}
    without = 0
    for _ in range(num_clusters):
        cluster = random_cluster(draw, draw.randint(2, 8))
        for work, workload in WORKLOADS.items():
            of_rules = ratios(cluster, workload)
            without += of_rules is None
            for rule, ratio in (of_rules or {}).items():
                found[rule, work].append(ratio)
    rows = []
    for (rule, work), costs in found.items():
        medians = [statistics.median(costs), percentile(costs, 0.9), max(costs)] if costs else [None] * 3
        rows.append([f"{rule}, {work}", len(costs), *medians])
    columns = ["rule, work", "clusters where it fits", "median cost / the plan's", "90th percentile", "worst"]
    report.table(f"rules of thumb on {num_clusters} random clusters of 2 to 8 nodes", columns, rows)
    every = [ratio for costs in found.values() for ratio in costs]
    report.check("clusters that a rule of thumb splits better than the plan", _num_beaten(every), at_most=0)
    report.check("clusters for which the planner found nothing", without, at_most=0)
    report.figure = bar_chart(
        "Median cost over the plan's",
        "times",
        [
            Bar(f"{rule}, {work}", statistics.median(costs), work == "prefill-heavy")
            for (rule, work), costs in found.items()
            if costs
        ],
    )


def _num_beaten(costs: Sequence[float]) -> int:
    return sum(ratio < 1 - _ROUNDING for ratio in costs)


def _schedule(report: Report, found: list[Compared]) -> None:
    rows = []
    for nodes, streams in dict.fromkeys((each.nodes, each.streams) for each in found):
        group = [each for each in found if (each.nodes, each.streams) == (nodes, streams)]
        errors = [statistics.median(errors) for errors in _errors(group)]
        stages = statistics.mean(each.stages for each in group)
        rows.append([f"{nodes} nodes, {streams} streams", stages, *(f"{error:.1%}" for error in errors)])
    columns = ["cluster, load", "stages", "TTFT", "ITL"]
    report.table("median error of the predicted times against the schedule's", columns, rows)
    for name, errors in zip(("TTFT", "ITL"), _errors(found), strict=True):
        report.check(f"error of {name}, median", statistics.median(errors), at_most=0.1)
        report.check(f"error of {name}, 90th percentile", percentile(errors, 0.9), at_most=0.25)
    report.data["routes"] = [msgspec.to_builtins(each) for each in found]


def _errors(found: Sequence[Compared]) -> tuple[list[float], list[float]]:
    return [each.ttft_error for each in found], [each.itl_error for each in found]


def _choices(report: Report, found: list[Chosen]) -> None:
    rows = []
    for nodes, streams in dict.fromkeys((each.nodes, each.streams) for each in found):
        group = [each for each in found if (each.nodes, each.streams) == (nodes, streams)]
        regrets = [each.regret for each in group]
        together = sum(each.strategy == "distributed-cached" for each in group)
        what = f"{nodes} nodes, {streams} streams"
        rows.append([what, len(group), together, f"{statistics.mean(regrets):.1%}", f"{max(regrets):.1%}"])
    columns = ["cluster, load", "requests", "over all stages", "regret, mean", "worst"]
    report.table("what is chosen beside the best choice, both under the schedule", columns, rows)
    regrets = [each.regret for each in found]
    report.check("regret of what is chosen, mean", statistics.mean(regrets), at_most=0.05)
    report.check("regret of what is chosen, worst", max(regrets), at_most=0.15)
    report.data["choices"] = [msgspec.to_builtins(each) for each in found]


def _shared(report: Report, found: list[Beside]) -> None:
    rows = []
    for place in dict.fromkeys(each.place for each in found):
        for rule in CHOOSERS:
            regrets = [each.regret(rule) for each in found if each.place == place]
            rows.append([place, rule, len(regrets), f"{statistics.mean(regrets):.1%}", f"{max(regrets):.1%}"])
    columns = ["streams on", "policy or mode", "requests", "regret, mean", "worst"]
    report.table(f"what is chosen beside {NUM_STREAMS} streams on two workers that all routes share", columns, rows)
    regrets = [each.regret("measured") for each in found]
    report.check("regret beside streams on the same workers, mean", statistics.mean(regrets), at_most=0.05)
    report.check("regret beside streams on the same workers, worst", max(regrets), at_most=0.15)
    report.data["beside"] = [msgspec.to_builtins(each) for each in found]


def options(parser: argparse.ArgumentParser) -> None:
    """What this benchmark takes."""
    parser.add_argument("--page", action="store_true", help="the tables of docs/PLANNING.md, nothing else")
    parser.add_argument("--clusters", type=int, default=1000, help="random ones that the planner and the rules split")
    parser.add_argument("--routes", type=int, default=8, help="random clusters of each size that the schedule runs on")
    parser.add_argument("--seed", type=int, default=0)


if __name__ == "__main__":
    raise SystemExit(main("simulate", __doc__, options, run, quick={"clusters": 20, "routes": 1}))
