"""What a copy of each stage's caches on the next worker gains after a loss, and what it costs without one.

The two settings of recovery.kv_copies, 0 and 1, take turns, each on a cluster of its own. In each turn eight streams give
the throughput; then a stream with a long prompt loses a worker while it decodes, and the pause until its next token is
taken. Its ids must be those of a cluster to which nothing happens. Ratios are taken round by round.
"""

import argparse
import random
import statistics
from collections.abc import Mapping
from pathlib import Path

import msgspec

from benchmarks.support import machine
from benchmarks.support.arithmetic import paired_ratios, turns
from benchmarks.support.client import Target
from benchmarks.support.contenders import WorkerLimits, cluster
from benchmarks.support.faults import prepared
from benchmarks.support.figures import Bar, bar_chart
from benchmarks.support.load import Load, Round, add_rounds, run_round, speed_ratio, warm_up
from benchmarks.support.main import main
from benchmarks.support.prompts import PromptMaker
from benchmarks.support.random_models import VOCABULARY, ensure_model, known_models
from benchmarks.support.reporting import Report
from benchmarks.support.trials import Outcome, Request, Trial, Undisturbed, run_trial, undisturbed, until_ready

WITHOUT, WITH = "no copies", "one copy"
SIDES = {WITHOUT: 0, WITH: 1}
STRATEGY = "distributed-cached"
PAUSE_RATIO, SPEED_RATIO = 1 / 3, 0.95


class Found(msgspec.Struct, frozen=True, kw_only=True):
    """One turn of one side. victim: the number of the worker that was killed."""

    throughput: Round
    victim: int
    outcome: Outcome


def long_requests(arguments: argparse.Namespace) -> list[Request]:
    """One for each round, of random ids: the models of the benchmarks cannot end an answer by themselves."""
    generator = random.Random(arguments.seed)
    return [
        Request(
            prompt=tuple(generator.randrange(5, VOCABULARY) for _ in range(arguments.prompt_tokens)),
            max_tokens=arguments.max_tokens,
            strategy=STRATEGY,
        )
        for _ in range(arguments.rounds)
    ]


async def one_turn(
    model: Path,
    side: str,
    arguments: argparse.Namespace,
    prompts: PromptMaker,
    trial: Trial,
    victim: int,
    right: Mapping[Request, Undisturbed],
) -> Found:
    """Throughput, then the loss, on a cluster that was started for it."""
    load = Load(
        clients=arguments.streams, requests=arguments.streams, prompt_tokens=64, max_tokens=arguments.speed_tokens
    )
    async with cluster(
        model, [WorkerLimits()] * arguments.workers, further={"recovery": {"kv_copies": SIDES[side]}}
    ) as running:
        machine.pin_each(list(running.pids))
        target = Target(name=side, url=running.url, model=running.model, strategy=STRATEGY)
        await warm_up(target, load, prompts)
        found = await run_round(target, load, [prompts.make(load.prompt_tokens) for _ in range(load.requests)])
        status = await until_ready(running, arguments.workers)
        with prepared("killed", status["workers"][victim]["pid"]) as fault:
            outcomes = await run_trial(running, trial, right, lambda: fault.strike().at)
    return Found(throughput=found, victim=victim, outcome=outcomes[0])


async def run(arguments: argparse.Namespace) -> Report:
    """Both sides in alternating turns."""
    model = ensure_model(arguments.model, machine.model_folder())
    requests = long_requests(arguments)
    async with cluster(model, [WorkerLimits()] * arguments.workers) as quiet:
        right = await undisturbed(quiet, requests)
    makers = {side: PromptMaker(arguments.seed, model) for side in SIDES}
    found: dict[str, list[Found]] = {side: [] for side in SIDES}
    for number, order in enumerate(turns(list(SIDES), arguments.rounds)):
        trial = Trial(requests=(requests[number],), moment="decode", share=0.5)
        victim = number % arguments.workers
        for side in order:
            found[side].append(await one_turn(model, side, arguments, makers[side], trial, victim, right))
            last = found[side][-1]
            speed, outcome = last.throughput.tokens_per_s, last.outcome
            print(f"{side}: {speed:.1f} tokens/s; {outcome.verdict}, waited {outcome.wait_s} s", flush=True)
    report = Report("copies")
    report.fact("machine", machine.describe())
    report.fact("model", f"{arguments.model}, random weights; {arguments.workers} workers, {STRATEGY}")
    report.fact("loss", f"SIGKILL half-way through {arguments.max_tokens} tokens, prompt of {arguments.prompt_tokens}")
    _conclude(report, found)
    return report


def _conclude(report: Report, found: dict[str, list[Found]]) -> None:
    pauses = {side: [of.outcome.wait_s for of in of_side] for side, of_side in found.items()}
    rows, bars = [], []
    for side, of_side in found.items():
        known = [pause for pause in pauses[side] if pause is not None]
        shown = [statistics.median(known), min(known), max(known)] if known else [None] * 3
        right = sum(of.outcome.verdict == "right" for of in of_side)
        rows.append([side, len(of_side), right, *shown])
        bars += [Bar(side, statistics.median(known))] if known else []
    report.table("pause after a kill in decode", ["caches", "kills", "right", "pause s", "smallest", "largest"], rows)
    ratio = paired_ratios(pauses[WITH], pauses[WITHOUT])
    if ratio is not None:
        columns = ["ratio", "median", "smallest", "largest"]
        report.table(
            "pause, round by round", columns, [[f"{WITH} / {WITHOUT}", ratio.median, ratio.smallest, ratio.largest]]
        )
    report.check(f"pause with {WITH} / {WITHOUT}", ratio.median if ratio else None, at_most=PAUSE_RATIO)
    rounds = {side: [of.throughput for of in found[side]] for side in (WITH, WITHOUT)}
    add_rounds(report, rounds)
    report.check(f"tokens/s with {WITH} / {WITHOUT}", speed_ratio(rounds, WITH, WITHOUT), at_least=SPEED_RATIO)
    wrong = sum(of.outcome.verdict != "right" for of_side in found.values() for of in of_side)
    report.check("answers that were not right", wrong, at_most=0)
    report.data["turns"] = {side: [msgspec.to_builtins(of) for of in of_side] for side, of_side in found.items()}
    report.figure = bar_chart("Pause after a loss", "s, median", bars)


def options(parser: argparse.ArgumentParser) -> None:
    """What this benchmark takes."""
    parser.add_argument("--model", default="25m-float32", choices=known_models(), metavar="SIZE-FORMAT")
    parser.add_argument("--workers", type=int, default=2)
    parser.add_argument("--rounds", type=int, default=6)
    parser.add_argument("--streams", type=int, default=8, help="of the throughput")
    parser.add_argument("--speed-tokens", type=int, default=128, help="that each of them generates")
    parser.add_argument("--prompt-tokens", type=int, default=2000)
    parser.add_argument("--max-tokens", type=int, default=64)
    parser.add_argument("--seed", type=int, default=0)


if __name__ == "__main__":
    quick = {"rounds": 1, "prompt_tokens": 256, "max_tokens": 16, "streams": 2, "speed_tokens": 16}
    raise SystemExit(main("copies", __doc__, options, run, quick=quick))
