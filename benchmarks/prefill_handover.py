"""A long prompt that all stages read for one worker, beside that worker alone: TTFT and decode speed.

Both strategies on one cluster, which keeps what it reads as by default; every prompt is another one, so that nobody finds
its beginning. What is kept would also make the ids of a prompt asked twice those of the first time: they are compared on
a second cluster, which keeps nothing.
"""

import argparse
import asyncio

import msgspec

from benchmarks.support import machine
from benchmarks.support.arithmetic import paired_ratios, summarize
from benchmarks.support.client import Target
from benchmarks.support.contenders import WorkerLimits, tandem
from benchmarks.support.figures import Bar, bar_chart
from benchmarks.support.main import main
from benchmarks.support.prompts import PromptMaker
from benchmarks.support.random_models import ensure_model, known_models
from benchmarks.support.reporting import Report
from benchmarks.support.two_strategies import SETTLE_S, asked, num_same

TOGETHER, ALONE = "distributed-prefill", "single-device-cached"
SIDES = (TOGETHER, ALONE)


class Measured(msgspec.Struct, frozen=True, kw_only=True):
    """Of every round, both at the same prompt length."""

    ttft_s: list[float]
    decode_per_s: list[float]


async def run(arguments: argparse.Namespace) -> Report:
    """Measure both sides in turn. Raises RuntimeError when a request fails."""
    model = ensure_model(arguments.model, machine.model_folder())
    report = Report("prefill-handover")
    report.fact("machine", machine.describe())
    report.fact("model", f"{arguments.model}, random weights; {arguments.workers} workers")
    prompts = PromptMaker(0, model)
    limits = [WorkerLimits()] * arguments.workers
    async with tandem("Tandem", model, limits) as cluster:
        report.fact("Tandem", f"BLAS: {cluster.blas}; cores: {cluster.pinned}")
        found = await _rounds(cluster.target, prompts, arguments)
    async with tandem("Tandem", model, limits, prefix=False) as cluster:
        same = await num_same(cluster.target, SIDES, prompts, arguments)
    _conclude(report, found, same, arguments)
    return report


async def _rounds(target: Target, prompts: PromptMaker, arguments: argparse.Namespace) -> dict[str, Measured]:
    found = {side: Measured(ttft_s=[], decode_per_s=[]) for side in SIDES}
    for number in range(arguments.rounds + 1):
        for side in SIDES if number % 2 else reversed(SIDES):
            answer = await asked(target, side, prompts.make(arguments.prompt_tokens), arguments)
            await asyncio.sleep(SETTLE_S)
            if number:  # the first round warms up
                found[side].ttft_s.append(answer.text_at[0] - answer.sent_at)
                found[side].decode_per_s.append((answer.num_tokens - 1) / (answer.text_at[-1] - answer.text_at[0]))
    return found


def _conclude(report: Report, found: dict[str, Measured], same: int, arguments: argparse.Namespace) -> None:
    rows, bars = [], []
    for side, measured in found.items():
        ttft, speed = summarize(measured.ttft_s), summarize(measured.decode_per_s)
        assert ttft is not None
        assert speed is not None
        rows.append([side, ttft.median, ttft.smallest, ttft.largest, speed.median, speed.smallest, speed.largest])
        bars += [Bar(f"{side}, TTFT in s", ttft.median), Bar(f"{side}, decode in 100 tokens/s", speed.median / 100, 1)]
        report.data[side] = msgspec.to_builtins(measured)
    columns = ["strategy", "TTFT s", "smallest", "largest", "decode tokens/s", "smallest", "largest"]
    report.table(f"a prompt of {arguments.prompt_tokens} tokens, {arguments.max_tokens} generated", columns, rows)
    together, alone = found[TOGETHER], found[ALONE]
    ttft, speed = (
        paired_ratios(together.ttft_s, alone.ttft_s),
        paired_ratios(together.decode_per_s, alone.decode_per_s),
    )
    ratios = [[what, of.median, of.smallest, of.largest] for what, of in (("TTFT", ttft), ("decode", speed)) if of]
    report.table(f"{TOGETHER} / {ALONE}, round by round", ["ratio", "median", "smallest", "largest"], ratios)
    report.check("TTFT over that of one worker", ttft.median if ttft else None, at_most=0.6)
    report.check("decode speed over that of one worker", speed.median if speed else None, at_least=0.97)
    report.check(f"prompts of {arguments.prompts} with the same ids", same, at_least=arguments.prompts)
    report.figure = bar_chart("A prompt read by all for one", "seconds, hundreds of tokens per second", bars)


def options(parser: argparse.ArgumentParser) -> None:
    """What this benchmark takes."""
    parser.add_argument("--model", default="25m-float32", choices=known_models(), metavar="SIZE-FORMAT")
    parser.add_argument("--workers", type=int, default=2)
    parser.add_argument("--rounds", type=int, default=12)
    parser.add_argument("--prompts", type=int, default=4, help="whose ids are compared")
    parser.add_argument("--prompt-tokens", type=int, default=2048)
    parser.add_argument("--max-tokens", type=int, default=96)


if __name__ == "__main__":
    quick = {"rounds": 1, "prompts": 1, "prompt_tokens": 256, "max_tokens": 8}
    raise SystemExit(main("prefill-handover", __doc__, options, run, quick=quick))
