"""One stream over two stages beside mlx-lm's own loop in one process: decode speed, and TTFT of a long prompt.

Alternating rounds with the same prompts; each computing process has a core. Tandem's figures are taken at its HTTP
client, so they include everything that a user waits for.
"""

import argparse
from collections.abc import Callable

import msgspec
from tokenizers import Tokenizer

from benchmarks.support import machine
from benchmarks.support.arithmetic import paired_ratios, summarize
from benchmarks.support.client import Target, stream
from benchmarks.support.contenders import WorkerLimits, tandem
from benchmarks.support.figures import Bar, bar_chart
from benchmarks.support.main import main
from benchmarks.support.prompts import PromptMaker
from benchmarks.support.random_models import ensure_model, known_models
from benchmarks.support.reference import Reference, Timing, reference
from benchmarks.support.reporting import Report

SIDES = ("Tandem", "mlx-lm")
DECODE_PROMPT_TOKENS = 32


class Measured(msgspec.Struct, frozen=True, kw_only=True):
    """Of every round: decode tokens per second after a short prompt, seconds to the first token after a long one."""

    decode_per_s: list[float]
    ttft_s: list[float]


async def run(arguments: argparse.Namespace) -> Report:
    """Measure both sides in turn. Raises RuntimeError when one fails."""
    model = ensure_model(arguments.model, machine.model_folder())
    tokenizer = Tokenizer.from_file(str(model / "tokenizer.json"))
    report = Report("decode")
    report.fact("machine", machine.describe())
    report.fact("model", f"{arguments.model}, random weights; {arguments.stages} stages")
    async with (
        tandem("Tandem", model, [WorkerLimits()] * arguments.stages, "distributed-cached") as cluster,
        reference(model, 0) as other,
    ):
        report.fact("Tandem", f"BLAS: {cluster.blas}; cores: {cluster.pinned}")
        report.fact("mlx-lm", f"BLAS: {other.blas}; one process on one core")
        found = await _rounds(
            arguments, cluster.target, other, lambda text: tokenizer.encode(text).ids, PromptMaker(0, model)
        )
    _conclude(report, found, arguments)
    return report


async def _rounds(
    arguments: argparse.Namespace,
    target: Target,
    other: Reference,
    encode: Callable[[str], list[int]],
    prompts: PromptMaker,
) -> dict[str, Measured]:
    found = {name: Measured(decode_per_s=[], ttft_s=[]) for name in SIDES}
    for number in range(arguments.rounds + 1):
        for prompt_tokens, max_tokens in ((DECODE_PROMPT_TOKENS, arguments.max_tokens), (arguments.prompt_tokens, 2)):
            prompt = prompts.make(prompt_tokens)
            for name in SIDES if number % 2 else reversed(SIDES):
                if name == "Tandem":
                    timing = await _through_cluster(target, prompt, max_tokens)
                else:
                    timing = await other.generate(encode(prompt), max_tokens)
                if number == 0:
                    continue  # the first round warms both up
                if prompt_tokens == arguments.prompt_tokens:
                    found[name].ttft_s.append(timing.ttft_s)
                else:
                    found[name].decode_per_s.append((max_tokens - 1) / timing.decode_s)
    return found


async def _through_cluster(target: Target, prompt: str, max_tokens: int) -> Timing:
    answer = await stream(target, prompt, max_tokens)
    if answer.error is not None or answer.num_tokens != max_tokens:
        raise RuntimeError(f"Tandem: {answer.error or f'{answer.num_tokens} tokens instead of {max_tokens}'}")
    return Timing(ttft_s=answer.text_at[0] - answer.sent_at, decode_s=answer.text_at[-1] - answer.text_at[0])


def _conclude(report: Report, found: dict[str, Measured], arguments: argparse.Namespace) -> None:
    ours, theirs = (found[name] for name in SIDES)
    rows, bars = [], []
    for name, measured in found.items():
        speed, ttft = summarize(measured.decode_per_s), summarize(measured.ttft_s)
        assert speed is not None
        assert ttft is not None
        rows.append([name, speed.median, speed.smallest, speed.largest, ttft.median, ttft.smallest, ttft.largest])
        bars += [Bar(f"{name}, decode tokens/s", speed.median), Bar(f"{name}, TTFT in s", ttft.median, 1)]
        report.data[name] = msgspec.to_builtins(measured)
    columns = ["one stream", "decode tokens/s", "smallest", "largest", "TTFT s", "smallest", "largest"]
    report.table(f"decode of {arguments.max_tokens} tokens; TTFT of {arguments.prompt_tokens}", columns, rows)
    decode, ttft = paired_ratios(ours.decode_per_s, theirs.decode_per_s), paired_ratios(ours.ttft_s, theirs.ttft_s)
    ratios = [
        [what, of.median, of.smallest, of.largest]
        for what, of in (("decode", decode), ("TTFT", ttft))
        if of is not None
    ]
    report.table("Tandem / mlx-lm, round by round", ["ratio", "median", "smallest", "largest"], ratios)
    report.check("decode speed over mlx-lm's loop", decode.median if decode else None, at_least=0.95)
    report.check(f"TTFT of {arguments.prompt_tokens} tokens over mlx-lm's", ttft.median if ttft else None, at_most=0.6)
    report.figure = bar_chart("One stream", "tokens per second, seconds", bars)


def options(parser: argparse.ArgumentParser) -> None:
    """What this benchmark takes."""
    parser.add_argument("--model", default="160m-float32", choices=known_models(), metavar="SIZE-FORMAT")
    parser.add_argument("--stages", type=int, default=2)
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--max-tokens", type=int, default=48)
    parser.add_argument("--prompt-tokens", type=int, default=2048)


if __name__ == "__main__":
    raise SystemExit(main("decode", __doc__, options, run, quick={"rounds": 1, "max_tokens": 8, "prompt_tokens": 256}))
