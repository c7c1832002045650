"""How near policy `measured` comes to the best strategy in hindsight, and how far off its predictions are.

Two hosts in namespaces that share nothing, of which the second one's worker is slowed; the link between them has, in turn, the
quality of a cable, of a narrow cable and of a wifi with its delay. Over a grid of prompt and answer lengths each request is
answered by every strategy by name and once as the policy chooses, in random order, with a prompt of its own each time. Under load
streams that the policy places are begun anew before each request, so that all strategies meet the same ones. The *regret* of a
choice is by how much its strategy took longer than the best one of the same cell, both as medians; those of the policy
`thresholds` and of the modes `always` and `never` stand beside it. Strategies that are predicted to take many times as
long as the best one are not run: their regret is what was predicted. Needs Linux and its superuser.
"""

import argparse
import contextlib
import os
import random
import shutil
import statistics
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import msgspec

from benchmarks.support import machine
from benchmarks.support.arithmetic import percentile
from benchmarks.support.asked_hosts import TRIED, Answered, Asking, Cell
from benchmarks.support.figures import heat_map
from benchmarks.support.main import main
from benchmarks.support.random_models import ensure_model
from benchmarks.support.reporting import Report
from benchmarks.support.slowing import slow_worker
from cluster.config import BUNDLED_MODEL
from protocol.errors import TandemError
from strategy.situation import Strategy
from tests.hosts.bed import Bed
from tests.hosts.cluster import FIRST, HostsCluster
from tests.hosts.tools import tool, why_no_bed

SECOND = "b"
LINKS = ("cable", "narrow", "wifi")
NARROW_SHARE = 0.02  # of 10 Gbit/s
MODELS = ("bundled", "25m-float32")
PROMPTS = (16, 128, 512, 2048)
ANSWERS = (8, 64, 256)


def run(arguments: argparse.Namespace) -> Report:
    """Raises TandemError where this machine cannot make hosts."""
    if why := why_no_bed():
        raise TandemError(why)
    generator = random.Random(arguments.seed)
    cells: list[Cell] = []
    answered: list[Answered] = []
    for model in arguments.models[:1] if arguments.load_only else arguments.models:
        path = machine.CHECKOUT / BUNDLED_MODEL if model == "bundled" else ensure_model(model, machine.model_folder())
        for link in arguments.links[:1] if arguments.load_only else arguments.links:
            with _asking(model, link, path, arguments, generator) as asking:
                asking.warm_up()
                grid = [(prompt, answer) for prompt in arguments.prompts for answer in arguments.answers]
                if not arguments.load_only:
                    cells += [asking.cell(*place, arguments.rounds, streams=0) for place in grid]
                if arguments.streams and (model, link) == (arguments.models[0], arguments.links[0]):
                    cells += [asking.cell(*place, arguments.rounds, streams=arguments.streams) for place in grid]
                answered += asking.answered
    return _report(arguments, cells, answered)


@contextlib.contextmanager
def _asking(
    model: str, link: str, path: Path, arguments: argparse.Namespace, generator: random.Random
) -> Iterator[Asking]:
    with Bed(2) as bed:
        cluster = HostsCluster(bed)
        second = bed.hosts[SECOND]
        slow_worker(second.outside(second.checkout), arguments.slowed)
        if link == "wifi":
            bed.unplug(FIRST, SECOND)
        elif link == "narrow":
            bed.slow(FIRST, SECOND, NARROW_SHARE)
        given = () if model == "bundled" else ("--model", _on_hosts(bed, path))
        cluster.start(*given, "--config", _config(bed, is_grouped=arguments.group))
        try:
            cluster.invite(SECOND)
            cluster.await_parts(2)
            if link != "wifi":
                cluster.await_cables()
            yield Asking(cluster, model, link, path, generator)
        finally:
            cluster.stop()


def _on_hosts(bed: Bed, path: Path) -> str:
    for host in bed.hosts.values():
        models = host.checkout / "models"
        shutil.copytree(path, host.outside(models / path.name))
        tool("chown", "-R", f"{host.uid}:{host.uid}", host.outside(models / path.name))
    return str(bed.hosts[FIRST].checkout / "models" / path.name)


def _config(bed: Bed, *, is_grouped: bool) -> str:
    """Policy `measured`, and one worker on the first host; whether it and the second host's are a group, too."""
    host = bed.hosts[FIRST]
    there = host.home / "routing.toml"
    group = f'[[groups]]\nworkers = ["worker-0", "host-{SECOND}"]\n' if is_grouped else ""
    host.outside(there).write_text(f'[strategy]\npolicy = "measured"\n{group}')
    os.chown(host.outside(there), host.uid, host.uid)
    return str(there)


def _report(arguments: argparse.Namespace, cells: Sequence[Cell], answered: Sequence[Answered]) -> Report:
    report = Report("routing")
    report.fact("machine", machine.describe())
    report.fact("hosts", f"two, the second one takes {arguments.slowed:g} times as long; {', '.join(arguments.links)}")
    report.fact("requests", f"{len(answered):,}, {arguments.rounds} of each kind, seed {arguments.seed}")
    _add_cells(report, cells)
    _add_regrets(report, cells)
    _add_errors(report, [one for one in answered if not one.is_warm_up])
    report.data["cells"] = msgspec.to_builtins(cells)
    report.data["answers"] = msgspec.to_builtins(answered)
    return report


def _add_cells(report: Report, cells: Sequence[Cell]) -> None:
    columns = ["model", "link", "streams", "prompt", "answer", *TRIED, "chosen", "regret"]
    rows = [
        [cell.model, cell.link, cell.streams, cell.prompt, cell.answer]
        + [cell.seconds.get(strategy) for strategy in TRIED]
        + [cell.chosen, f"{cell.regret(cell.chosen):.1%}"]
        for cell in cells
    ]
    report.table("seconds of an answer by each strategy", columns, rows)
    names = list(dict.fromkeys(f"{cell.model}, {cell.link}{', busy' if cell.streams else ''}" for cell in cells))
    places = list(dict.fromkeys(f"{cell.prompt} > {cell.answer}" for cell in cells))
    values = {
        (f"{cell.model}, {cell.link}{', busy' if cell.streams else ''}", f"{cell.prompt} > {cell.answer}"): (
            cell.regret(cell.chosen),
            _INITIALS[cell.chosen],
        )
        for cell in cells
    }
    report.figure = heat_map(
        "Regret of policy measured (prompt > answer, tokens), and what it chose", places, names, values
    )


_INITIALS: dict[str, str] = {
    Strategy.SINGLE_DEVICE_CACHED: "single",
    Strategy.DISTRIBUTED_NO_CACHE: "no cache",
    Strategy.DISTRIBUTED_CACHED: "cached",
    Strategy.DISTRIBUTED_PREFILL: "prefill",
    Strategy.TENSOR_PARALLEL: "tensor",
}


def _add_regrets(report: Report, cells: Sequence[Cell]) -> None:
    rules = {
        "measured": lambda cell: cell.chosen,
        "thresholds": lambda cell: cell.by_thresholds,
        "always": lambda _: Strategy.DISTRIBUTED_NO_CACHE,
        "never": lambda _: Strategy.SINGLE_DEVICE_CACHED,
    }
    rows = []
    for streams in dict.fromkeys(cell.streams for cell in cells):
        for name, rule in rules.items():
            regrets = [cell.regret(rule(cell)) for cell in cells if cell.streams == streams]
            rows.append([name, streams, *(f"{value:.1%}" for value in (statistics.mean(regrets), max(regrets)))])
            if name == "measured":
                beside = f" beside {streams} streams" if streams else ""
                report.check(f"regret of measured{beside}, mean", statistics.mean(regrets), at_most=0.05)
                report.check(f"regret of measured{beside}, worst", max(regrets), at_most=0.15)
    report.table("regret", ["policy or mode", "streams", "mean", "worst"], rows)


def _add_errors(report: Report, answered: Sequence[Answered]) -> None:
    rows = []
    for streams in dict.fromkeys(one.streams for one in answered):
        alike = [one for one in answered if one.streams == streams]
        for what in ("total", "ttft"):
            rows.append(_errors_row(f"{what}, all", streams, _errors(alike, what)))
        for strategy in TRIED:
            rows.append(
                _errors_row(
                    f"total, {strategy}", streams, _errors([one for one in alike if one.strategy == strategy], "total")
                )
            )
        guessed = _errors([one for one in alike if one.guesses], "total")
        rows.append(_errors_row("total, of answers with guesses", streams, guessed))
        if not streams:
            found = _errors(alike, "total")
            report.check("error of predicted totals, median", statistics.median(found), at_most=0.10)
            report.check("error of predicted totals, 90th percentile", percentile(found, 0.9), at_most=0.25)
            if guessed:
                report.check("the same of answers with guesses, median", statistics.median(guessed), at_most=0.10)
    columns = ["time", "streams", "answers", "median", "90th percentile"]
    report.table("errors of predictions", columns, [row for row in rows if row is not None])


def _errors(answered: Sequence[Answered], what: str) -> list[float]:
    """Shares of what it took, of those that were predicted."""
    return [
        abs(predicted / getattr(one, f"{what}_s") - 1)
        for one in answered
        if (predicted := getattr(one, f"predicted_{what}_s")) is not None
    ]


def _errors_row(what: str, streams: int, errors: Sequence[float]) -> list[Any] | None:
    if not errors:
        return None
    return [what, streams, len(errors), f"{statistics.median(errors):.1%}", f"{percentile(errors, 0.9):.1%}"]


def options(parser: argparse.ArgumentParser) -> None:
    """What this benchmark takes."""
    parser.add_argument("--models", nargs="+", choices=MODELS, default=list(MODELS))
    parser.add_argument("--links", nargs="+", choices=LINKS, default=list(LINKS))
    parser.add_argument("--prompts", nargs="+", type=int, default=list(PROMPTS))
    parser.add_argument("--answers", nargs="+", type=int, default=list(ANSWERS))
    parser.add_argument("--slowed", type=float, default=2.0, help="by how much longer the second host's steps take")
    parser.add_argument(
        "--streams", type=int, default=4, help="that run beside, with the first model on the first link; 0 for none"
    )
    parser.add_argument("--group", action="store_true", help="the two workers are a tensor group, too")
    parser.add_argument(
        "--load-only", action="store_true", help="beside streams only, with the first model on the first link"
    )
    parser.add_argument("--rounds", type=int, default=2)
    parser.add_argument("--seed", type=int, default=0)


if __name__ == "__main__":
    quick = {
        "models": ["bundled"],
        "links": ["cable"],
        "prompts": [16, 128],
        "answers": [8],
        "streams": 0,
        "load_only": False,
        "group": True,
        "rounds": 1,
    }
    raise SystemExit(main("routing", __doc__, options, run, quick=quick))
