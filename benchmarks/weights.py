"""Weights over the cable: how fast a host fetches half of a model from another one, and how much more than its layers need.

Two hosts of a bed (tests/hosts) share this machine and have a cable between them. One gives a random model, the other measures
the cable by the echo, as workers do, and then fetches the second half of the layers into a fresh folder, several times: over a
cable that is as fast as this machine can be, over one of 1 Gbit/s, and once more over that while it is cut in the middle of it
for longer than a host may be silent. Both ends share the processors of this machine, which encrypt and check at once what two
machines would do apart. In the first round the giving host also computes the hashes, which it keeps.
"""

import argparse
import contextlib
import json
import shutil
import statistics
import threading
from collections.abc import Iterator
from pathlib import Path

import msgspec

from benchmarks.support import machine
from benchmarks.support.main import main
from benchmarks.support.random_models import ensure_model, known_models
from benchmarks.support.reporting import Report
from benchmarks.support.weights_ends import Fetched, Given
from protocol.errors import TandemError
from protocol.model_digest import model_digest
from protocol.transport import KeyPair
from tests.hosts.bed import Bed, OnHost
from tests.hosts.tools import why_no_bed

_LIMIT_S = 300.0
MOST_EXCESS, LEAST_SHARE = 1.02, 0.8
# Of the cable's 10 Gbit/s; None: as fast as it goes.
SHARES = {"no limit": None, "1 Gbit/s": 0.1}
CUT = "1 Gbit/s, cut"
# Of the bytes that come, before the cable is cut; and for how long.
CUT_AFTER, CUT_S = 0.4, 15.0


def run(arguments: argparse.Namespace) -> Report:
    """Fetch as often as asked for. Raises TandemError where this machine can have no bed, or an end fails."""
    if why := why_no_bed():
        raise TandemError(f"hosts cannot be had here: {why}")
    path = ensure_model(arguments.model, machine.model_folder())
    num_layers = json.loads((path / "config.json").read_bytes())["num_hidden_layers"]
    with Bed(2) as bed:
        found = measured(bed, path, (num_layers // 2, num_layers), arguments.rounds)
    report = Report("weights")
    report.fact("machine", machine.describe())
    report.fact("model", f"{arguments.model}, layers {num_layers // 2}-{num_layers - 1} of {num_layers}")
    report.table(
        "fetching half of the layers",
        ["cable", "MB needed", "MB fetched", "seconds", "MB/s", "MB/s of the link"],
        [
            [
                cable,
                each.needed_bytes / 1e6,
                each.fetched_bytes / 1e6,
                each.seconds,
                each.fetched_bytes / each.seconds / 1e6,
                each.link_bytes_per_s / 1e6,
            ]
            for cable, each in found
        ],
    )
    excess = max(each.fetched_bytes / each.needed_bytes for _, each in found)
    report.check("bytes fetched / needed", excess, at_most=MOST_EXCESS)
    for cable in SHARES:
        shares = [each.fetched_bytes / each.seconds / each.link_bytes_per_s for of, each in found if of == cable]
        what = f"share of the link's bandwidth, median, {cable}"
        report.check(what, statistics.median(shares), at_least=LEAST_SHARE)
    report.data["rounds"] = [{"cable": cable} | msgspec.to_builtins(each) for cable, each in found]
    return report


def measured(bed: Bed, path: Path, layers: tuple[int, int], rounds: int) -> list[tuple[str, Fetched]]:
    """Host b fetches from host a, over which cable. Raises TandemError when an end fails."""
    there = Path("/root") / path.name
    shutil.copytree(path, bed.hosts["a"].outside(there))
    giver, taker = KeyPair.generate(), KeyPair.generate()
    with _end(bed, "a", "give", Given(own=giver, other=taker.public, model=str(there))) as giving:
        assert giving.stdout is not None
        ports = json.loads(giving.stdout.readline() or "{}")
        if not ports:
            raise TandemError("the host that gives the model ended; run this benchmark again")
        told = Given(
            own=taker,
            other=giver.public,
            address=bed.address("a", "tb-b"),
            digest=model_digest(path),
            layers=layers,
            **ports,
        )
        try:
            found = []
            for cable, share in SHARES.items():
                if share is not None:
                    bed.slow("a", "b", share)
                found += [(cable, _fetched(bed, told)) for _ in range(rounds)]
            with _cut(bed, CUT_AFTER * found[-1][1].needed_bytes):
                found.append((CUT, _fetched(bed, told)))
            return found
        finally:
            giving.kill()


@contextlib.contextmanager
def _cut(bed: Bed, after_bytes: float) -> Iterator[None]:
    """Meanwhile the cable is cut, once so many bytes have come by it, and mended. Raises TandemError when they do not come."""
    before, is_over = _received(bed), threading.Event()

    def cut() -> None:
        while _received(bed) < before + after_bytes:
            if is_over.wait(0.02):
                return
        bed.cut("a", "b")
        was_cut.set()
        is_over.wait(CUT_S)
        bed.heal()

    was_cut = threading.Event()
    thread = threading.Thread(target=cut)
    thread.start()
    try:
        yield
    finally:
        is_over.set()
        thread.join()
    if not was_cut.is_set():
        raise TandemError("all was fetched before the cable was cut; take a larger model")


def _received(bed: Bed) -> int:
    return bed.counters("b")["tb-a"][0]


def _fetched(bed: Bed, told: Given) -> Fetched:
    with _end(bed, "b", "fetch", told) as fetching:
        answer, _ = fetching.communicate(timeout=_LIMIT_S)
    try:
        return msgspec.json.decode(answer, type=Fetched)
    except msgspec.DecodeError:
        raise TandemError("the host that fetches ended; run this benchmark again") from None


def _end(bed: Bed, host: str, which: str, given: Given) -> OnHost:
    checkout = bed.hosts[host].checkout
    started = bed.popen(
        host,
        str(checkout / ".venv/bin/python"),
        "-m",
        "benchmarks.support.weights_ends",
        which,
        user="root",
        env={"PYTHONPATH": str(checkout)},
        stdin=-1,
        stdout=-1,
        text=True,
    )
    assert started.stdin is not None
    started.stdin.write(msgspec.json.encode(given).decode() + "\n")
    started.stdin.flush()
    return started


def options(parser: argparse.ArgumentParser) -> None:
    """What this benchmark takes."""
    parser.add_argument("--model", choices=known_models(), default="160m-float32")
    parser.add_argument("--rounds", type=int, default=3)


if __name__ == "__main__":
    raise SystemExit(main("weights", __doc__, options, run, quick={"model": "25m-float32", "rounds": 3}))
