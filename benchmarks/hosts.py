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
from collections.abc import Callable, Sequence
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
from tests.hosts.cluster import HostsCluster
from tests.hosts.tools import why_no_bed

MODEL = machine.CHECKOUT / BUNDLED_MODEL
KINDS = ("cut", "one_way", "unplug", "reset", "slow")
SLOW_SHARE = 0.01
HOST_OF = {"local": "a", "host-b": "b", "host-c": "c"}
NUM_TOKENS = 400
PAUSE_LIMIT_S = 5.0


class Stream:
    """One answer as it arrives: when each piece came, and the text."""

    def __init__(self, cluster: HostsCluster, prompt: str, end_tokens: Sequence[int]):
        self._process = cluster.ask(
            prompt=prompt,
            max_tokens=NUM_TOKENS,
            stream=True,
            logit_bias={str(token): -100 for token in end_tokens},
        )
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


class Found(msgspec.Struct, frozen=True, kw_only=True):
    """One fault. right: streams with the text of an undisturbed one; pause_s: the longest of any; back_s: from the mending until
    every link is a cable again.
    """

    kind: str
    streams: int
    right: int
    errors: tuple[str, ...]
    pause_s: float
    back_s: float


class Trials:
    """Faults on one cluster, one after the other."""

    def __init__(self, cluster: HostsCluster, generator: random.Random, num_streams: int):
        self._cluster = cluster
        self._random = generator
        self._prompts = [f"Tell me story {number} about a fox." for number in range(num_streams)]
        self._end_tokens = sorted(load_tokenizer(MODEL).eos_token_ids)
        self._right = [stream.ended().text for stream in self._streams()]

    def __repr__(self) -> str:
        return f"Trials({len(self._prompts)} streams)"

    def _streams(self) -> list[Stream]:
        return [Stream(self._cluster, prompt, self._end_tokens) for prompt in self._prompts]

    def cable(self, kind: str) -> Found:
        """One fault of a cable between neighbours."""
        bed = self._cluster.bed
        one, other = self._neighbours()
        faults: dict[str, Callable[[], None]] = {
            "cut": lambda: bed.cut(one, other),
            "one_way": lambda: bed.one_way(one, other),
            "unplug": lambda: bed.unplug(one, other),
            "reset": lambda: bed.reset(one, other),
            "slow": lambda: bed.slow(one, other, SLOW_SHARE),
        }
        return self._fault(kind, faults[kind], bed.heal)

    def power(self) -> Found:
        """A host without the coordinator loses its power, and comes back."""
        bed, host = self._cluster.bed, self._random.choice("bc")

        def again() -> None:
            bed.power_on(host)
            self._cluster.invite(host)

        return self._fault("power", lambda: bed.power_cut(host), again)

    def _neighbours(self) -> tuple[str, str]:
        workers = sorted(self._cluster.await_parts(3)["workers"], key=lambda worker: worker["layers"][0])
        in_order = [HOST_OF[worker["host"]] for worker in workers]
        first = self._random.randrange(2)
        return in_order[first], in_order[first + 1]

    def _fault(self, kind: str, begin: Callable[[], None], mend: Callable[[], None]) -> Found:
        self._cluster.await_cables()
        streams = self._streams()
        after = self._random.randrange(5, NUM_TOKENS // 2)
        while min(len(stream.times) for stream in streams) < after:
            time.sleep(0.01)
        at = time.monotonic()
        begin()
        ended = [stream.ended() for stream in streams]
        mended_at = time.monotonic()
        mend()
        self._cluster.await_parts(3)
        self._cluster.await_cables()
        found = Found(
            kind=kind,
            streams=len(ended),
            right=sum(stream.text == right for stream, right in zip(ended, self._right, strict=True)),
            errors=tuple(stream.error for stream in ended if stream.error is not None),
            pause_s=max(
                max(gaps([at, *(when for when in stream.times if when > at)]), default=0.0) for stream in ended
            ),
            back_s=time.monotonic() - mended_at,
        )
        print(found, flush=True)
        return found


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
            found += [trials.power() for _ in range(arguments.power_cuts)]
        finally:
            cluster.stop()
    report = Report("hosts")
    report.fact("machine", machine.describe())
    report.fact("model", f"the bundled one, float32; three hosts, {arguments.streams} streams of {NUM_TOKENS} tokens")
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
        pause, back = summarize([one.pause_s for one in of_kind]), summarize([one.back_s for one in of_kind])
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
    cables = [one.pause_s for one in found if one.kind != "power"]
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
