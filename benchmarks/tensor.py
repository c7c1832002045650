"""Workers that compute every layer together, beside one of them alone: decode and reading of one stream, and all tokens of several.

The one that is alone is a cluster by itself; each worker has a core, at rest while the other side runs. They take turns, and ratios
are taken round by round. With --rival also mlx-lm's own tensor parallelism over the ring, as many ranks, started for each round. Every prompt is another one, so that nobody finds its beginning. For some prompts the ids of both are compared.
"""

import argparse
import asyncio
from importlib.metadata import version
from pathlib import Path

import msgspec

from benchmarks.support import machine
from benchmarks.support.arithmetic import paired_ratios, summarize
from benchmarks.support.client import Target, get_json
from benchmarks.support.contenders import WorkerLimits, tandem
from benchmarks.support.figures import Bar, bar_chart
from benchmarks.support.main import main
from benchmarks.support.prompts import PromptMaker
from benchmarks.support.random_models import ensure_model, known_models
from benchmarks.support.reporting import Report
from benchmarks.support.ring_ranks import OneStream, one_stream
from benchmarks.support.two_strategies import SETTLE_S, asked, num_same

TOGETHER, ALONE, RIVAL = "tensor-parallel", "single-device-cached", "mlx-lm, ring"
SIDES = (TOGETHER, ALONE)
# Of issue and design: what two ranks have to be over one process. By size and format: decode of one stream, all of eight.
DECODE_AT_LEAST = {"25m-float32": 1.4, "25m-bfloat16": 1.5, "160m-float32": 1.65}
STREAMS_AT_LEAST = {"25m-float32": 1.3, "160m-float32": 1.3}
PREFILL_AT_LEAST = 1.5


class Measured(msgspec.Struct, frozen=True, kw_only=True):
    """Of every round: tokens a second read and generated for one stream, generated for several at once."""

    read_per_s: list[float]
    decode_per_s: list[float]
    streams_per_s: list[float]


async def run(arguments: argparse.Namespace) -> Report:
    """Measure both sides in turn. Raises RuntimeError when a request fails."""
    model = ensure_model(arguments.model, machine.model_folder())
    report = Report("tensor")
    report.fact("machine", machine.describe())
    report.fact("model", f"{arguments.model}, random weights; {arguments.workers} ranks")
    prompts = PromptMaker(0, model)
    ranks = [WorkerLimits(is_rank=True, transport=arguments.transport)] * arguments.workers
    async with (
        tandem("Tandem", model, ranks, prefix=False) as cluster,
        tandem("one worker", model, [WorkerLimits()], prefix=False) as single,
    ):
        report.fact("Tandem", f"BLAS: {cluster.blas}; cores: {cluster.pinned}")
        sums = (await get_json(cluster.target.url, "/status"))["groups"][0]["sums"]
        report.fact("a sum", f"over {sums['transport']} {sums['us']:.0f} us, {sums['per_token']} of them a token")
        targets = {TOGETHER: cluster.target, ALONE: single.target}
        found, rival = await _rounds(targets, prompts, arguments, model)
        same = await num_same(cluster.target, SIDES, prompts, arguments)
        idle = await machine.idle_shares(list(cluster.pids), arguments.idle_s)
    _conclude(report, found, arguments)
    if rival:
        _conclude_rival(report, found[TOGETHER], rival)
    report.check(f"prompts of {arguments.prompts} with the same ids", same, at_least=arguments.prompts)
    report.check("share of a core that an idle rank takes", max(idle), at_most=0.02)
    return report


async def _rounds(
    targets: dict[str, Target], prompts: PromptMaker, arguments: argparse.Namespace, model: Path
) -> tuple[dict[str, Measured], list[OneStream]]:
    """Of both strategies; of the rival where it is asked for."""
    rival: list[OneStream] = []
    found = {side: Measured(read_per_s=[], decode_per_s=[], streams_per_s=[]) for side in SIDES}
    for number in range(arguments.rounds + 1):
        for side in SIDES if number % 2 else reversed(SIDES):
            long = await asked(targets[side], side, prompts.make(arguments.prompt_tokens), arguments)
            together = await asyncio.gather(
                *(asked(targets[side], side, prompts.make(16), arguments) for _ in range(arguments.streams))
            )
            await asyncio.sleep(SETTLE_S)
            if number:  # the first round warms up
                found[side].read_per_s.append(arguments.prompt_tokens / (long.text_at[0] - long.sent_at))
                found[side].decode_per_s.append((long.num_tokens - 1) / (long.text_at[-1] - long.text_at[0]))
                begun, ended = max(each.text_at[0] for each in together), min(each.text_at[-1] for each in together)
                within = sum(begun < at <= ended for each in together for at in each.text_at)
                found[side].streams_per_s.append(within / (ended - begun))
        if number and arguments.rival:
            rival.append(await one_stream(model, arguments.workers, arguments.prompt_tokens, arguments.max_tokens))
    return found, rival


def _conclude(report: Report, found: dict[str, Measured], arguments: argparse.Namespace) -> None:
    whats = {
        "read": f"a prompt of {arguments.prompt_tokens} tokens, tokens/s",
        "decode": f"one stream, {arguments.max_tokens} generated, tokens/s",
        "streams": f"{arguments.streams} streams at once, tokens/s",
    }
    limits = {
        "read": PREFILL_AT_LEAST,
        "decode": DECODE_AT_LEAST.get(arguments.model),
        "streams": STREAMS_AT_LEAST.get(arguments.model),
    }
    rows, ratios, bars = [], [], []
    for what, said in whats.items():
        sides = {side: getattr(measured, f"{what}_per_s") for side, measured in found.items()}
        for side, values in sides.items():
            summary = summarize(values)
            assert summary is not None
            rows.append([said, side, summary.median, summary.smallest, summary.largest])
            report.data.setdefault(side, {})[what] = values
        ratio = paired_ratios(sides[TOGETHER], sides[ALONE])
        assert ratio is not None
        ratios.append([said, ratio.median, ratio.smallest, ratio.largest])
        bars.append(Bar(what, ratio.median))
        if arguments.workers == 2 and limits[what] is not None:
            report.check(f"{said}: together over alone", ratio.median, at_least=limits[what])
    report.table("both strategies", ["what", "strategy", "median", "smallest", "largest"], rows)
    report.table(f"{TOGETHER} / {ALONE}, round by round", ["ratio", "median", "smallest", "largest"], ratios)
    report.figure = bar_chart(f"{arguments.workers} ranks over one worker", "times as many tokens a second", bars)


def _conclude_rival(report: Report, ours: Measured, rival: list[OneStream]) -> None:
    versions = ", ".join(f"{name} {version(name)}" for name in ("mlx", "mlx-lm"))
    report.fact(RIVAL, f"{versions}; its own loop without a server, one stream, each rank on a core")
    rows = []
    for what in ("read_per_s", "decode_per_s"):
        theirs = [getattr(each, what) for each in rival]
        summary, ratio = summarize(theirs), paired_ratios(getattr(ours, what), theirs)
        assert summary is not None
        assert ratio is not None
        rows.append([what, summary.median, summary.smallest, summary.largest, ratio.median])
        report.data.setdefault(RIVAL, {})[what] = theirs
        report.check(f"{what}: {TOGETHER} over {RIVAL}", ratio.median, at_least=1.0)
    report.table(f"{RIVAL}, tokens/s", ["what", "median", "smallest", "largest", f"{TOGETHER} over it"], rows)


def options(parser: argparse.ArgumentParser) -> None:
    """What this benchmark takes."""
    parser.add_argument("--model", default="25m-float32", choices=known_models(), metavar="SIZE-FORMAT")
    parser.add_argument("--workers", type=int, default=2)
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--prompts", type=int, default=4, help="whose ids are compared")
    parser.add_argument("--prompt-tokens", type=int, default=1024)
    parser.add_argument("--max-tokens", type=int, default=64)
    parser.add_argument("--streams", type=int, default=8)
    parser.add_argument(
        "--transport", default="tcp", choices=["tcp", "ring", "jaccl"], help="of what the ranks exchange"
    )
    parser.add_argument("--rival", action="store_true", help="beside it mlx-lm's own tensor parallelism over the ring")
    parser.add_argument("--idle-s", type=float, default=10.0, help="for how long idle ranks are watched")


if __name__ == "__main__":
    quick = {"rounds": 1, "prompts": 1, "prompt_tokens": 128, "max_tokens": 8, "streams": 2, "idle_s": 1.0}
    raise SystemExit(main("tensor", __doc__, options, run, quick=quick))
