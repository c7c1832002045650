"""What keeping prefixes costs a load that never repeats: throughput with the prefix cache off and on, in alternating rounds.

No two prompts begin alike, so nothing is ever reused; what the cache copies and hashes is pure cost. Files are written
while a cluster has nothing else to do; a round begins when the other side has done that.
"""

import argparse
import contextlib
import tempfile
from collections.abc import Iterable
from pathlib import Path

import msgspec

from benchmarks.support import machine
from benchmarks.support.arithmetic import turns
from benchmarks.support.contenders import Contender, WorkerLimits, tandem
from benchmarks.support.figures import Bar, bar_chart
from benchmarks.support.load import Load, Round, add_rounds, run_round, speed_ratio, warm_up
from benchmarks.support.main import main
from benchmarks.support.prompts import PromptMaker
from benchmarks.support.random_models import ensure_model, known_models
from benchmarks.support.reporting import Report

_REST_S, _AT_REST_SHARE = 0.5, 0.05
ON, OFF = "prefix cache on", "prefix cache off"


async def _rounds(model: Path, stages: int, load: Load, num_rounds: int) -> dict[str, list[Round]]:
    strategy = "distributed-cached" if stages > 1 else "single-device-cached"
    workers = [WorkerLimits()] * stages
    rounds: dict[str, list[Round]] = {ON: [], OFF: []}
    makers = {name: PromptMaker(0, model) for name in rounds}
    async with contextlib.AsyncExitStack() as clusters:
        sides = {}
        for name in rounds:
            home = Path(clusters.enter_context(tempfile.TemporaryDirectory(prefix="tandem-bench-")))
            running = tandem(name, model, workers, strategy, home=home, prefix=name == ON)
            sides[name] = await clusters.enter_async_context(running)
            await warm_up(sides[name].target, load, makers[name])
        for order in turns(list(rounds), num_rounds):
            for name in order:
                await _rest(sides.values())
                prompts = [makers[name].make(load.prompt_tokens) for _ in range(load.requests)]
                rounds[name].append(await run_round(sides[name].target, load, prompts))
    return rounds


async def _rest(sides: Iterable[Contender]) -> None:
    """Returns when no worker computes or writes."""
    pids = [pid for side in sides for pid in side.pids]
    while max(await machine.idle_shares(pids, _REST_S)) > _AT_REST_SHARE:
        pass


async def run(arguments: argparse.Namespace) -> Report:
    """One device, then several stages."""
    model = ensure_model(arguments.model, machine.model_folder())
    load = Load(
        clients=arguments.clients,
        requests=2 * arguments.clients,
        prompt_tokens=arguments.prompt_tokens,
        max_tokens=arguments.max_tokens,
    )
    report = Report("prefix-cost")
    report.fact("machine", machine.describe())
    report.fact("model", f"{arguments.model}, random weights")
    report.fact("load", f"{load.clients} clients, {load.prompt_tokens} prompt tokens, {load.max_tokens} generated")
    bars = []
    for stages in arguments.stages:
        where = "one device" if stages == 1 else f"{stages} stages"
        found = await _rounds(model, stages, load, arguments.rounds)
        add_rounds(report, found)
        report.check(f"{where}: tokens/s with the cache / without", speed_ratio(found, ON, OFF), at_least=0.97)
        report.check(f"{where}: tokens reused", sum(of.cached_tokens for of in found[ON]), at_most=0)
        report.data[where] = msgspec.to_builtins(found)
        bars += [
            Bar(f"{where}, {name}", sum(of.tokens_per_s for of in found[name]) / len(found[name]), int(name == ON))
            for name in (OFF, ON)
        ]
    report.figure = bar_chart("Throughput of a load that never repeats", "tokens/s", bars)
    return report


def options(parser: argparse.ArgumentParser) -> None:
    """What this benchmark takes."""
    parser.add_argument("--model", default="25m-float32", choices=known_models(), metavar="SIZE-FORMAT")
    parser.add_argument("--stages", type=int, nargs="*", default=[1, 2])
    parser.add_argument("--clients", type=int, default=8)
    parser.add_argument("--rounds", type=int, default=6)
    parser.add_argument("--prompt-tokens", type=int, default=256)
    parser.add_argument("--max-tokens", type=int, default=64)


if __name__ == "__main__":
    raise SystemExit(
        main(
            "prefix-cost",
            __doc__,
            options,
            run,
            quick={"rounds": 1, "stages": [1], "prompt_tokens": 64, "max_tokens": 8},
        )
    )
