"""This checkout beside another one of the same project: is anything slower than it was?

Both run as clusters of their own on the same model, at the same time; while one is measured the other has nothing to do.
They take turns within seconds, so that whatever else the machine does falls on both alike, and ratios are taken round by
round. The packages are this environment's for both.
"""

import argparse
import asyncio
import contextlib
import statistics
import time
from collections.abc import Awaitable, Callable
from pathlib import Path

import msgspec

from benchmarks.support import machine
from benchmarks.support.arithmetic import gaps, paired_ratios, turns
from benchmarks.support.client import Answer, Target, checked, stream
from benchmarks.support.contenders import Cluster, WorkerLimits, cluster
from benchmarks.support.figures import Bar, bar_chart
from benchmarks.support.main import main
from benchmarks.support.prompts import PromptMaker
from benchmarks.support.random_models import ensure_model, known_models
from benchmarks.support.reporting import Report
from benchmarks.support.trials import until_ready
from protocol.errors import UsageError

HERE, OTHER = "this checkout", "the other"
LEAST_RATIO = 0.97
STREAMS = 8
_TURN_TOKENS = 24


class Side(msgspec.Struct, frozen=True, kw_only=True):
    """A running cluster and the prompts that it gets: the same as the other side's, none of them twice."""

    running: Cluster
    prompts: PromptMaker

    async def ask(self, prompt: str, max_tokens: int, strategy: str, into: Answer | None = None) -> Answer:
        target = Target(name="", url=self.running.url, model=self.running.model, strategy=strategy)
        return checked(await stream(target, prompt, max_tokens, into=into))


async def streams(side: Side) -> float:
    """Tokens per second of eight streams through both stages."""
    prompts = [side.prompts.make(64) for _ in range(STREAMS)]
    started = time.perf_counter()
    answers = await asyncio.gather(*(side.ask(prompt, _TURN_TOKENS, "distributed-cached") for prompt in prompts))
    return sum(answer.num_tokens for answer in answers) / (time.perf_counter() - started)


async def decode(side: Side) -> float:
    """Tokens per second of one stream on one worker, from its first token on."""
    answer = await side.ask(side.prompts.make(64), _TURN_TOKENS, "single-device-cached")
    return 1 / statistics.mean(gaps(answer.text_at))


async def uncached(side: Side) -> float:
    """Tokens per second of one stream without a cache."""
    answer = await side.ask(side.prompts.make(32), 8, "distributed-no-cache")
    return 1 / statistics.mean(gaps(answer.text_at))


async def prefill(side: Side) -> float:
    """Prompt tokens per second until the first token, over both stages."""
    answer = await side.ask(side.prompts.make(512), 1, "distributed-cached")
    assert answer.ttft_s is not None
    return 512 / answer.ttft_s


async def next_turn(side: Side) -> float:
    """Answers per second to a prompt that goes on where an earlier one ended."""
    prompt = side.prompts.make(256)
    await side.ask(prompt, 1, "distributed-cached")
    answer = await side.ask(prompt + side.prompts.make(16), 1, "distributed-cached")
    assert answer.ttft_s is not None
    return 1 / answer.ttft_s


async def beside_a_prefill(side: Side) -> float:
    """1 / the longest gap in seconds of a stream while somebody's long prompt is read."""
    watched = Answer(sent_at=0.0)
    running = asyncio.create_task(side.ask(side.prompts.make(16), 80, "distributed-cached", into=watched))
    while len(watched.text_at) < 4:  # noqa: ASYNC110 - an answer fills without telling anybody
        await asyncio.sleep(0.005)
    begun = len(watched.text_at)
    await side.ask(side.prompts.make(512), 1, "distributed-cached")
    found = max(gaps(watched.text_at[begun - 1 :]))
    await running
    return 1 / found


async def short_requests(side: Side) -> float:
    """Requests of one token per second, eight at a time."""
    started = time.perf_counter()
    for _ in range(4):
        prompts = [side.prompts.make(8) for _ in range(STREAMS)]
        await asyncio.gather(*(side.ask(prompt, 1, "single-device-cached") for prompt in prompts))
    return 4 * STREAMS / (time.perf_counter() - started)


Measure = Callable[[Side], Awaitable[float]]
MEASURES: dict[str, Measure] = {
    "eight streams, tokens/s": streams,
    "one stream, tokens/s": decode,
    "one stream without a cache, tokens/s": uncached,
    "prompt of 512, tokens/s": prefill,
    "next turn of a conversation, 1/s to the first token": next_turn,
    "longest gap beside a prefill, 1/s": beside_a_prefill,
    "short requests, 1/s": short_requests,
}


async def run(arguments: argparse.Namespace) -> Report:
    """Every measure in turn on both. Raises UsageError for what is no checkout."""
    other = _checkout(arguments.other)
    model = ensure_model(arguments.model, machine.model_folder())
    measures = {what: measure for what, measure in MEASURES.items() if arguments.only in what}
    found: dict[str, dict[str, list[float]]] = {what: {HERE: [], OTHER: []} for what in measures}
    async with contextlib.AsyncExitStack() as stack:
        sides = {}
        for name, checkout in ((HERE, machine.CHECKOUT), (OTHER, other)):
            running = await stack.enter_async_context(cluster(model, [WorkerLimits()] * 2, checkout=checkout))
            machine.pin_each(list(running.pids))
            await until_ready(running, 2)
            sides[name] = Side(running=running, prompts=PromptMaker(arguments.seed, model))
        for number, order in enumerate(turns(list(sides), arguments.rounds + 1)):
            for what, measure in measures.items():
                for name in order:
                    value = await measure(sides[name])
                    if number:  # the first round warms up
                        found[what][name].append(value)
    return _reported(found, arguments)


def _checkout(path: str) -> Path:
    found = Path(path).resolve()
    if not (found / "cluster" / "cli").is_dir():
        raise UsageError(f"{path} is no checkout of Tandem; name the folder of another clone")
    return found


def _reported(found: dict[str, dict[str, list[float]]], arguments: argparse.Namespace) -> Report:
    report = Report("versions")
    report.fact("machine", machine.describe())
    report.fact("model", f"{arguments.model}, random weights; 2 workers, {arguments.rounds} rounds")
    rows, bars = [], []
    for what, of_sides in found.items():
        ratios = paired_ratios(of_sides[HERE], of_sides[OTHER])
        assert ratios is not None
        here, there = (statistics.median(of_sides[name]) for name in (HERE, OTHER))
        rows.append([what, here, there, ratios.median, ratios.smallest, ratios.largest])
        bars.append(Bar(what, ratios.median))
        report.check(f"{what}: this checkout / the other", ratios.median, at_least=LEAST_RATIO)
    report.table("more is better", ["", "here", "the other", "ratio", "smallest", "largest"], rows)
    report.figure = bar_chart("This checkout / the other", "ratio", bars)
    report.data |= {"found": found}
    return report


def options(parser: argparse.ArgumentParser) -> None:
    """What this benchmark takes."""
    parser.add_argument(
        "other", nargs="?", default=str(machine.CHECKOUT), help="another checkout; default: this one again"
    )
    parser.add_argument("--model", choices=known_models(), default="25m-bfloat16", metavar="SIZE-FORMAT")
    parser.add_argument("--rounds", type=int, default=15)
    parser.add_argument("--only", default="", metavar="PART", help="measures whose names contain this")
    parser.add_argument("--seed", type=int, default=0)


if __name__ == "__main__":
    raise SystemExit(main("versions", __doc__, options, run, quick={"rounds": 1}))
