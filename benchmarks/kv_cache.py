"""For which lengths a KV cache pays: generation with and without one, on one device and through a cluster.

    ./launch.sh bench kv-cache                     the bundled model on one device, in this process
    ./launch.sh bench kv-cache --distributed       and over two workers of a cluster of its own
    ./launch.sh bench kv-cache --kinds             and every kind of cache beside the dynamic one, 400 tokens each

The range in which a cache pays is kept under TANDEM_HOME, where `kv_cache.adaptive = true` finds it.
"""

import argparse
import asyncio
import os
import random
import statistics
import sys
from collections.abc import Callable, Sequence
from pathlib import Path

import mlx.core as mx
import msgspec

from benchmarks.support import machine
from benchmarks.support.arithmetic import turns
from benchmarks.support.completions import complete
from benchmarks.support.contenders import WorkerLimits, tandem
from benchmarks.support.figures import Line, line_chart
from benchmarks.support.main import main
from benchmarks.support.one_device import Generated, OneDevice
from benchmarks.support.random_models import ensure_model, known_models
from benchmarks.support.reporting import Report
from cluster.config import BUNDLED_MODEL
from cluster.membership.local import find_openblas, worker_environment
from cluster.planning.model_files import read_config
from cluster.serving.cache_use import write_measured_use
from strategy.cache_use import MeasuredUse, PayingRange, paying_range

LENGTHS = (5, 10, 20, 30, 50, 80, 120, 200, 400)
COUNTED_PROMPT, COUNTED_ANSWER = 50, 100
KINDS_TOKENS = 400
WITHOUT, WITH = "no cache", "with cache"
_ENOUGH_S = 1.0
# Two runs of the very same code differ by as much on a machine that does other things too.
_NOISE = 0.98

Generate = Callable[[Sequence[int], int, bool], Generated]


class Row(msgspec.Struct, frozen=True, kw_only=True):
    """Medians at one length. same: both gave the same tokens."""

    length: int
    without_s: float
    with_s: float
    same: bool

    @property
    def speedup(self) -> float:
        return self.without_s / self.with_s


def measure(generate: Generate, prompt: Sequence[int], lengths: Sequence[int], rounds: int) -> list[Row]:
    """Both ways at every length, in turn. The first, uncounted round warms up."""
    for cached in (False, True):
        generate(prompt, min(lengths), cached)
    return [_measure_length(generate, prompt, length, rounds) for length in lengths]


def _measure_length(generate: Generate, prompt: Sequence[int], length: int, rounds: int) -> Row:
    seconds: dict[str, list[float]] = {WITHOUT: [], WITH: []}
    tokens: dict[str, tuple[int, ...]] = {}
    for order in turns([WITHOUT, WITH], rounds):
        for name in order:
            found = generate(prompt, length, name == WITH)
            seconds[name].append(found.seconds)
            tokens[name] = found.tokens
        if sum(seconds[WITHOUT]) > _ENOUGH_S * rounds:
            break
    without, cached = (statistics.median(seconds[name]) for name in (WITHOUT, WITH))
    return Row(length=length, without_s=without, with_s=cached, same=tokens[WITHOUT] == tokens[WITH])


def add_rows(report: Report, title: str, rows: list[Row]) -> None:
    """The table of one way of running, and the check that a cache changed no token."""
    table = [
        [
            row.length,
            f"{row.without_s * 1000:.1f} ms",
            f"{row.with_s * 1000:.1f} ms",
            f"{row.speedup:.2f}x",
            f"{(row.without_s - row.with_s) * 1000:.1f} ms",
            "yes" if row.speedup > 1 else "no",
        ]
        for row in rows
    ]
    columns = ["Length", "No cache", "With cache", "Speedup", "Time saved", "Beneficial?"]
    report.table(f"{title}: a cache pays {_range(rows)}", columns, table)
    report.check(f"{title}: lengths with the same tokens both ways", sum(row.same for row in rows), at_least=len(rows))
    report.data[title] = msgspec.to_builtins(rows)


def count_positions(report: Report, device: OneDevice, prompt: Sequence[int]) -> None:
    """How many token positions pass through the model, by counting, and what that means in time."""
    without = device.generate(prompt, COUNTED_ANSWER, cached=False)
    cached = device.generate(prompt, COUNTED_ANSWER, cached=True, keep_last=True)
    columns = [f"{len(prompt)} prompt + {COUNTED_ANSWER} generated tokens", "token positions", "seconds"]
    rows = [[WITHOUT, without.positions, without.seconds], [WITH, cached.positions, cached.seconds]]
    ratios = ["ratio", without.positions / cached.positions, without.seconds / cached.seconds]
    report.table("positions computed, counted", columns, [*rows, ratios])
    expected = len(prompt) + COUNTED_ANSWER
    report.check("positions computed with a cache", cached.positions, at_most=expected)


def compare_kinds(report: Report, device: OneDevice, prompt: Sequence[int], rounds: int) -> None:
    """Every kind that the model allows, beside the dynamic one in the same round: tokens for a second of processor time.

    With a GPU, where that time says little, seconds as they pass count.
    """
    seconds_of = (lambda found: found.seconds) if mx.metal.is_available() else (lambda found: found.cpu_s)
    rows = []
    for kind, settings in device.kinds(len(prompt) + KINDS_TOKENS).items():
        if reason := device.why_not(settings):
            rows.append([kind, None, None, None, reason])
            continue
        speeds: dict[str, list[float]] = {"dynamic": [], kind: []}
        num_bytes = 0
        for order in turns(list(speeds), rounds):
            for name in order:
                used = settings if name == kind else None
                found = device.generate(prompt, KINDS_TOKENS, cached=True, settings=used)
                speeds[name].append(KINDS_TOKENS / seconds_of(found))
                num_bytes = found.cache_bytes if name == kind else num_bytes
        ratio = statistics.median(a / b for a, b in zip(speeds[kind], speeds["dynamic"], strict=True))
        rows.append([kind, statistics.median(speeds[kind]), ratio, f"{num_bytes:,}", ""])
        if kind == "static":
            report.check("static over dynamic, tokens per second", ratio, at_least=_NOISE)
    columns = ["kind", "tokens/s", "over dynamic", "bytes", "refused because"]
    report.table(f"{KINDS_TOKENS} tokens after {len(prompt)}", columns, rows)


async def measure_cluster(
    model: Path, prompt: Sequence[int], lengths: Sequence[int], rounds: int, ends: list[int]
) -> list[Row]:
    """Distributed over two workers, without and with caches, at the cluster's HTTP client."""
    async with tandem("Tandem", model, [WorkerLimits()] * 2, prefix=False) as cluster:

        def generate(ids: Sequence[int], length: int, cached: bool) -> Generated:  # noqa: FBT001
            strategy = "distributed-cached" if cached else "distributed-no-cache"
            return complete(cluster.target.url, ids, length, strategy, ends)

        return await asyncio.to_thread(measure, generate, prompt, lengths, rounds)


def run(arguments: argparse.Namespace) -> Report:
    """Everything that was asked for. Raises RuntimeError when a cluster fails."""
    _with_same_blas_as_workers()
    model = _model(arguments.model)
    lengths, rounds = arguments.lengths, arguments.rounds
    report = Report("kv-cache")
    report.fact("machine", f"{machine.describe()}; BLAS: {machine.blas_of(os.getpid())}")
    report.fact("model", f"{arguments.model}; prompt of {arguments.prompt_tokens} tokens")
    device = OneDevice(model)
    prompt = _random_prompt(arguments.prompt_tokens, device.vocabulary)
    rows = measure(lambda ids, length, cached: device.generate(ids, length, cached=cached), prompt, lengths, rounds)
    lines = _add(report, "one device", rows)
    count_positions(report, device, _random_prompt(COUNTED_PROMPT, device.vocabulary))
    if arguments.kinds:
        compare_kinds(report, device, prompt, rounds)
    use = MeasuredUse(machine=machine.describe(), prompt_tokens=len(prompt), single_device=_range(rows))
    if arguments.distributed:
        ends = _end_tokens(model)
        distributed = asyncio.run(measure_cluster(model, prompt, lengths, rounds, ends))
        lines += _add(report, "two stages", distributed)
        use = msgspec.structs.replace(use, distributed=_range(distributed))
    home = machine.home()
    kept = write_measured_use(home, model, use).relative_to(home.root)
    report.fact("kept in", f"TANDEM_HOME/{kept.as_posix()}")
    report.figure = line_chart("Generation with and without a KV cache", "tokens generated", "seconds", lines)
    return report


def _add(report: Report, title: str, rows: list[Row]) -> list[Line]:
    add_rows(report, title, rows)
    return [
        Line(f"{title}, {WITHOUT}", tuple((row.length, row.without_s) for row in rows)),
        Line(f"{title}, {WITH}", tuple((row.length, row.with_s) for row in rows)),
    ]


def _range(rows: list[Row]) -> PayingRange:
    return paying_range({row.length: row.speedup for row in rows})


def _model(name: str) -> Path:
    if name == "bundled":
        return machine.CHECKOUT / BUNDLED_MODEL
    return ensure_model(name, machine.model_folder()) if name in known_models() else Path(name).absolute()


def _random_prompt(num_tokens: int, vocabulary: int) -> list[int]:
    generator = random.Random(num_tokens)
    return [generator.randrange(5, vocabulary) for _ in range(num_tokens)]


def _end_tokens(model: Path) -> list[int]:
    ends = read_config(model).get("eos_token_id")
    return ends if isinstance(ends, list) else [ends] if isinstance(ends, int) else []


def _with_same_blas_as_workers() -> None:
    """Starts over with OpenBLAS preloaded where workers would have it: it cannot be loaded later."""
    library = find_openblas()
    if library is not None and library not in os.environ.get("LD_PRELOAD", ""):
        command = [sys.executable, "-P", "-m", "benchmarks.kv_cache", *sys.argv[1:]]
        os.execve(sys.executable, command, worker_environment())  # noqa: S606 - no shell is wanted


def options(parser: argparse.ArgumentParser) -> None:
    """What this benchmark takes."""
    parser.add_argument("--model", default="bundled", help="bundled, SIZE-FORMAT of a random one, or a directory")
    parser.add_argument("--lengths", type=int, nargs="+", default=list(LENGTHS), metavar="TOKENS")
    parser.add_argument("--prompt-tokens", type=int, default=16)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--distributed", action="store_true", help="also over two workers of a cluster of its own")
    parser.add_argument("--kinds", action="store_true", help="also every kind of cache")


if __name__ == "__main__":
    raise SystemExit(main("kv-cache", __doc__, options, run, quick={"lengths": LENGTHS[:3], "rounds": 1}))
