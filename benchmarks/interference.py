"""What a long prompt does to the streams that already run: their ITL while it is prefilled, against undisturbed.

The longest gap is also given in chunks: in the time that the stages take from one chunk of this prompt to the next when
nothing else runs, as the progress reports of its prefill show it.
"""

import argparse
import asyncio
import statistics
import time

import msgspec

from benchmarks.support import machine
from benchmarks.support.arithmetic import chunk_seconds, gaps_within, percentile
from benchmarks.support.client import Answer, Target, checked, stream
from benchmarks.support.contenders import WorkerLimits, tandem
from benchmarks.support.figures import Bar, bar_chart
from benchmarks.support.main import main
from benchmarks.support.prompts import PromptMaker
from benchmarks.support.random_models import ensure_model, known_models
from benchmarks.support.reporting import Report

STREAM_PROMPT_TOKENS = 16
# Before the first gaps count: all streams are prefilled and share the batches.
SETTLING_TOKENS = 8
# The streams are ended when the long prompt has its first token.
MANY_TOKENS = 4096
_POLL_S = 0.01


class Found(msgspec.Struct, frozen=True, kw_only=True):
    """One round. Seconds: gaps of the running streams without and with the prompt; what the prompt itself took."""

    undisturbed: list[float]
    disturbed: list[float]
    chunk_s: float | None
    ttft_alone_s: float
    ttft_s: float


async def one_round(target: Target, prompts: PromptMaker, arguments: argparse.Namespace) -> Found:
    """The long prompt alone, then streams alone, then both. Raises RuntimeError when a request fails."""
    alone = checked(await stream(target, prompts.make(arguments.prompt_tokens), 2))
    running = [Answer(sent_at=0.0) for _ in range(arguments.streams)]
    tasks = [
        asyncio.create_task(stream(target, prompts.make(STREAM_PROMPT_TOKENS), MANY_TOKENS, into=answer))
        for answer in running
    ]
    try:
        while any(len(answer.text_at) <= SETTLING_TOKENS for answer in running):
            [checked(answer) for answer in running]
            await asyncio.sleep(_POLL_S)
        settled = time.perf_counter()
        await asyncio.sleep(arguments.undisturbed_s)
        late = checked(await stream(target, prompts.make(arguments.prompt_tokens), 2))
    finally:
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
    assert alone.ttft_s is not None
    assert late.ttft_s is not None
    began, ended = late.sent_at, late.text_at[0]
    return Found(
        undisturbed=[gap for answer in running for gap in gaps_within(answer.text_at, settled, began)],
        disturbed=[gap for answer in running for gap in gaps_within(answer.text_at, began, ended)],
        chunk_s=chunk_seconds([(alone.sent_at, 0), *alone.progress_at]),
        ttft_alone_s=alone.ttft_s,
        ttft_s=late.ttft_s,
    )


async def run(arguments: argparse.Namespace) -> Report:
    """All rounds on one cluster."""
    model = ensure_model(arguments.model, machine.model_folder())
    report = Report("interference")
    report.fact("machine", machine.describe())
    report.fact("model", f"{arguments.model}, random weights; {arguments.stages} stages")
    prompts = PromptMaker(0, model)
    async with tandem("Tandem", model, [WorkerLimits()] * arguments.stages, "distributed-cached") as cluster:
        report.fact("Tandem", f"BLAS: {cluster.blas}; cores: {cluster.pinned}")
        found = [await one_round(cluster.target, prompts, arguments) for _ in range(arguments.rounds + 1)]
    _conclude(report, found[1:], arguments)
    return report


def _conclude(report: Report, found: list[Found], arguments: argparse.Namespace) -> None:
    rows, ratios, waits = [], [], []
    for number, of_round in enumerate(found, 1):
        median, p99 = statistics.median(of_round.undisturbed), percentile(of_round.disturbed, 0.99)
        longest = max(of_round.disturbed)
        ratios.append(p99 / median)
        in_chunks = longest / of_round.chunk_s if of_round.chunk_s else None
        waits += [] if in_chunks is None else [in_chunks]
        chunk_ms = of_round.chunk_s * 1000 if of_round.chunk_s else None
        times = [value * 1000 for value in (median, statistics.median(of_round.disturbed), p99, longest)]
        rows.append([f"{number}", *times, p99 / median, chunk_ms, in_chunks, of_round.ttft_alone_s, of_round.ttft_s])
    columns = ["round", "ITL ms, alone", "with the prompt", "p99", "longest", "p99 / alone"]
    columns += ["chunk ms", "longest, chunks", "TTFT s, alone", "among streams"]
    report.table(f"{arguments.streams} streams and a prompt of {arguments.prompt_tokens} tokens", columns, rows)
    report.check("p99 of ITL with the prompt / median alone", statistics.median(ratios), at_most=4.0)
    report.check("longest wait in chunks", statistics.median(waits) if waits else None, at_most=2.0)
    report.data["rounds"] = [msgspec.to_builtins(of_round) for of_round in found]
    everything = [value * 1000 for of_round in found for value in of_round.disturbed]
    alone = [value * 1000 for of_round in found for value in of_round.undisturbed]
    bars = [
        Bar("alone, median", statistics.median(alone)),
        Bar("alone, p99", percentile(alone, 0.99)),
        Bar("with the prompt, median", statistics.median(everything), 1),
        Bar("with the prompt, p99", percentile(everything, 0.99), 1),
        Bar("with the prompt, longest", max(everything), 1),
    ]
    report.figure = bar_chart(f"ITL of {arguments.streams} streams", "ms", bars)


def options(parser: argparse.ArgumentParser) -> None:
    """What this benchmark takes."""
    parser.add_argument("--model", default="160m-float32", choices=known_models(), metavar="SIZE-FORMAT")
    parser.add_argument("--stages", type=int, default=2)
    parser.add_argument("--streams", type=int, default=4)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--prompt-tokens", type=int, default=2048)
    parser.add_argument("--undisturbed-s", type=float, default=8.0)


if __name__ == "__main__":
    raise SystemExit(main("interference", __doc__, options, run, quick={"rounds": 1, "undisturbed_s": 2.0}))
