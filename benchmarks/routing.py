"""How near policy `measured` comes to the best strategy in hindsight, and how far off its predictions are.

Two hosts in namespaces that share nothing, of which the second one's worker is slowed; the link between them has, in turn, the
quality of a cable, of a narrow cable and of a wifi with its delay. Over a grid of prompt and answer lengths each request is
answered by every strategy by name and once as the policy chooses, in random order, with a prompt of its own each time. The
*regret* of a choice is by how much its strategy took longer than the best one of the same cell, both as medians; those of the
policy `thresholds` and of the modes `always` and `never` stand beside it. Strategies that are predicted to take many times as
long as the best one are not run: their regret is what was predicted. Needs Linux and its superuser.
"""

import argparse
import contextlib
import json
import os
import random
import shutil
import statistics
import threading
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import msgspec
from mlx_lm.utils import load_tokenizer

from benchmarks.support import machine
from benchmarks.support.arithmetic import percentile
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
from tests.support.running_cluster import wait_until

SECOND = "b"
LINKS = ("cable", "narrow", "wifi")
NARROW_SHARE = 0.02  # of 10 Gbit/s
MODELS = ("bundled", "25m-float32")
PROMPTS = (16, 128, 512, 2048)
ANSWERS = (8, 64, 256)
WARM_UP = ((16, 8), (300, 32), (1000, 16), (64, 64), (600, 8), (100, 100))
TRIED = (
    Strategy.SINGLE_DEVICE_CACHED,
    Strategy.DISTRIBUTED_NO_CACHE,
    Strategy.DISTRIBUTED_CACHED,
    Strategy.DISTRIBUTED_PREFILL,
)
LONGEST_S = 40.0
MOST_TIMES = 8.0
BACKGROUND_TOKENS = 3000
BEGUN_PIECES = 20  # of each stream, on average, before others are asked beside them


class Answered(msgspec.Struct, frozen=True, kw_only=True):
    """One answer. asked: the strategy by name, None where the policy chose. Seconds as predicted and as they were."""

    model: str
    link: str
    streams: int
    prompt: int
    answer: int
    asked: str | None
    strategy: str
    workers: tuple[str, ...]
    total_s: float
    ttft_s: float
    predicted_total_s: float | None
    predicted_ttft_s: float | None
    is_warm_up: bool = False


class Cell(msgspec.Struct, frozen=True, kw_only=True):
    """One place of the grid. seconds: by strategy, the median of what was measured; predicted: of those that were not run;
    chosen: by the policy.
    """

    model: str
    link: str
    streams: int
    prompt: int
    answer: int
    seconds: dict[str, float]
    predicted: dict[str, float]
    chosen: str

    @property
    def best_s(self) -> float:
        return min(self.seconds.values())

    def regret(self, strategy: str) -> float:
        """By how much it takes longer than the best one, as a share of that."""
        return (self.seconds | self.predicted)[strategy] / self.best_s - 1

    @property
    def by_thresholds(self) -> str:
        """What the documented rule takes."""
        within = self.prompt <= 100 and self.answer <= 50
        return Strategy.DISTRIBUTED_NO_CACHE if within else Strategy.SINGLE_DEVICE_CACHED


class Asking:
    """Requests to one cluster of one model over one link."""

    def __init__(self, cluster: HostsCluster, model: str, link: str, path: Path, generator: random.Random):
        self._cluster = cluster
        self._about = {"model": model, "link": link}
        self._random = generator
        tokenizer = load_tokenizer(path)
        self._vocabulary = range(100, min(2000, tokenizer.vocab_size))
        # Those of random models cannot be generated.
        self._no_end = {str(token): -100 for token in tokenizer.eos_token_ids} if model == "bundled" else {}
        self.answered: list[Answered] = []

    def __repr__(self) -> str:
        return f"Asking({self._about}, {len(self.answered)} answers)"

    def _body(self, prompt: int, answer: int) -> dict[str, Any]:
        ids = self._random.choices(self._vocabulary, k=prompt)
        return {"prompt": ids, "max_tokens": answer, "logit_bias": self._no_end, "strategy": None}

    def ask(
        self, prompt: int, answer: int, strategy: str | None, *, streams: int, is_warm_up: bool = False
    ) -> Answered:
        """One answer, by a strategy or by the policy."""
        with self._cluster.ask(**(self._body(prompt, answer) | {"strategy": strategy})) as asked:
            found = json.loads(asked.communicate()[0])
        if "error" in found:
            raise TandemError(found["error"]["message"])
        said, predicted = found["tandem"], found["tandem"].get("predicted", {})
        one = Answered(
            **self._about,
            streams=streams,
            prompt=prompt,
            answer=answer,
            asked=strategy,
            strategy=said["strategy"],
            workers=tuple(said["workers"]),
            total_s=said["total_s"],
            ttft_s=said["ttft_s"],
            predicted_total_s=predicted.get("total_s"),
            predicted_ttft_s=predicted.get("ttft_s"),
            is_warm_up=is_warm_up,
        )
        self.answered.append(one)
        return one

    def predictions(self, prompt: int, answer: int) -> dict[str, float]:
        """By strategy, of those that can run."""
        body = json.dumps(self._body(prompt, answer))
        command = ("curl", "-s", "http://127.0.0.1:8420/v1/explain", "-H", "Content-Type: application/json", "-d", body)

        def explained() -> dict[str, Any] | None:
            found: dict[str, Any] = json.loads(self._cluster.bed.run(FIRST, *command).stdout)
            return found if "candidates" in found else None  # while a plan gives way to another

        found: dict[str, Any] = wait_until(explained, "a plan")
        return {
            each["strategy"]: each["predicted_total_s"]
            for each in found["candidates"]
            if each["predicted_total_s"] is not None
        }

    def warm_up(self) -> None:
        """So that every strategy's predictions have seen some answers."""
        for prompt, answer in WARM_UP:
            for strategy in self._worth_it(prompt, answer):
                self.ask(prompt, answer, strategy, streams=0, is_warm_up=True)

    def _worth_it(self, prompt: int, answer: int) -> list[str]:
        predicted = self.predictions(prompt, answer)
        if not predicted:
            raise TandemError("nothing is predicted: is the policy `measured`, and were workers measured?")
        most_s = min(LONGEST_S, MOST_TIMES * min(predicted.values()))
        return [each for each in TRIED if predicted.get(each, most_s + 1) <= most_s]

    def cell(self, prompt: int, answer: int, rounds: int, *, streams: int) -> Cell:
        """Every strategy and the policy, `rounds` times each."""
        predicted = self.predictions(prompt, answer)
        worth_it = self._worth_it(prompt, answer)
        times: dict[str, list[float]] = {}
        chosen: list[str] = []
        for _ in range(rounds):
            for strategy in self._random.sample([*worth_it, None], len(worth_it) + 1):
                one = self.ask(prompt, answer, strategy, streams=streams)
                times.setdefault(one.strategy, []).append(one.total_s)
                chosen += [one.strategy] if strategy is None else []
        cell = Cell(
            **self._about,
            streams=streams,
            prompt=prompt,
            answer=answer,
            seconds={strategy: statistics.median(found) for strategy, found in times.items()},
            predicted={strategy: seconds for strategy, seconds in predicted.items() if strategy not in times},
            chosen=max(chosen, key=lambda each: (chosen.count(each), -statistics.median(times[each]))),
        )
        print(
            f"{cell.model} {cell.link} {streams} streams: {prompt}, {answer}: {cell.chosen}, {cell.regret(cell.chosen):.1%}",
            flush=True,
        )
        return cell

    @contextlib.contextmanager
    def streams(self, number: int) -> Iterator[None]:
        """So many streams that the policy places, begun again where they end."""
        over, begun = threading.Event(), threading.Semaphore(0)

        def run() -> None:
            while not over.is_set():
                with self._cluster.ask(**self._body(64, BACKGROUND_TOKENS), stream=True) as asked:
                    assert asked.stdout is not None
                    for _ in asked.stdout:
                        begun.release()
                        if over.is_set():
                            asked.terminate()

        threads = [threading.Thread(target=run, daemon=True) for _ in range(number)]
        for thread in threads:
            thread.start()
        try:
            for _ in range(number * BEGUN_PIECES):
                begun.acquire()
            yield
        finally:
            over.set()
            for thread in threads:
                thread.join()


def run(arguments: argparse.Namespace) -> Report:
    """Raises TandemError where this machine cannot make hosts."""
    if why := why_no_bed():
        raise TandemError(why)
    generator = random.Random(arguments.seed)
    cells: list[Cell] = []
    answered: list[Answered] = []
    for model in arguments.models:
        path = machine.CHECKOUT / BUNDLED_MODEL if model == "bundled" else ensure_model(model, machine.model_folder())
        for link in arguments.links:
            with _asking(model, link, path, arguments.slowed, generator) as asking:
                asking.warm_up()
                grid = [(prompt, answer) for prompt in arguments.prompts for answer in arguments.answers]
                cells += [asking.cell(*place, arguments.rounds, streams=0) for place in grid]
                if arguments.streams and (model, link) == (arguments.models[0], arguments.links[0]):
                    with asking.streams(arguments.streams):
                        cells += [asking.cell(*place, arguments.rounds, streams=arguments.streams) for place in grid]
                answered += asking.answered
    return _report(arguments, cells, answered)


@contextlib.contextmanager
def _asking(model: str, link: str, path: Path, times: float, generator: random.Random) -> Iterator[Asking]:
    with Bed(2) as bed:
        cluster = HostsCluster(bed)
        second = bed.hosts[SECOND]
        slow_worker(second.outside(second.checkout), times)
        if link == "wifi":
            bed.unplug(FIRST, SECOND)
        elif link == "narrow":
            bed.slow(FIRST, SECOND, NARROW_SHARE)
        given = () if model == "bundled" else ("--model", _on_hosts(bed, path))
        cluster.start(*given, "--config", _config(bed))
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


def _config(bed: Bed) -> str:
    """Policy `measured`, and one worker on the first host."""
    host = bed.hosts[FIRST]
    there = host.home / "routing.toml"
    host.outside(there).write_text('[strategy]\npolicy = "measured"\n')
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


_INITIALS = {
    Strategy.SINGLE_DEVICE_CACHED: "single",
    Strategy.DISTRIBUTED_NO_CACHE: "no cache",
    Strategy.DISTRIBUTED_CACHED: "cached",
    Strategy.DISTRIBUTED_PREFILL: "prefill",
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
        for what in ("total", "ttft"):
            errors = [
                abs(predicted / getattr(one, f"{what}_s") - 1)
                for one in answered
                if one.streams == streams and (predicted := getattr(one, f"predicted_{what}_s")) is not None
            ]
            if not errors:
                continue
            median, high = statistics.median(errors), percentile(errors, 0.9)
            rows.append([what, streams, len(errors), f"{median:.1%}", f"{high:.1%}"])
            if what == "total" and not streams:
                report.check("error of predicted totals, median", median, at_most=0.10)
                report.check("error of predicted totals, 90th percentile", high, at_most=0.25)
    report.table("errors of predictions", ["time", "streams", "answers", "median", "90th percentile"], rows)


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
    parser.add_argument("--rounds", type=int, default=2)
    parser.add_argument("--seed", type=int, default=0)


if __name__ == "__main__":
    quick = {"models": ["bundled"], "links": ["cable"], "prompts": [16, 128], "answers": [8], "streams": 0, "rounds": 1}
    raise SystemExit(main("routing", __doc__, options, run, quick=quick))
