"""Thousands of requests with workers lost and clients that leave: wrong answers, and what grows that should not.

Short requests from a pool of known answers run sixteen at a time; some clients leave early. In each block of requests a
worker gets SIGKILL at a random place. After the block, when all its requests have ended, all workers are ready again and idle
ones have given back what they used, memory, descriptors and threads of every process and the files of the home are counted.
What counts is the growth from the first count after a tenth of the requests on, of the processes that live to the end: the
last worker is never killed.

A worker that dies five times in five minutes is left out by design. So where all have died often enough lately, the next
block waits. What is kept of past requests is limited to little: it grows to its limit by design, and is full early so.
"""

import argparse
import asyncio
import contextlib
import os
import random
import signal
import time
from collections import Counter
from collections.abc import Mapping, Sequence

import msgspec

from benchmarks.support import machine
from benchmarks.support.client import Answer
from benchmarks.support.contenders import Cluster, WorkerLimits, cluster
from benchmarks.support.figures import Line, line_chart
from benchmarks.support.main import main
from benchmarks.support.reporting import Report
from benchmarks.support.resources import Sample, growth, sample
from benchmarks.support.trials import (
    FAULTS,
    Request,
    Undisturbed,
    asked,
    random_requests,
    undisturbed,
    until_ready,
    verdict_of,
)
from cluster.config import BUNDLED_MODEL

MODEL = machine.CHECKOUT / BUNDLED_MODEL
POOL, LONGEST, MOST = 40, 64, 32
# Of kept prefixes, in memory and on disk: so little that they are full long before anything is counted.
KEPT_BYTES = 4 << 20
KEPT_IN = "cache/kv"
CANCEL_SHARE, CANCEL_WITHIN_S = 0.1, 0.5
MEMORY_GROWTH = 0.03
MAX_DEATHS, DEATHS_WITHIN_S = 4, 300.0
SETTLED_FROM = 0.1
REST_S, STILL = 1.0, 0.99


class Deaths:
    """When each worker was killed, and so which may be next. Knows the time only as it is told."""

    def __init__(self, names: Sequence[str]):
        self._at: dict[str, list[float]] = {name: [] for name in names}

    def __repr__(self) -> str:
        return f"Deaths({ {name: len(at) for name, at in self._at.items()} })"

    def wait_s(self, now: float) -> float:
        """How long until a worker may die."""
        return max(0.0, min(self._free_at(name) for name in self._at) - now)

    def allowed(self, now: float) -> list[str]:
        """Workers that may die now."""
        return [name for name in self._at if self._free_at(name) <= now]

    def _free_at(self, name: str) -> float:
        lately = self._at[name][-MAX_DEATHS:]
        return lately[0] + DEATHS_WITHIN_S if len(lately) == MAX_DEATHS else 0.0

    def count(self, name: str, now: float) -> None:
        """A worker is killed now."""
        self._at[name].append(now)


class Load:
    """Blocks of random requests of a pool, and how they ended."""

    def __init__(self, running: Cluster, right: Mapping[Request, Undisturbed], generator: random.Random, clients: int):
        self._running = running
        self._right = right
        self._pool = list(right)
        self._random = generator
        self._clients = clients
        self.verdicts: Counter[str] = Counter()
        self.errors: Counter[str] = Counter()

    def __repr__(self) -> str:
        return f"Load({dict(self.verdicts)})"

    async def block(self, size: int, victim_pid: int) -> None:
        """So many requests to their ends; the victim is killed as a random one of them is sent."""
        left = [self._random.choice(self._pool) for _ in range(size)]
        kill_at = self._random.randrange(size)

        async def client() -> None:
            while left:
                request = left.pop()
                if len(left) == kill_at:
                    os.kill(victim_pid, signal.SIGKILL)
                await self._one(request)

        await asyncio.gather(*(client() for _ in range(self._clients)))

    async def _one(self, request: Request) -> None:
        answer = Answer(sent_at=0.0)
        running = asyncio.create_task(asked(self._running, request, answer))
        if self._random.random() < CANCEL_SHARE:
            await asyncio.wait({running}, timeout=self._random.random() * CANCEL_WITHIN_S)
            if not running.done():
                running.cancel()
                with contextlib.suppress(asyncio.CancelledError):
                    await running
                self.verdicts["left"] += 1
                return
        await running
        self.verdicts[verdict_of(request, answer, self._right[request])] += 1
        if answer.error is not None:
            self.errors[answer.error] += 1


async def soak(running: Cluster, load: Load, generator: random.Random, arguments: argparse.Namespace) -> list[Sample]:
    """Block after block, with a count after each. Raises NotReady when a lost worker does not come back."""
    samples = []
    status = await until_ready(running, arguments.workers)
    deaths = Deaths([worker["name"] for worker in status["workers"][:-1]])
    for number in range(1, arguments.requests // arguments.every + 1):
        await asyncio.sleep(deaths.wait_s(time.monotonic()))
        victim = generator.choice(deaths.allowed(time.monotonic()))
        deaths.count(victim, time.monotonic())
        await load.block(
            arguments.every, next(worker["pid"] for worker in status["workers"] if worker["name"] == victim)
        )
        status = await until_ready(running, arguments.workers)
        samples.append(await _at_rest(running, number * arguments.every))
        print(f"{samples[-1].requests} requests: {dict(load.verdicts)}", flush=True)
    return samples


async def _at_rest(running: Cluster, requests: int) -> Sample:
    """A count once the memory of no process falls any more."""
    found = sample(running.places, requests)
    while True:
        await asyncio.sleep(REST_S)
        earlier, found = found, sample(running.places, requests)
        before = {process.pid: process.resident_bytes for process in earlier.processes}
        if all(process.resident_bytes >= before.get(process.pid, 0) * STILL for process in found.processes):
            return found


async def run(arguments: argparse.Namespace) -> Report:
    """All blocks on one cluster."""
    generator = random.Random(arguments.seed)
    pool = random_requests(generator, POOL, longest=LONGEST, most=MOST)
    async with cluster(MODEL, [WorkerLimits()] * arguments.workers, kept_bytes=KEPT_BYTES) as running:
        load = Load(running, await undisturbed(running, pool), generator, arguments.clients)
        started = time.monotonic()
        samples = await soak(running, load, generator, arguments)
        seconds = time.monotonic() - started
    report = Report("soak")
    report.fact("machine", machine.describe())
    report.fact("model", f"the bundled one, float32; {arguments.workers} workers")
    kills = f"a worker killed in every {arguments.every}"
    report.fact("load", f"{arguments.clients} at a time, {kills}, {seconds:,.0f} s, seed {arguments.seed}")
    _conclude(report, samples, load)
    return report


def _conclude(report: Report, samples: list[Sample], load: Load) -> None:
    report.table("requests", ["requests", "number"], [[name, count] for name, count in load.verdicts.items()])
    for number, (error, count) in enumerate(load.errors.most_common(10), 1):
        report.fact(f"error {number}", f"{count} times: {error}")
    settled = [one for one in samples if one.requests >= SETTLED_FROM * samples[-1].requests]
    for verdict in FAULTS:
        report.check(f"requests that ended {verdict}", load.verdicts[verdict], at_most=0)
    survivors = growth(settled)
    rows = [
        [of.name, of.resident[0] / 1e6, of.resident[1] / 1e6, f"{of.memory:+.1%}", *of.descriptors, *of.threads]
        for of in survivors
    ]
    columns = ["process", "MB", "most since", "growth", "descriptors", "last", "threads", "last"]
    report.table(f"surviving processes, from {settled[0].requests:,} requests on", columns, rows)
    for of in survivors:
        report.check(f"{of.name}: growth of memory", of.memory, at_most=MEMORY_GROWTH)
        report.check(f"{of.name}: more descriptors", of.descriptors[1] - of.descriptors[0], at_most=0)
        report.check(f"{of.name}: more threads", of.threads[1] - of.threads[0], at_most=0)
    first, last = settled[0].files, settled[-1].files
    folders = sorted(first.keys() | last.keys())
    report.table(
        "files in the home",
        ["folder", "first", "last"],
        [[name, first.get(name, 0), last.get(name, 0)] for name in folders],
    )
    lasting = [
        folder for folder in folders if not folder.startswith(KEPT_IN)
    ]  # kept parts have a limit of bytes, not of number
    report.check("more files", sum(last.get(name, 0) - first.get(name, 0) for name in lasting), at_most=0)
    report.data["samples"] = [msgspec.to_builtins(one) for one in samples]
    report.figure = _figure(samples)


def _figure(samples: list[Sample]) -> str:
    names = {process.pid: process.name for process in samples[-1].processes}
    lines = [
        Line(
            name, tuple((one.requests, use.resident_bytes / 1e6) for one in samples if (use := one.of(pid)) is not None)
        )
        for pid, name in names.items()
    ]
    return line_chart("Memory of the processes that are there at the end", "requests", "resident MB", lines)


def options(parser: argparse.ArgumentParser) -> None:
    """What this benchmark takes."""
    parser.add_argument("--requests", type=int, default=20_000)
    parser.add_argument("--every", type=int, default=500, help="requests in a block, in which one worker dies")
    parser.add_argument("--clients", type=int, default=16, help="requests at a time")
    parser.add_argument("--workers", type=int, default=4)
    parser.add_argument("--seed", type=int, default=0)


if __name__ == "__main__":
    quick = {"requests": 90, "every": 30, "workers": 2}
    raise SystemExit(main("soak", __doc__, options, run, quick=quick))
