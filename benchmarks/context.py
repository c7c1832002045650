"""Time per token against the length of the context, with and without a KV cache, as one figure.

With caches a token costs nearly the same at any length; without them each token recomputes everything before it, so that
its time grows with the length, and that of a whole answer with the length's square.
"""

import argparse
import statistics

from benchmarks.support import machine
from benchmarks.support.arithmetic import gaps
from benchmarks.support.client import Target, stream
from benchmarks.support.contenders import WorkerLimits, tandem
from benchmarks.support.figures import Line, line_chart
from benchmarks.support.main import main
from benchmarks.support.prompts import PromptMaker
from benchmarks.support.random_models import ensure_model, known_models
from benchmarks.support.reporting import Report

# Strategy: tokens to generate at each length, the first of which does not count.
STRATEGIES = {"single-device-cached": 17, "distributed-cached": 17, "distributed-no-cache": 4}
LENGTHS = (64, 128, 256, 512, 1024, 2048, 4096)


async def run(arguments: argparse.Namespace) -> Report:
    """Every strategy at every length. Raises RuntimeError when a request fails."""
    model = ensure_model(arguments.model, machine.model_folder())
    lengths = [length for length in LENGTHS if length <= arguments.longest]
    report = Report("context")
    report.fact("machine", machine.describe())
    report.fact("model", f"{arguments.model}, random weights; two workers")
    found: dict[str, dict[int, float]] = {strategy: {} for strategy in STRATEGIES}
    prompts = PromptMaker(0, model)
    async with tandem("Tandem", model, [WorkerLimits()] * 2) as cluster:
        report.fact("Tandem", f"BLAS: {cluster.blas}; cores: {cluster.pinned}")
        for strategy, max_tokens in STRATEGIES.items():
            await _seconds_per_token(cluster.target, strategy, prompts.make(lengths[0]), max_tokens)
            for length in lengths:
                times = [
                    await _seconds_per_token(cluster.target, strategy, prompts.make(length), max_tokens)
                    for _ in range(arguments.rounds)
                ]
                found[strategy][length] = statistics.median(times)
    _conclude(report, found, lengths)
    return report


async def _seconds_per_token(target: Target, strategy: str, prompt: str, max_tokens: int) -> float:
    asked = Target(name=target.name, url=target.url, model=target.model, strategy=strategy)
    answer = await stream(asked, prompt, max_tokens)
    if answer.error is not None:
        raise RuntimeError(f"{strategy}: {answer.error}")
    return statistics.median(gaps(answer.text_at))


def _conclude(report: Report, found: dict[str, dict[int, float]], lengths: list[int]) -> None:
    rows = [[length, *(found[strategy][length] * 1000 for strategy in STRATEGIES)] for length in lengths]
    report.table("milliseconds per token", ["context, tokens", *STRATEGIES], rows)
    growth = lengths[-1] / lengths[0]
    report.table(
        f"growth from {lengths[0]} to {lengths[-1]} tokens of context, which is {growth:.0f} times as long",
        ["strategy", "time per token, times"],
        [[strategy, times[lengths[-1]] / times[lengths[0]]] for strategy, times in found.items()],
    )
    report.data["seconds_per_token"] = {
        name: {str(key): value for key, value in of.items()} for name, of in found.items()
    }
    lines = [
        Line(name, tuple((float(length), value * 1000) for length, value in of.items())) for name, of in found.items()
    ]
    report.figure = line_chart("Time per token", "tokens of context", "milliseconds per token", lines)


def options(parser: argparse.ArgumentParser) -> None:
    """What this benchmark takes."""
    parser.add_argument("--model", default="25m-float32", choices=known_models(), metavar="SIZE-FORMAT")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--longest", type=int, default=LENGTHS[-1], metavar="TOKENS")


if __name__ == "__main__":
    raise SystemExit(main("context", __doc__, options, run, quick={"rounds": 1, "longest": 256}))
