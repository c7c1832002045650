"""What one hop from stage to stage adds, in microseconds: half of a round trip between two processes, array to array.

Tandem's way (encrypted, with header, reading thread, encoding and decoding of the payload) beside ZeroMQ without
encryption and thread, and beside a raw TCP ping-pong of the same bytes, which has no array at either end. Each process
has a core of its own. Where namespaces can be made, Tandem's way once more between two hosts, over a veth cable.
"""

import argparse
import contextlib
import os
import subprocess
import sys
import time
from typing import NoReturn

import mlx.core as mx
import msgspec

from benchmarks.support import machine
from benchmarks.support.arithmetic import summarize, turns
from benchmarks.support.cable import Cable, cable_to_another_host
from benchmarks.support.figures import Bar, bar_chart
from benchmarks.support.hop_ends import BETWEEN_HOSTS, WAYS, Address, Link, make_link
from benchmarks.support.main import main
from benchmarks.support.reporting import Report
from protocol.transport import LOOPBACK
from workers.model import payload

# (what, tokens, width): bfloat16, so 8 KB and 4 MB.
PAYLOADS = (("decode, 8 KB", 1, 4096), ("chunk, 4 MB", 512, 4096))
TITLES = {"tandem": "Tandem", "zeromq": "ZeroMQ, plain", "tcp": "raw TCP", BETWEEN_HOSTS: "Tandem, between hosts"}
HOP_LIMIT_US = 300.0
BETWEEN_HOSTS_LIMIT = 1.15


class EchoProcess:
    """The other end, in a process of its own on another core; at the other end of the `cable` where there is one."""

    def __init__(self, way: str, core: int, cable: Cable | None = None):
        here, there, enter = (cable.here, cable.there, cable.enter) if cable else (LOOPBACK, LOOPBACK, ())
        environment = {**os.environ, "PYTHONPATH": str(machine.CHECKOUT)}
        command = [*enter, sys.executable, "-m", "benchmarks.hop", "--echo"]
        self._process = subprocess.Popen(
            command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, cwd=machine.CHECKOUT, env=environment
        )
        self.link = make_link(way, here)
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        self._process.stdin.write(msgspec.json.encode(Address(way=way, peer=self.link.peer, at=there)) + b"\n")
        self._process.stdin.flush()
        self.link.connect(msgspec.json.decode(self._process.stdout.readline(), type=Address).peer)
        machine.pin(self._process.pid, [core])

    def end(self) -> None:
        """End the process."""
        self._process.kill()
        self._process.wait()


def echo() -> NoReturn:
    """Be the other end: send back whatever comes, until killed or the parent is gone."""
    address = msgspec.json.decode(sys.stdin.buffer.readline(), type=Address)
    link = make_link(address.way, address.at)
    print(msgspec.json.encode(Address(way=address.way, peer=link.peer)).decode(), flush=True)
    link.connect(address.peer)
    while True:
        link.send(link.receive())


def hop_times_us(link: Link, way: str, tokens: int, width: int, count: int) -> list[float]:
    """Microseconds of `count` hops of one payload, after some that do not count."""
    array = mx.random.normal((1, tokens, width)).astype(mx.bfloat16)
    mx.eval(array)
    item = payload.encode(array)[1][0] if way == "tcp" else array
    times = []
    for number in range(count + count // 10 + 2):
        started = time.perf_counter()
        link.send(item)
        link.receive()
        if number > count // 10:
            times.append((time.perf_counter() - started) / 2 * 1e6)
    return times


def run(arguments: argparse.Namespace) -> Report:
    """All ways in alternating turns, for each payload. With --echo, be the other end until killed."""
    if arguments.echo:
        echo()
    report = Report("hop")
    cores = os.cpu_count() or 1
    pinned = machine.pin(os.getpid(), [0])
    report.fact("machine", machine.describe())
    report.fact("cores", "one each for the two processes" if pinned and cores > 1 else "not pinned")
    with cable_to_another_host() as cable, contextlib.ExitStack() as ended:
        ends = {way: EchoProcess(way, 1 % cores) for way in WAYS}
        if cable is not None:
            ends[BETWEEN_HOSTS] = EchoProcess(BETWEEN_HOSTS, 1 % cores, cable)
        for end in ends.values():
            ended.callback(end.end)
        times = _measure(ends, arguments)
    rows, bars = [], []
    medians: dict[tuple[str, str], float] = {}
    for (what, way), measured in times.items():
        found = summarize(measured)
        assert found is not None
        medians[what, way] = found.median
        rows.append([what, TITLES[way], found.median, found.p99, found.smallest])
        bars.append(Bar(f"{what}, {TITLES[way]}", found.median, list(TITLES).index(way)))
        report.data[f"{what}, {way}"] = msgspec.to_builtins(found)
    report.table("one hop", ["payload", "way", "median us", "p99", "smallest"], rows)
    decode = medians[PAYLOADS[0][0], "tandem"]
    report.check("median of a decode hop in microseconds", decode, at_most=HOP_LIMIT_US)
    for what, *_ in PAYLOADS if cable is not None else ():
        ratio = medians[what, BETWEEN_HOSTS] / medians[what, "tandem"]
        report.check(f"{what}: between hosts / on loopback", ratio, at_most=BETWEEN_HOSTS_LIMIT)
    report.figure = bar_chart("One hop", "microseconds, median", bars)
    return report


def _measure(ends: dict[str, EchoProcess], arguments: argparse.Namespace) -> dict[tuple[str, str], list[float]]:
    times: dict[tuple[str, str], list[float]] = {}
    for what, tokens, width in PAYLOADS:
        count = max(arguments.count // tokens, arguments.count // 20, 10)
        for order in turns(list(ends), arguments.rounds):
            for way in order:
                found = hop_times_us(ends[way].link, way, tokens, width, count)
                times.setdefault((what, way), []).extend(found)
    return times


def options(parser: argparse.ArgumentParser) -> None:
    """What this benchmark takes."""
    parser.add_argument("--count", type=int, default=2000, help="hops of the small payload in a round")
    parser.add_argument("--rounds", type=int, default=4)
    parser.add_argument("--echo", action="store_true", help=argparse.SUPPRESS)


if __name__ == "__main__":
    status = main("hop", __doc__, options, run, quick={"count": 100, "rounds": 1})
    sys.stdout.flush()
    os._exit(status)  # reading threads may still wait for the network
