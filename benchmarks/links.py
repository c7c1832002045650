"""Faults of the link between two workers: whether every request ends with the right ids, and how long its stream pauses.

A relay stands before each worker's data inbox. Random requests run over all workers; at a random moment of prefill or
decode one relay *resets* its connections, goes *silent* for a while (connections stay open, nothing passes) or *delays*
everything for a while. Each request ran before while nothing happened and must end with exactly those ids. A pause is the
longest time in which a stream brings neither a token nor a report of its prefill.
"""

import argparse
import asyncio
import contextlib
import random
import tempfile
import time
from collections import Counter
from collections.abc import AsyncIterator, Mapping, Sequence
from pathlib import Path

import msgspec

from benchmarks.support import machine
from benchmarks.support.arithmetic import summarize
from benchmarks.support.client import get_json
from benchmarks.support.contenders import Cluster
from benchmarks.support.figures import Bar, bar_chart
from benchmarks.support.main import main
from benchmarks.support.own_coordinator import own_coordinator
from benchmarks.support.relays import Relays
from benchmarks.support.reporting import Report
from benchmarks.support.trials import (
    FAULTS,
    MOMENTS,
    VERDICTS,
    Moment,
    Outcome,
    Request,
    Trial,
    Undisturbed,
    random_requests,
    run_trial,
    undisturbed,
    until_ready,
)
from cluster.config import BUNDLED_MODEL, ApiSettings, ModelSettings, Settings, WorkerSettings
from protocol.home import Home

MODEL = machine.CHECKOUT / BUNDLED_MODEL
KINDS = ("reset", "silent", "delayed")
PAUSE_LIMITS_S = {"reset": 1.0, "silent": 5.0}
STRATEGIES = ("distributed-no-cache", "distributed-cached")
UNDER_WAY: tuple[Moment, ...] = tuple(moment for moment in MOMENTS if moment != "waiting")
MAX_REQUESTS = 8
# A silence may end before anybody noticed, or after. A delay is one that a slow network may have.
SILENT_S, DELAYED_S, DELAY_S = (0.5, 3.0), (0.5, 3.0), (0.02, 0.3)


class LinkFault(msgspec.Struct, frozen=True, kw_only=True):
    """One fault to come. worker: the number of the one before whose inbox it happens; lasting_s: until it is over;
    delay_s: of the kind "delayed".
    """

    kind: str
    worker: int
    lasting_s: float
    delay_s: float
    trial: Trial


class Found(msgspec.Struct, frozen=True, kw_only=True):
    """What became of one."""

    kind: str
    moment: str
    outcomes: tuple[Outcome, ...]

    def pauses(self) -> list[float]:
        """The longest silence of each stream that was under way, in seconds from the fault on."""
        waits = [outcome.silence_s for outcome in self.outcomes if outcome.moment is not None]
        return [wait for wait in waits if wait is not None]


def random_faults(generator: random.Random, count: int, num_workers: int) -> list[LinkFault]:
    """Faults of every kind in turn, in random order."""
    order = [KINDS[number % len(KINDS)] for number in range(count)]
    generator.shuffle(order)
    return [
        LinkFault(
            kind=kind,
            worker=generator.randrange(num_workers),
            lasting_s=generator.uniform(*(SILENT_S if kind == "silent" else DELAYED_S)),
            delay_s=generator.uniform(*DELAY_S),
            trial=Trial(
                requests=random_requests(generator, generator.randint(1, MAX_REQUESTS), strategies=STRATEGIES),
                moment=generator.choice(UNDER_WAY),
                share=generator.random(),
            ),
        )
        for kind in order
    ]


@contextlib.asynccontextmanager
async def relayed_cluster(relays: Relays, num_workers: int) -> AsyncIterator[Cluster]:
    """A cluster whose workers reach each other through relays. Raises RuntimeError when it does not start."""
    with tempfile.TemporaryDirectory(prefix="tandem-bench-") as folder:
        home = Home(Path(folder) / "home")
        port = machine.free_port()
        settings = Settings(
            model=ModelSettings(path=str(MODEL)),
            api=ApiSettings(port=port),
            workers=tuple(WorkerSettings(name=f"worker-{number}") for number in range(num_workers)),
        )
        module = "benchmarks.support.coordinator_relayed"
        with own_coordinator(module, home, settings, relays.environment) as pid:
            url = f"http://127.0.0.1:{port}"
            status = await get_json(url, "/status")
            pids = tuple(worker["pid"] for worker in status["workers"])
            yield Cluster(url=url, home=home.root, model=status["model"]["id"], pids=pids, front_pid=pid)


async def one_fault(
    running: Cluster, relays: Relays, fault: LinkFault, num_workers: int, right: Mapping[Request, Undisturbed]
) -> Found:
    """From a cluster that is ready to one whose requests have all ended. Raises NotReady."""
    status = await until_ready(running, num_workers)
    relay = relays.to(status["workers"][fault.worker]["name"])
    over: list[asyncio.TimerHandle] = []

    def strike() -> float:
        struck = time.perf_counter()
        if fault.kind == "reset":
            relay.reset()
            return struck
        if fault.kind == "silent":
            relay.cut()
        else:
            relay.delay(fault.delay_s)
        over.append(asyncio.get_running_loop().call_later(fault.lasting_s, relay.heal))
        return struck

    try:
        outcomes = await run_trial(running, fault.trial, right, strike)
    finally:
        for handle in over:
            handle.cancel()
        relay.heal()
    return Found(kind=fault.kind, moment=fault.trial.moment, outcomes=tuple(outcomes))


async def measure(faults: Sequence[LinkFault], num_workers: int) -> list[Found]:
    """All faults on one cluster."""
    relays = Relays()
    found = []
    try:
        async with relayed_cluster(relays, num_workers) as running:
            requests = [request for fault in faults for request in fault.trial.requests]
            right = await undisturbed(running, requests)
            for fault in faults:
                found.append(await one_fault(running, relays, fault, num_workers, right))
                verdicts = dict(Counter(outcome.verdict for outcome in found[-1].outcomes))
                longest = max(found[-1].pauses(), default=None)
                print(f"{fault.kind} in {fault.trial.moment}: {verdicts}, longest pause {longest} s", flush=True)
    finally:
        relays.close()
    return found


async def run(arguments: argparse.Namespace) -> Report:
    """All faults, one after the other. Raises NotReady when the cluster does not come back."""
    generator = random.Random(arguments.seed)
    found = await measure(random_faults(generator, arguments.faults, arguments.workers), arguments.workers)
    report = Report("links")
    report.fact("machine", machine.describe())
    report.fact("model", f"the bundled one, float32; {arguments.workers} workers")
    report.fact("faults", f"{len(found)}, seed {arguments.seed}")
    _conclude(report, found)
    return report


def _conclude(report: Report, found: Sequence[Found]) -> None:
    rows, bars = [], []
    for kind in KINDS:
        for moment in UNDER_WAY:
            of_both = [of for of in found if (of.kind, of.moment) == (kind, moment)]
            outcomes = [outcome for of in of_both for outcome in of.outcomes]
            pauses = summarize([pause for of in of_both for pause in of.pauses()])
            times = [pauses.median, pauses.p99, pauses.largest] if pauses else [None] * 3
            counts = [sum(one.verdict == verdict for one in outcomes) for verdict in VERDICTS]
            rows.append([f"{kind} in {moment}", len(of_both), *counts, sum(one.resumed for one in outcomes), *times])
            bars += [Bar(f"{kind} in {moment}, longest", pauses.largest, KINDS.index(kind))] if pauses else []
    columns = ["fault", "number", *VERDICTS, "went on anew", "pause s", "p99", "longest"]
    report.table("requests under way, and their longest silence since the fault", columns, rows)
    everything = [outcome for of in found for outcome in of.outcomes]
    for verdict in FAULTS:
        report.check(f"requests that ended {verdict}", sum(one.verdict == verdict for one in everything), at_most=0)
    for kind, limit in PAUSE_LIMITS_S.items():
        pauses_of_kind = [pause for of in found if of.kind == kind for pause in of.pauses()]
        report.check(f"{kind}: longest pause in s", max(pauses_of_kind, default=None), at_most=limit)
    for number, error in enumerate(dict.fromkeys(one.error for one in everything if one.error), 1):
        report.fact(f"error {number}", error)
    report.data["faults"] = [msgspec.to_builtins(of) for of in found]
    report.figure = bar_chart("Pause of a stream after a fault of a link", "s", bars)


def options(parser: argparse.ArgumentParser) -> None:
    """What this benchmark takes."""
    parser.add_argument("--faults", type=int, default=100)
    parser.add_argument("--workers", type=int, default=3)
    parser.add_argument("--seed", type=int, default=0)


if __name__ == "__main__":
    raise SystemExit(main("links", __doc__, options, run, quick={"faults": 3, "workers": 2}))
