"""The coordinator killed under load: how long until new requests are answered, and that no weight is read twice.

Some clients ask without a pause. At a random moment the coordinator gets SIGKILL; whoever it served loses the connection,
which ends that request. From there it counts until /health is 200 and until a new request is answered, which must have the
ids that it had before. The workers stay, with what they hold: their counters of weights read must not move. The next kill
waits until the cluster says that all its workers are ready and every client is being served again.
"""

import argparse
import asyncio
import os
import random
import signal
import time
from collections import Counter
from collections.abc import Mapping
from typing import Any

import msgspec

from benchmarks.support import machine
from benchmarks.support.arithmetic import summarize
from benchmarks.support.client import Answer
from benchmarks.support.contenders import Cluster, WorkerLimits, cluster
from benchmarks.support.figures import Bar, bar_chart
from benchmarks.support.main import main
from benchmarks.support.reporting import Report
from benchmarks.support.trials import (
    FAULTS,
    HANG_S,
    Request,
    Undisturbed,
    asked,
    is_healthy,
    random_requests,
    undisturbed,
    until_ready,
    verdict_of,
)
from cluster.config import BUNDLED_MODEL

MODEL = machine.CHECKOUT / BUNDLED_MODEL
READY_LIMIT_S = 3.0
_POLL_S = 0.01


class Restart(msgspec.Struct, frozen=True, kw_only=True):
    """One kill. Seconds from it to /health 200 and to a new request's whole answer, None when that did not come.

    read_bytes: weights that workers read over it, None where the status does not say; lost: workers that are other
    processes afterwards.
    """

    healthy_s: float | None
    answered_s: float | None
    new_answer: str
    read_bytes: int | None
    lost: tuple[str, ...]


class Clients:
    """The load: each client asks again as soon as it is answered and the cluster is healthy.

    down: from when to when there was no coordinator; a request that ran into such a time may break, and no other.
    """

    def __init__(self, running: Cluster, right: Mapping[Request, Undisturbed], generator: random.Random):
        self._running = running
        self._right = right
        self._random = generator
        self._ending = False
        self._under_way: list[Answer] = []
        self.down: list[tuple[float, float]] = []
        self.verdicts: Counter[str] = Counter()

    def __repr__(self) -> str:
        return f"Clients({dict(self.verdicts)})"

    async def run(self, count: int) -> None:
        """Ask until `end`."""
        await asyncio.gather(*(self._client() for _ in range(count)))

    def end(self) -> None:
        """Let each client finish what it asked."""
        self._ending = True

    def num_streaming(self, since: float) -> int:
        """Requests under way that were sent after a moment and have brought a token."""
        return sum(answer.sent_at > since and bool(answer.text_at) for answer in self._under_way)

    async def _client(self) -> None:
        while not self._ending:
            request = self._random.choice(list(self._right))
            answer = Answer(sent_at=0.0)
            self._under_way.append(answer)
            await asked(self._running, request, answer)
            self._under_way.remove(answer)
            verdict = verdict_of(request, answer, self._right[request])
            while not (self._ending or await is_healthy(self._running)):  # noqa: ASYNC110 - only asking tells
                await asyncio.sleep(_POLL_S)
            self.verdicts["broken" if verdict == "failed" and self._ran_into_it(answer) else verdict] += 1

    def _ran_into_it(self, answer: Answer) -> bool:
        return any(answer.sent_at <= end and answer.ended_at >= start for start, end in self.down)


async def one_restart(
    running: Cluster, clients: Clients, generator: random.Random, right: Mapping[Request, Undisturbed], num_workers: int
) -> Restart:
    """From a cluster that is ready and serves to one that is ready again. Raises NotReady, TimeoutError."""
    before = await until_ready(running, num_workers)
    await _until_streaming(clients, wanted=generator.randint(1, 3))
    killed = time.perf_counter()
    clients.down.append((killed, float("inf")))
    os.kill(before["coordinator"]["pid"], signal.SIGKILL)
    healthy_s = await _seconds_until_healthy(running, killed)
    clients.down[-1] = (killed, time.perf_counter())
    request = generator.choice(list(right))
    answer = await asked(running, request, Answer(sent_at=0.0))
    after = await until_ready(running, num_workers)
    return Restart(
        healthy_s=healthy_s,
        answered_s=answer.ended_at - killed if answer.error is None else None,
        new_answer=verdict_of(request, answer, right[request]),
        read_bytes=_read_over(before, after),
        lost=tuple(name for name, pid in _pids(before).items() if pid not in _pids(after).values()),
    )


async def _until_streaming(clients: Clients, wanted: int) -> None:
    """Returns when so many requests have brought a token. Raises TimeoutError."""
    since = time.perf_counter()
    async with asyncio.timeout(HANG_S):
        while clients.num_streaming(since) < wanted:  # noqa: ASYNC110 - answers fill without telling anybody
            await asyncio.sleep(_POLL_S)


async def _seconds_until_healthy(running: Cluster, killed: float) -> float | None:
    while time.perf_counter() - killed < HANG_S:
        if await is_healthy(running):
            return time.perf_counter() - killed
        await asyncio.sleep(_POLL_S)
    return None


def _pids(status: Mapping[str, Any]) -> dict[str, int]:
    return {worker["name"]: worker["pid"] for worker in status["workers"]}


def _read_over(before: Mapping[str, Any], after: Mapping[str, Any]) -> int | None:
    sums = []
    for status in (before, after):
        counters = [worker["memory"].get("read_bytes") for worker in status["workers"]]
        if None in counters:
            return None
        sums.append(sum(counters))
    return sums[1] - sums[0]


async def run(arguments: argparse.Namespace) -> Report:
    """All kills on one cluster. Raises NotReady when it does not come back."""
    generator = random.Random(arguments.seed)
    pool = random_requests(generator, arguments.requests, longest=300)
    async with cluster(MODEL, [WorkerLimits()] * arguments.workers) as running:
        right = await undisturbed(running, pool)
        clients = Clients(running, right, generator)
        load = asyncio.create_task(clients.run(arguments.clients))
        found = []
        try:
            for number in range(arguments.kills):
                found.append(await one_restart(running, clients, generator, right, arguments.workers))
                print(f"kill {number + 1}: {found[-1]}", flush=True)
        finally:
            clients.end()
            await load
    report = Report("restarts")
    report.fact("machine", machine.describe())
    report.fact("model", "the bundled one, float32")
    report.fact("load", f"{arguments.clients} clients, {arguments.workers} workers, seed {arguments.seed}")
    _conclude(report, found, clients.verdicts)
    return report


def _conclude(report: Report, found: list[Restart], verdicts: Counter[str]) -> None:
    rows, bars = [], []
    for what, times in (
        ("/health is 200", [of.healthy_s for of in found]),
        ("a new request is answered", [of.answered_s for of in found]),
    ):
        known = summarize([value for value in times if value is not None])
        shown = [known.median, known.p99, known.largest] if known else [None] * 3
        rows.append([what, len(times), sum(value is None for value in times), *shown])
        report.check(f"seconds until {what}, longest", shown[2], at_most=READY_LIMIT_S)
        bars += [Bar(f"{what}, median", known.median), Bar(f"{what}, longest", known.largest, 1)] if known else []
    columns = ["until", "kills", "never", "median s", "p99", "longest"]
    report.table("from the coordinator's SIGKILL", columns, rows)
    report.table("requests", ["requests", "number"], [[name, count] for name, count in verdicts.items()])
    counted = [of.read_bytes for of in found if of.read_bytes is not None]
    if counted:
        report.check("bytes of weights read again", sum(counted), at_most=0)
    report.check("workers lost with the coordinator", sum(len(of.lost) for of in found), at_most=0)
    report.check("new requests not answered rightly", sum(of.new_answer != "right" for of in found), at_most=0)
    for verdict in FAULTS:
        report.check(f"requests that ended {verdict}", verdicts[verdict], at_most=0)
    report.data["restarts"] = [msgspec.to_builtins(of) for of in found]
    report.figure = bar_chart("Restart of the coordinator under load", "s", bars)


def options(parser: argparse.ArgumentParser) -> None:
    """What this benchmark takes."""
    parser.add_argument("--kills", type=int, default=20)
    parser.add_argument("--workers", type=int, default=2)
    parser.add_argument("--clients", type=int, default=4)
    parser.add_argument("--requests", type=int, default=24, help="different ones that they ask")
    parser.add_argument("--seed", type=int, default=0)


if __name__ == "__main__":
    raise SystemExit(main("restarts", __doc__, options, run, quick={"kills": 1, "requests": 8}))
