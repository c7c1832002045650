"""Three hosts in namespaces: what becomes of streams when a cable between two of them, or the power of one, fails.

Each host has a user, a path and a home of its own; between each two there is a fast cable, and a slow wifi joins all. The
cluster is brought up as people do it: `start` on one, and the command that `token new` prints on the others. Streams run over
all three hosts; at a random token a cable between two neighbours in the pipeline is *cut* (silently), *one way*, *unplugged*,
*reset* or *slow* (a hundredth), or a host loses its power. Every stream must bring the text that it brings undisturbed. A pause
is the longest time that a stream brings nothing from then on. Afterwards the cable is healed, or the host started and its
worker's command pasted again; the next fault waits until every link in use is a cable again. Needs Linux and its superuser.
"""

import argparse
import json
import random
import threading
import time
from collections.abc import Callable, Collection, Sequence
from typing import Any

import msgspec
from mlx_lm.utils import load_tokenizer

from benchmarks.support import machine
from benchmarks.support.arithmetic import gaps, summarize
from benchmarks.support.figures import Bar, bar_chart
from benchmarks.support.main import main
from benchmarks.support.reporting import Report
from cluster.config import BUNDLED_MODEL
from protocol.errors import TandemError
from tests.hosts.bed import Bed
from tests.hosts.cluster import HostsCluster, num_parts
from tests.hosts.tools import why_no_bed

MODEL = machine.CHECKOUT / BUNDLED_MODEL
KINDS = ("cut", "one_way", "unplug", "reset", "slow")
SLOW_SHARE = 0.01
HOST_OF = {"local": "a", "host-b": "b", "host-c": "c"}
NUM_TOKENS = 400
PAUSE_LIMIT_S = 5.0
LONG_PROMPT = "A fox and a hen met at the old bridge by the river. "
LONG_TIMES = 110
READING_S = 1.0


class Stream:
    """One answer as it arrives: when each piece came, and the text."""

    def __init__(self, cluster: HostsCluster, prompt: str, end_tokens: Sequence[int]):
        self._process = cluster.ask(
            prompt=prompt,
            max_tokens=NUM_TOKENS,
            stream=True,
            logit_bias={str(token): -100 for token in end_tokens},
        )
        self.prompt = prompt
        self.times: list[float] = []
        self.text = ""
        self.error: str | None = None
        self._thread = threading.Thread(target=self._read, daemon=True)
        self._thread.start()

    def __repr__(self) -> str:
        return f"Stream({len(self.times)} pieces)"

    def _read(self) -> None:
        assert self._process.stdout is not None
        for line in self._process.stdout:
            if not line.startswith("data: {"):
                continue
            piece = json.loads(line.removeprefix("data: "))
            if "error" in piece:
                self.error = piece["error"]["message"]
            elif piece["choices"]:
                self.times.append(time.monotonic())
                self.text += piece["choices"][0]["text"]

    def ended(self) -> "Stream":
        """Once it has."""
        self._thread.join()
        self._process.wait()
        return self


class Found(msgspec.Struct, kw_only=True):
    """One fault. right: streams with the text of an undisturbed one; pause_s: the longest of any; back_s: from the mending until
    the cable, or after a loss of power every cable, was seen in use again, None where the run ended before.
    """

    kind: str
    streams: int
    right: int
    errors: tuple[str, ...]
    pause_s: float
    mended_at: float
    back_s: float | None = None


class Trials:
    """Faults on one cluster, one after the other. reading_s: undisturbed, from the first long prompt to the last one's first token."""

    def __init__(self, cluster: HostsCluster, generator: random.Random, num_streams: int):
        self._cluster = cluster
        self._random = generator
        self._short = [f"Tell me story {number} about a fox." for number in range(num_streams)]
        self._long = [f"Story {number}. {LONG_PROMPT * LONG_TIMES}" for number in range(num_streams)]
        self._end_tokens = sorted(load_tokenizer(MODEL).eos_token_ids)
        self._right = {prompt: self._stream(prompt).ended().text for prompt in self._short + self._long}
        self._avoided: dict[frozenset[str], Found] = {}
        begun = time.monotonic()
        others = [self._stream(f"Undisturbed. {prompt}") for prompt in self._long]
        self.reading_s = max(stream.ended().times[0] for stream in others) - begun

    def __repr__(self) -> str:
        return f"Trials({len(self._short)} streams)"

    def _stream(self, prompt: str) -> Stream:
        return Stream(self._cluster, prompt, self._end_tokens)

    def cable(self, kind: str) -> Found:
        """One fault of a cable that is in use between neighbours."""
        bed = self._cluster.bed
        one, other = self._neighbours()
        faults: dict[str, Callable[[], None]] = {
            "cut": lambda: bed.cut(one, other),
            "one_way": lambda: bed.one_way(one, other),
            "unplug": lambda: bed.unplug(one, other),
            "reset": lambda: bed.reset(one, other),
            "slow": lambda: bed.slow(one, other, SLOW_SHARE),
        }
        streams = self._running()
        found = self._fault(kind, streams, faults[kind], bed.heal)
        self._avoided[frozenset((one, other))] = found
        return found

    def power(self, *, reading: bool) -> Found:
        """A host without the coordinator loses its power, and comes back. reading: before any stream has its first token."""
        self.settle()
        bed, host = self._cluster.bed, self._random.choice("bc")

        def again() -> None:
            bed.power_on(host)
            self._cluster.invite(host)

        if reading:
            streams = [self._stream(prompt) for prompt in self._long]
            time.sleep(self._random.random() * READING_S)
        else:
            streams = self._running()
        kind = "power" if any(stream.times for stream in streams) else "power, reading"
        found = self._fault(kind, streams, lambda: bed.power_cut(host), again)
        self.settle()
        found.back_s = time.monotonic() - found.mended_at
        return found

    def settle(self) -> None:
        """Wait until every link in use is a cable."""
        self._cluster.await_parts(3)
        self._back(self._cluster.await_cables())

    def _running(self) -> list[Stream]:
        streams = [self._stream(prompt) for prompt in self._short]
        after = self._random.randrange(5, NUM_TOKENS // 2)
        while min(len(stream.times) for stream in streams) < after:
            time.sleep(0.01)
        return streams

    def _neighbours(self) -> tuple[str, str]:
        """A random one of the pairs that pass something on, and use their cable."""

        def pairs(status: dict[str, Any]) -> list[tuple[str, str]]:
            workers = sorted(status["workers"], key=lambda worker: (worker["layers"] or [0])[0])
            in_order = [HOST_OF[worker["host"]] for worker in workers]
            return [each for each in zip(in_order, in_order[1:] + in_order[:1], strict=True) if is_cabled(status, each)]

        status = self._cluster.await_status(
            lambda status: num_parts(status) == 3 and bool(pairs(status)), "a link that is a cable"
        )
        self._back(status)
        return self._random.choice(pairs(status))

    def _back(self, status: dict[str, Any]) -> None:
        """Which of the avoided cables are in use again."""
        for pair in [pair for pair in self._avoided if is_cabled(status, pair)]:
            found = self._avoided.pop(pair)
            found.back_s = time.monotonic() - found.mended_at

    def _fault(
        self, kind: str, streams: Sequence[Stream], begin: Callable[[], None], mend: Callable[[], None]
    ) -> Found:
        at = time.monotonic()
        begin()
        ended = [stream.ended() for stream in streams]
        mended_at = time.monotonic()
        mend()
        found = Found(
            kind=kind,
            streams=len(ended),
            right=sum(stream.text == self._right[stream.prompt] for stream in ended),
            errors=tuple(stream.error for stream in ended if stream.error is not None),
            pause_s=max(
                max(gaps([at, *(when for when in stream.times if when > at)]), default=0.0) for stream in ended
            ),
            mended_at=mended_at,
        )
        print(found, flush=True)
        return found


def is_cabled(status: dict[str, Any], pair: Collection[str]) -> bool:
    """Whether both directions between two hosts, as the bed calls them, go over their cable."""
    host_of = {worker["name"]: HOST_OF[worker["host"]] for worker in status["workers"]}
    used = [
        link
        for link in status["links"]
        if link["in_use"] and {host_of.get(link["from"]), host_of.get(link["to"])} == {*pair}
    ]
    return len(used) == 2 and all(link["interface"].startswith("tb-") for link in used)


def run(arguments: argparse.Namespace) -> Report:
    """All faults. Raises TandemError where this machine cannot make hosts."""
    if why := why_no_bed():
        raise TandemError(why)
    with Bed() as bed:
        cluster = HostsCluster(bed)
        cluster.start()
        try:
            cluster.invite("b", "c")
            cluster.await_parts(3)
            status = cluster.await_cables()
            trials = Trials(cluster, random.Random(arguments.seed), arguments.streams)
            found = [trials.cable(KINDS[number % len(KINDS)]) for number in range(arguments.faults)]
            trials.settle()
            found += [trials.power(reading=number % 2 == 1) for number in range(arguments.power_cuts)]
        finally:
            cluster.stop()
    report = Report("hosts")
    report.fact("machine", machine.describe())
    report.fact("model", f"the bundled one, float32; three hosts, {arguments.streams} streams of {NUM_TOKENS} tokens")
    report.fact("undisturbed", f"all long prompts are read after {trials.reading_s:.1f} s")
    report.fact("faults", f"{len(found)}, seed {arguments.seed}")
    _add_links(report, status)
    _add_faults(report, found)
    return report


def _add_links(report: Report, status: dict[str, Any]) -> None:
    columns = ["from", "to", "over", "there and back, us", "MB/s", "in use"]
    rows = [
        [
            link["from"],
            link["to"],
            link["interface"],
            link["round_trip_us"],
            round((link["bytes_per_s"] or 0) / 1e6),
            "yes" if link["in_use"] else "",
        ]
        for link in status["links"]
        if link["round_trip_us"] is not None
    ]
    report.table("links as they were measured", columns, rows)


def _add_faults(report: Report, found: Sequence[Found]) -> None:
    rows, bars = [], []
    for kind in dict.fromkeys(one.kind for one in found):
        of_kind = [one for one in found if one.kind == kind]
        pause = summarize([one.pause_s for one in of_kind])
        back = summarize([one.back_s for one in of_kind if one.back_s is not None])
        assert pause is not None
        assert back is not None
        right = f"{sum(one.right for one in of_kind)} of {sum(one.streams for one in of_kind)}"
        rows.append([kind.replace("_", " "), len(of_kind), right, pause.median, pause.largest, back.median])
        bars.append(Bar(kind.replace("_", " "), pause.median))
    columns = ["fault", "number", "streams with the right text", "pause, s, median", "longest", "back on cables, s"]
    report.table("faults", columns, rows)
    report.figure = bar_chart("Longest pause of eight streams", "s", bars)
    wrong = sum(one.streams - one.right for one in found)
    report.check("streams that ended otherwise", wrong, at_most=0)
    cables = [one.pause_s for one in found if one.kind in KINDS]
    report.check("longest pause after a fault of a cable, s", max(cables, default=0.0), at_most=PAUSE_LIMIT_S)
    for number, error in enumerate({error for one in found for error in one.errors}, 1):
        report.fact(f"error {number}", error)
    report.data["faults"] = [msgspec.to_builtins(one) for one in found]


def options(parser: argparse.ArgumentParser) -> None:
    """What this benchmark takes."""
    parser.add_argument("--faults", type=int, default=100, help="of cables")
    parser.add_argument("--power-cuts", type=int, default=20)
    parser.add_argument("--streams", type=int, default=8, help="at a time")
    parser.add_argument("--seed", type=int, default=0)


if __name__ == "__main__":
    raise SystemExit(main("hosts", __doc__, options, run, quick={"faults": 1, "power_cuts": 0, "streams": 2}))
