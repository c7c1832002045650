"""Workers lost at random moments: whether every request ends with the right ids, and how long its stream pauses.

Random requests, greedy and sampled, run over all strategies on two, three and four workers; at a random moment of waiting,
prefill or decode a random worker is killed, stopped, cut off or has its compute thread held still. Each request ran before
on a cluster to which nothing happened: it must end with exactly those ids. The next fault waits until the cluster says that
all its workers are ready. A cluster is started anew before a worker would die for the fifth time, since one that dies five
times in five minutes is left out.

In a further part no worker has room for the whole model, so that survivors have to read what the lost one alone held.

It takes long. With --json what was found is also kept beside that file as it comes, and a run with the same options that
was cut short is taken up there.
"""

import argparse
import random
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import msgspec

from benchmarks.support import machine
from benchmarks.support.arithmetic import longest_wait, summarize
from benchmarks.support.client import get_json
from benchmarks.support.contenders import Cluster, WorkerLimits, cluster
from benchmarks.support.faults import Struck, check_kinds, possible_kinds, prepared
from benchmarks.support.figures import Bar, bar_chart
from benchmarks.support.main import main
from benchmarks.support.reporting import Report
from benchmarks.support.trials import (
    FAULTS,
    MOMENTS,
    STRATEGIES,
    VERDICTS,
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
MAX_DEATHS = 4
MAX_REQUESTS = 8
PAUSE_LIMIT_S = 2.0
# These say nothing themselves: somebody has to notice. Their pause counts from the moment at which the cluster did.
NOTICED = ("stopped", "blocked")
# Of the model's bytes: less than it needs, and enough for half of it and some caches.
LIMITED_WORKERS, LIMITED_SHARE, LIMITED_LONGEST = 3, 0.95, 60


class Kill(msgspec.Struct, frozen=True, kw_only=True):
    """One fault to come. victim: the number of a worker."""

    kind: str
    victim: int
    trial: Trial


class Setting(msgspec.Struct, frozen=True, kw_only=True):
    """A kind of cluster and what is to happen on it."""

    name: str
    workers: tuple[WorkerLimits, ...]
    kills: tuple[Kill, ...]


class Found(msgspec.Struct, frozen=True, kw_only=True):
    """What became of one fault. noticed: when the cluster did; read_bytes: weights that survivors read until the requests
    had ended, of which alone_bytes were held by the lost worker alone; events: what the cluster said of losses and plans
    until then; stuck: why the cluster was not ready again.
    """

    setting: str
    kind: str
    outcomes: tuple[Outcome, ...]
    struck: Struck
    noticed: float | None
    read_bytes: int | None
    alone_bytes: int
    events: tuple[str, ...]
    stuck: str | None

    @property
    def num_losses(self) -> int:
        """Of workers: one that seems silent on a loaded machine is lost, too, and what it held is read again."""
        return sum(event.startswith("lost ") for event in self.events)

    @property
    def read_more(self) -> bool:
        """Whether survivors read more than the lost worker alone held."""
        return (self.read_bytes or 0) > self.alone_bytes

    def pauses(self) -> list[float]:
        """Of each stream that went on elsewhere, in seconds: from the fault, or from when it was noticed."""
        since = self.noticed if self.kind in NOTICED else self.struck.at
        affected = [outcome for outcome in self.outcomes if outcome.affected]
        waits = [longest_wait(outcome.token_at, since) for outcome in affected] if since is not None else []
        return [wait for wait in waits if wait is not None]


def random_kills(
    generator: random.Random, count: int, num_workers: int, kinds: Sequence[str], **requests: Any
) -> tuple[Kill, ...]:
    """Faults of every kind in turn, in random order. requests: what `random_requests` takes."""
    order = [kinds[number % len(kinds)] for number in range(count)]
    generator.shuffle(order)
    return tuple(
        Kill(
            kind=kind,
            victim=generator.randrange(num_workers),
            trial=Trial(
                requests=random_requests(generator, generator.randint(1, MAX_REQUESTS), **requests),
                moment=generator.choice(MOMENTS),
                share=generator.random(),
            ),
        )
        for kind in order
    )


def settings_of(arguments: argparse.Namespace) -> list[Setting]:
    """Every kind of cluster, with the faults divided among those on which each worker holds the whole model."""
    generator = random.Random(arguments.seed)
    counts = Counter(arguments.workers[number % len(arguments.workers)] for number in range(arguments.kills))
    found = [
        Setting(
            name=f"{num_workers} workers",
            workers=(WorkerLimits(),) * num_workers,
            kills=random_kills(generator, count, num_workers, arguments.kinds),
        )
        for num_workers, count in counts.items()
    ]
    if arguments.limited_kills:
        limit = int(LIMITED_SHARE * sum(file.stat().st_size for file in MODEL.glob("model*.safetensors")))
        distributed = [name for name in STRATEGIES if name != "single-device-cached"]
        requests = {"strategies": distributed, "longest": LIMITED_LONGEST}
        found.append(
            Setting(
                name=f"{LIMITED_WORKERS} workers, none with room for the model",
                workers=(WorkerLimits(memory_limit_bytes=limit),) * LIMITED_WORKERS,
                kills=random_kills(generator, arguments.limited_kills, LIMITED_WORKERS, arguments.kinds, **requests),
            )
        )
    return found


class Journal:
    """What was found so far, on disk. file: None for nowhere; of: what a run must be equal in to be taken up."""

    def __init__(self, file: Path | None, of: str):
        self._file = file
        self._found: list[Found] = []
        head, *lines = file.read_bytes().splitlines() if file is not None and file.exists() else [b""]
        if head == of.encode():
            self._found = [msgspec.json.decode(line, type=Found) for line in lines]
        elif file is not None:
            file.write_text(f"{of}\n", encoding="utf-8")

    def __repr__(self) -> str:
        return f"Journal({len(self._found)} faults)"

    def of(self, setting: Setting) -> list[Found]:
        """The faults of a setting that are done, in its order."""
        return [found for found in self._found if found.setting == setting.name]

    def add(self, found: Found) -> None:
        """Another one."""
        self._found.append(found)
        if self._file is not None:
            with self._file.open("ab") as file:
                file.write(msgspec.json.encode(found) + b"\n")

    def end(self) -> None:
        """The run is complete."""
        if self._file is not None:
            self._file.unlink(missing_ok=True)


def sittings(kills: Sequence[Kill], max_deaths: int = MAX_DEATHS) -> list[list[Kill]]:
    """The faults in order, in groups in none of which a worker is lost more than `max_deaths` times."""
    groups: list[list[Kill]] = [[]]
    for kill in kills:
        if sum(earlier.victim == kill.victim for earlier in groups[-1]) == max_deaths:
            groups.append([])
        groups[-1].append(kill)
    return groups


async def measure(setting: Setting, journal: Journal) -> list[Found]:
    """All faults of a setting, on one cluster after the other."""
    kills = setting.kills[len(journal.of(setting)) :]
    if kills:
        async with cluster(MODEL, setting.workers) as quiet:
            right = await undisturbed(quiet, [request for kill in kills for request in kill.trial.requests])
    for group in sittings(kills):
        left = group
        while left:
            left = left[await _sitting(setting, left, right, journal) :]
    return journal.of(setting)


async def _sitting(
    setting: Setting, kills: Sequence[Kill], right: Mapping[Request, Undisturbed], journal: Journal
) -> int:
    """Faults on one cluster, up to one after which it is not ready again; how many."""
    async with cluster(MODEL, setting.workers) as running:
        for number, kill in enumerate(kills, start=1):
            found = await one_kill(running, setting, kill, right)
            journal.add(found)
            print(f"{setting.name}: {_line(kill, found)}", flush=True)
            if found.stuck:
                return number
    return len(kills)


def _line(kill: Kill, found: Found) -> str:
    verdicts = Counter(outcome.verdict for outcome in found.outcomes)
    said = ", ".join(f"{count} {verdict}" for verdict, count in verdicts.items())
    errors = {outcome.error for outcome in found.outcomes if outcome.error} | ({found.stuck} if found.stuck else set())
    pauses = found.pauses()
    longest = f", longest pause {max(pauses):.2f} s" if pauses else ""
    more = f", read more: {'; '.join(found.events)}" if found.read_more else ""
    return f"{kill.kind} in {kill.trial.moment}: {said}{longest}{more}" + "".join(f"; {error}" for error in errors)


async def one_kill(running: Cluster, setting: Setting, kill: Kill, right: Mapping[Request, Undisturbed]) -> Found:
    """One fault, from a cluster that is ready to one that is ready again."""
    num_workers = len(setting.workers)
    before = await until_ready(running, num_workers)
    victim = before["workers"][kill.victim]
    with prepared(kill.kind, victim["pid"]) as fault:
        struck: list[Struck] = []

        def strike() -> float:
            struck.append(fault.strike())
            return struck[0].at

        outcomes = await run_trial(running, kill.trial, right, strike)
        after = await get_json(running.url, "/status")
    said = tuple(event["what"] for event in struck[0].events_since(after))
    stuck = None
    try:
        after |= {"events": (await until_ready(running, num_workers)).get("events", [])}
    except NotReady as error:
        stuck = str(error)
    return Found(
        setting=setting.name,
        kind=kill.kind,
        outcomes=tuple(outcomes),
        struck=struck[0],
        noticed=_noticed(after, victim["name"], struck[0]),
        read_bytes=_read_since(before, after, victim["name"]),
        alone_bytes=_held_alone(before, victim),
        events=said,
        stuck=stuck,
    )


def _noticed(status: Mapping[str, Any], victim: str, struck: Struck) -> float | None:
    """When the cluster first said something of the victim after it was struck."""
    moments = [event["at"] for event in struck.events_since(status) if victim in event["what"]]
    return max(struck.perf_counter_of(min(moments)), struck.at) if moments else None


def _read_since(before: Mapping[str, Any], after: Mapping[str, Any], victim: str) -> int | None:
    """Bytes of weights that survivors read between two statuses; None where the status does not say."""
    counters = [
        {worker["name"]: worker["memory"].get("read_bytes") for worker in status["workers"] if worker["name"] != victim}
        for status in (before, after)
    ]
    if any(value is None for counter in counters for value in counter.values()):
        return None
    return sum(value - counters[0][name] for name, value in counters[1].items())


def _held_alone(before: Mapping[str, Any], victim: Mapping[str, Any]) -> int:
    """Bytes of weights that no other worker held: all of the victim's stage, or none beside a full model."""
    others = [worker for worker in before["workers"] if worker["name"] != victim["name"]]
    return 0 if any(worker["holds_full_model"] for worker in others) else victim["memory"]["weights_bytes"]


async def run(arguments: argparse.Namespace) -> Report:
    """All settings, one after the other. Raises UsageError for a kind of fault that is not possible here."""
    check_kinds(tuple(arguments.kinds))
    of = f"{arguments.kills} {arguments.limited_kills} {arguments.workers} {arguments.kinds} {arguments.seed}"
    journal = Journal(Path(arguments.json).with_suffix(".journal") if arguments.json else None, of)
    found = [of_kill for setting in settings_of(arguments) for of_kill in await measure(setting, journal)]
    report = Report("kills")
    report.fact("machine", machine.describe())
    report.fact("model", "the bundled one, float32")
    report.fact("faults", f"{len(found)}, seed {arguments.seed}")
    outcomes = [outcome for of_kill in found for outcome in of_kill.outcomes]
    _add_verdicts(report, found, outcomes)
    _add_pauses(report, found, arguments.kinds)
    _add_reading(report, found)
    report.data["kills"] = [msgspec.to_builtins(of_kill) for of_kill in found]
    journal.end()
    return report


def _add_verdicts(report: Report, found: Sequence[Found], outcomes: Sequence[Outcome]) -> None:
    groups: dict[str, Sequence[Outcome]] = {"all": outcomes}
    groups |= {strategy: [one for one in outcomes if one.strategy == strategy] for strategy in STRATEGIES}
    groups |= {f"in {moment}": [one for one in outcomes if one.moment == moment] for moment in MOMENTS}
    groups |= {
        name: [one for of_kill in found if of_kill.setting == name for one in of_kill.outcomes]
        for name in dict.fromkeys(of_kill.setting for of_kill in found)
    }
    rows = [
        [name, len(of), sum(one.affected for one in of), *(_count(of, verdict) for verdict in VERDICTS)]
        for name, of in groups.items()
    ]
    report.table("requests", ["requests", "number", "went on elsewhere", *VERDICTS], rows)
    for verdict in FAULTS:
        report.check(f"requests that ended {verdict}", _count(outcomes, verdict), at_most=0)
    report.check("clusters that were not ready again", sum(of_kill.stuck is not None for of_kill in found), at_most=0)
    for number, error in enumerate(dict.fromkeys(one.error for one in outcomes if one.error), 1):
        report.fact(f"error {number}", error)


def _count(outcomes: Iterable[Outcome], verdict: str) -> int:
    return sum(outcome.verdict == verdict for outcome in outcomes)


def _add_pauses(report: Report, found: Sequence[Found], kinds: Sequence[str]) -> None:
    rows, bars = [], []
    for kind in kinds:
        of_kind = [of_kill for of_kill in found if of_kill.kind == kind]
        pauses = summarize([pause for of_kill in of_kind for pause in of_kill.pauses()])
        noticing = summarize([of.noticed - of.struck.at for of in of_kind if of.noticed is not None])
        times = [pauses.median, pauses.p99, pauses.largest] if pauses else [None] * 3
        since = "noticed" if kind in NOTICED else "it happened"
        rows.append([kind, len(of_kind), since, *times, noticing.median if noticing else None])
        report.check(f"{kind}: median pause in s", pauses.median if pauses else None, at_most=PAUSE_LIMIT_S)
        bars += [Bar(f"{kind}, median", pauses.median), Bar(f"{kind}, p99", pauses.p99, 1)] if pauses else []
    columns = ["fault", "number", "since", "pause s", "p99", "longest", "noticed after s"]
    report.table("pause until the next token, of streams that went on elsewhere", columns, rows)
    report.figure = bar_chart("Pause of a stream whose worker was lost", "s", bars)


def _add_reading(report: Report, found: Sequence[Found]) -> None:
    rows = []
    for name in dict.fromkeys(of_kill.setting for of_kill in found):
        counted = [of for of in found if of.setting == name and of.read_bytes is not None and of.num_losses <= 1]
        alone, read = sum(of.alone_bytes for of in counted), sum(of.read_bytes or 0 for of in counted)
        more = sum(of.read_more for of in counted)
        rows.append([name, len(counted), alone / 1e6, read / 1e6, more])
        if counted:
            report.check(f"{name}: losses after which more was read than the lost worker alone held", more, at_most=0)
    columns = ["workers", "losses counted", "held alone, MB", "read, MB", "read more"]
    report.table("weights that survivors read after a loss", columns, rows)


def options(parser: argparse.ArgumentParser) -> None:
    """What this benchmark takes."""
    parser.add_argument("--kills", type=int, default=200)
    parser.add_argument("--limited-kills", type=int, default=20, help="more, on workers without room for the model")
    parser.add_argument("--workers", type=_numbers, default=[2, 3, 4], metavar="N,N", help="sizes of clusters")
    parser.add_argument("--kinds", type=_words, default=list(possible_kinds()), metavar="KIND,KIND")
    parser.add_argument("--seed", type=int, default=0)


def _numbers(text: str) -> list[int]:
    return [int(part) for part in text.split(",")]


def _words(text: str) -> list[str]:
    return text.split(",")


if __name__ == "__main__":
    quick = {"kills": 2, "limited_kills": 0, "workers": [2], "kinds": ["killed"]}
    raise SystemExit(main("kills", __doc__, options, run, quick=quick))
