"""Ranks of a tensor group killed or stopped while they compute: how soon that is noticed, and whether all answers stay the same.

Streams run as `tensor-parallel` on two workers with the bundled model; while their prompts are read or their tokens generated, each rank
in turn gets SIGKILL or SIGSTOP, the head too. Each request ran before with nothing lost and must end with exactly those ids. It
names its strategy, so it waits until the rank is back: its pause is noticing, a process that starts, and ranks that meet. That the next loss
comes soon, a stopped process is ended once it is missed, and who is missing is started at once, however often it died before.
"""

import argparse
import asyncio
import contextlib
import random
import statistics
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import msgspec

from benchmarks.support import machine
from benchmarks.support.arithmetic import percentile
from benchmarks.support.client import get_json, post_json
from benchmarks.support.contenders import Cluster, WorkerLimits, cluster
from benchmarks.support.faults import Fault, Struck, prepared
from benchmarks.support.figures import Bar, bar_chart
from benchmarks.support.main import main
from benchmarks.support.reporting import Report
from benchmarks.support.trials import (
    FAULTS,
    VERDICTS,
    Moment,
    NotReady,
    Outcome,
    Request,
    Trial,
    Undisturbed,
    random_requests,
    run_trial,
    undisturbed,
    until_ready,
)
from cluster.config import BUNDLED_MODEL

MODEL = machine.CHECKOUT / BUNDLED_MODEL
RANKS = 2
STRATEGY = "tensor-parallel"
# Of a loss, seconds until the cluster says so.
NOTICED_WITHIN_S = {"killed": 0.5, "stopped": 4.0}
_MOMENTS: tuple[Moment, ...] = ("prefill", "decode", "decode")
_LONGEST_PROMPT, _MOST_TOKENS = 200, 240
_NOTICE_LIMIT_S = 30.0
_LOOK_EVERY_S = 0.05


class Loss(msgspec.Struct, frozen=True, kw_only=True):
    """One to come. rank: who is lost."""

    kind: str
    rank: int
    trial: Trial


class Found(msgspec.Struct, frozen=True, kw_only=True):
    """What became of a loss. noticed_s: seconds from it until the cluster said so, None where it never did; stuck: why the cluster was
    not whole again.
    """

    kind: str
    victim: str
    noticed_s: float | None
    outcomes: tuple[Outcome, ...]
    events: tuple[str, ...]
    stuck: str | None

    def pauses(self) -> Iterator[float]:
        """Seconds that each stream which went on waited for its next token."""
        return (one.wait_s for one in self.outcomes if one.affected and one.wait_s is not None)


def random_losses(generator: random.Random, count: int, streams: int) -> list[Loss]:
    """`count` of each kind in turn, of each rank in turn."""
    kinds = list(NOTICED_WITHIN_S)
    return [
        Loss(
            kind=kinds[number % len(kinds)],
            rank=number // len(kinds) % RANKS,
            trial=Trial(
                requests=random_requests(
                    generator, streams, strategies=(STRATEGY,), longest=_LONGEST_PROMPT, most=_MOST_TOKENS
                ),
                moment=generator.choice(_MOMENTS),
                share=generator.uniform(0.05, 0.8),
            ),
        )
        for number in range(count * len(kinds))
    ]


async def measure(losses: Sequence[Loss]) -> list[Found]:
    """All losses on one cluster, and on another one where that was not whole again."""
    found: list[Found] = []
    right: Mapping[Request, Undisturbed] = {}
    while len(found) < len(losses):
        async with cluster(MODEL, [WorkerLimits(is_rank=True)] * RANKS) as running:
            right = right or await undisturbed(running, [each for loss in losses for each in loss.trial.requests])
            for loss in losses[len(found) :]:
                found.append(await one_loss(running, loss, right))
                print(_line(loss, found[-1]), flush=True)
                if found[-1].stuck:
                    break
    return found


async def one_loss(running: Cluster, loss: Loss, right: Mapping[Request, Undisturbed]) -> Found:
    """From a cluster that is whole to one that is whole again."""
    before = await until_ready(running, RANKS)
    victim = before["workers"][loss.rank]
    with prepared(loss.kind, victim["pid"]) as fault:
        struck: asyncio.Future[Struck] = asyncio.get_running_loop().create_future()

        def strike() -> float:
            struck.set_result(fault.strike())
            return struck.result().at

        noticing = asyncio.create_task(_until_noticed(running, victim["name"], fault, struck))
        outcomes = await run_trial(running, loss.trial, right, strike)
        noticed_s = await noticing
    stuck = None
    try:
        after = await until_ready(running, RANKS)
    except NotReady as error:
        stuck, after = str(error), {}
    return Found(
        kind=loss.kind,
        victim=victim["name"],
        noticed_s=noticed_s,
        outcomes=tuple(outcomes),
        events=tuple(event["what"] for event in struck.result().events_since(after)),
        stuck=stuck,
    )


async def _until_noticed(
    running: Cluster, victim: str, fault: Fault, happened: "asyncio.Future[Struck]"
) -> float | None:
    """Seconds from the loss until the cluster said so; None where it did not. The worker is on its way back then."""
    struck = await happened
    with contextlib.suppress(TimeoutError):
        async with asyncio.timeout(_NOTICE_LIMIT_S):
            status = await get_json(running.url, "/status")
            while (noticed_s := noticed_after(status, struck)) is None or not _is_missed(status, victim):
                await asyncio.sleep(_LOOK_EVERY_S)
                status = await get_json(running.url, "/status")
            fault.clear()
            await post_json(running.url, "/v1/cluster/mend")
            return noticed_s
    return None


def noticed_after(status: Mapping[str, Any], struck: Struck) -> float | None:
    """Seconds from a loss to the first event that says of one."""
    moments = [event["at"] for event in struck.events_since(status) if event["what"].startswith("lost ")]
    return max(min(moments) - struck.unix, 0.0) if moments else None


def _is_missed(status: Mapping[str, Any], victim: str) -> bool:
    return any(worker["name"] == victim and worker["state"] == "lost" for worker in status["workers"])


def _line(loss: Loss, found: Found) -> str:
    verdicts = Counter(outcome.verdict for outcome in found.outcomes)
    said = ", ".join(f"{count} {verdict}" for verdict, count in verdicts.items())
    noticed = "never noticed" if found.noticed_s is None else f"noticed after {found.noticed_s:.2f} s"
    longest = max(found.pauses(), default=0.0)
    errors = {outcome.error for outcome in found.outcomes if outcome.error} | ({found.stuck} if found.stuck else set())
    told = f"; {'; '.join(found.events)}" if errors else ""
    return (
        f"{found.victim} {loss.kind} in {loss.trial.moment}: {noticed}, {said}, longest pause {longest:.2f} s"
        + "".join(f"; {error}" for error in errors)
        + told
    )


async def run(arguments: argparse.Namespace) -> Report:
    """Lose ranks, then look at those that are there again."""
    losses = random_losses(random.Random(arguments.seed), arguments.losses, arguments.streams)
    found = await measure(losses)
    report = Report("rank_losses")
    report.fact("machine", machine.describe())
    report.fact(
        "model", f"the bundled one, float32, on {RANKS} ranks; {arguments.streams} streams, seed {arguments.seed}"
    )
    _add_times(report, found)
    _add_verdicts(report, found)
    report.data["losses"] = [msgspec.to_builtins(each) for each in found]
    return report


def _add_times(report: Report, found: Sequence[Found]) -> None:
    rows, bars = [], []
    for kind, limit_s in NOTICED_WITHIN_S.items():
        of_kind = [each for each in found if each.kind == kind]
        noticed = [each.noticed_s for each in of_kind if each.noticed_s is not None]
        pauses = [pause for each in of_kind for pause in each.pauses()]
        rows.append([kind, "until it is noticed", len(of_kind), *_spread(noticed)])
        rows.append([kind, "until a stream's next token", len(pauses), *_spread(pauses)])
        report.check(f"{kind}: losses that nobody noticed", len(of_kind) - len(noticed), at_most=0)
        report.check(f"{kind}: seconds until noticed, the longest", max(noticed, default=None), at_most=limit_s)
        bars += [Bar(f"{kind}, noticed", statistics.median(noticed))] if noticed else []
        bars += [Bar(f"{kind}, pause", statistics.median(pauses), 1)] if pauses else []
    report.table("seconds from a loss", ["rank", "what", "number", "median", "90th percentile", "longest"], rows)
    report.figure = bar_chart("A rank lost, seconds until noticed and until the next token, medians", "s", bars)


def _spread(seconds: Sequence[float]) -> list[float | None]:
    if not seconds:
        return [None] * 3
    return [statistics.median(seconds), percentile(seconds, 0.9), max(seconds)]


def _add_verdicts(report: Report, found: Sequence[Found]) -> None:
    rows = []
    for kind in NOTICED_WITHIN_S:
        outcomes = [outcome for each in found if each.kind == kind for outcome in each.outcomes]
        counts = Counter(outcome.verdict for outcome in outcomes)
        rows.append([kind, len(outcomes), sum(one.affected for one in outcomes), *(counts[each] for each in VERDICTS)])
        for verdict in FAULTS:
            report.check(f"{kind}: requests that ended {verdict}", counts[verdict], at_most=0)
    report.table("requests", ["rank", "number", "went on after a pause", *VERDICTS], rows)
    report.check("clusters that were not whole again", sum(each.stuck is not None for each in found), at_most=0)


def options(parser: argparse.ArgumentParser) -> None:
    """What this benchmark takes."""
    parser.add_argument("--losses", type=int, default=50, help="of each kind")
    parser.add_argument("--streams", type=int, default=3)
    parser.add_argument("--seed", type=int, default=0)


if __name__ == "__main__":
    raise SystemExit(main("rank-losses", __doc__, options, run, quick={"losses": 1}))
