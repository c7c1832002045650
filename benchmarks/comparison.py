"""Tandem beside mlx_lm.server, same model, same load, same BLAS, each computing process on a core of its own.

Sides: two workers as a user starts them (a model that fits each is served by each, and a request goes to the less busy
one), two workers as one pipeline (distributed-cached, the way of models that fit no single worker), two workers as one tensor
group, two workers of which policy `measured` takes what it predicts to be best for all streams, one worker, mlx_lm.server in one
process, and on two ranks over the ring, by tensor and by pipeline parallelism. Each is started for its turn and stopped after it,
because waiting ring ranks keep their cores busy; the turns alternate, and ratios are taken round by round.
"""

import argparse
import asyncio
import contextlib
from collections import Counter
from collections.abc import Callable
from pathlib import Path

from benchmarks.support import machine
from benchmarks.support.arithmetic import turns
from benchmarks.support.contenders import Contender, WorkerLimits, mlx_server, tandem
from benchmarks.support.figures import Bar, bar_chart
from benchmarks.support.load import Load, Round, add_rounds, run_round, speed_ratio, warm_up
from benchmarks.support.main import main
from benchmarks.support.prompts import PromptMaker
from benchmarks.support.random_models import ensure_model, known_models
from benchmarks.support.reporting import Report

OURS = "Tandem, 2 workers"
STAGES = "Tandem, 2 workers, one pipeline"
GROUP = "Tandem, 2 workers, one group"
MEASURED = "Tandem, 2 workers, as measured"
ONE_WORKER = "Tandem, 1 worker"
ONE_PROCESS = "mlx_lm.server"
TENSOR = "mlx_lm.server, 2 tensor ranks"
PIPELINE = "mlx_lm.server, 2 pipeline ranks"
# After a round workers still write to disk what it left; then they are idle.
SETTLE_S, IDLE_S = 3.0, 5.0
# What the layout that is chosen has to be over one worker, by the format of the weights.
MEASURED_AT_LEAST = {"float32": 1.3, "bfloat16": 1.65, "4bit": 1.9}
FOR_ALL = {"strategy": {"policy": "measured", "objective": "throughput"}}

Side = Callable[[Path], contextlib.AbstractAsyncContextManager[Contender]]
SIDES: dict[str, Side] = {
    OURS: lambda model: tandem(OURS, model, [WorkerLimits()] * 2),
    STAGES: lambda model: tandem(STAGES, model, [WorkerLimits()] * 2, "distributed-cached"),
    GROUP: lambda model: tandem(GROUP, model, [WorkerLimits(is_rank=True)] * 2, "tensor-parallel"),
    MEASURED: lambda model: tandem(MEASURED, model, [WorkerLimits(is_rank=True)] * 2, further=FOR_ALL),
    ONE_WORKER: lambda model: tandem(ONE_WORKER, model, [WorkerLimits()], "single-device-cached"),
    ONE_PROCESS: lambda model: mlx_server(ONE_PROCESS, model),
    TENSOR: lambda model: mlx_server(TENSOR, model, ranks=2),
    PIPELINE: lambda model: mlx_server(PIPELINE, model, ranks=2, pipeline=True),
}


async def run(arguments: argparse.Namespace) -> Report:
    """All sides in alternating turns."""
    model = ensure_model(arguments.model, machine.model_folder())
    load = Load(
        clients=arguments.clients,
        requests=arguments.requests or arguments.clients,
        prompt_tokens=arguments.prompt_tokens,
        max_tokens=arguments.max_tokens,
    )
    report = Report("comparison")
    report.fact("machine", machine.describe())
    report.fact("model", f"{arguments.model}, random weights")
    report.fact("load", f"{load.clients} clients, {load.prompt_tokens} prompt tokens, {load.max_tokens} generated")
    names = [name for name in SIDES if not arguments.only or any(part in name for part in arguments.only)]
    makers = {name: PromptMaker(0, model) for name in names}
    rounds: dict[str, list[Round]] = {name: [] for name in names}
    idle: dict[str, list[float]] = {}
    for order in turns(names, arguments.rounds):
        for name in order:
            async with SIDES[name](model) as contender:
                await warm_up(contender.target, load, makers[name])
                prompts = [makers[name].make(load.prompt_tokens) for _ in range(load.requests)]
                rounds[name].append(await run_round(contender.target, load, prompts))
                await asyncio.sleep(SETTLE_S)
                idle[name] = await machine.idle_shares(list(contender.pids), IDLE_S)
                report.fact(name, f"BLAS: {contender.blas}; cores: {contender.pinned}")
            print(f"{name}: {rounds[name][-1].tokens_per_s:.1f} tokens/s", flush=True)
    _conclude(report, rounds, idle)
    if MEASURED in rounds:
        _conclude_measured(report, rounds, arguments.model.rpartition("-")[2])
    return report


def _conclude(report: Report, rounds: dict[str, list[Round]], idle: dict[str, list[float]]) -> None:
    ours = [name for name in (OURS, STAGES, GROUP, MEASURED) if name in rounds]
    add_rounds(report, rounds, num_ours=len(ours) or 1)
    report.table(
        "use of a core while idle", ["server", "most busy process"], [[name, max(of)] for name, of in idle.items()]
    )
    beside = {name: ratio for name in ours if TENSOR in rounds and (ratio := speed_ratio(rounds, name, TENSOR))}
    if beside:
        best = max(beside, key=lambda name: beside[name])
        report.check(f"tokens/s of {best}, our best / {TENSOR}", beside[best], at_least=1.0)
    for name in ours:
        report.check(f"{name}: idle share of a core", max(idle[name]), at_most=0.02)
        if name == GROUP:  # for one stream; of several it is held to the other ranks alone, above
            continue
        for other, target in ((ONE_WORKER, 1.7), (ONE_PROCESS, 1.5)):
            if other in rounds:
                report.check(f"tokens/s of {name} / {other}", speed_ratio(rounds, name, other), at_least=target)
        both = [
            ratio for other in (TENSOR, PIPELINE) if other in rounds and (ratio := speed_ratio(rounds, name, other))
        ]
        if both:
            report.check(f"tokens/s of {name} / mlx_lm.server's better mode on 2 ranks", min(both), at_least=1.1)
    bars = [
        Bar(f"{name}, round {number}", found.tokens_per_s, colour)
        for colour, (name, of_name) in enumerate(rounds.items())
        for number, found in enumerate(of_name, 1)
    ]
    report.figure = bar_chart("Output", "tokens per second", bars)


def _conclude_measured(report: Report, rounds: dict[str, list[Round]], model_format: str) -> None:
    """What was chosen, over one worker and over the best of the layouts by name."""
    chosen = sum((Counter(found.strategies) for found in rounds[MEASURED]), Counter())
    report.fact("chosen as measured", ", ".join(f"{name} {count} times" for name, count in chosen.most_common()))
    if ONE_WORKER in rounds and model_format in MEASURED_AT_LEAST:
        what = f"tokens/s of {MEASURED} / {ONE_WORKER}, {model_format}"
        report.check(what, speed_ratio(rounds, MEASURED, ONE_WORKER), at_least=MEASURED_AT_LEAST[model_format])
    named = [
        ratio for name in (OURS, STAGES, GROUP) if name in rounds and (ratio := speed_ratio(rounds, MEASURED, name))
    ]
    if named:
        report.check(f"tokens/s of {MEASURED} / the best layout by name", min(named), at_least=0.9)


def options(parser: argparse.ArgumentParser) -> None:
    """What this benchmark takes."""
    parser.add_argument("--model", default="25m-bfloat16", choices=known_models(), metavar="SIZE-FORMAT")
    parser.add_argument("--clients", type=int, default=8)
    parser.add_argument("--requests", type=int, help="in a round; default: as many as clients")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--prompt-tokens", type=int, default=64)
    parser.add_argument("--max-tokens", type=int, default=128)
    parser.add_argument("--only", action="append", metavar="PART", help="sides whose names contain this; repeatable")


if __name__ == "__main__":
    raise SystemExit(
        main("comparison", __doc__, options, run, quick={"rounds": 1, "prompt_tokens": 16, "max_tokens": 16})
    )
