"""The coordinator and its HTTP alone: tokens per second over many streams on one core, and the latency that it adds.

Workers are replaced by a process that sends tokens at a set pace and notes when. The latency of a token is the time from
there (`send` of the message that holds it) to the arrival of its event at the client's socket. The coordinator, with all
its threads, has one core; the fake worker and the client share another.
"""

import argparse
import contextlib
import os
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from statistics import median

import msgspec
from tokenizers import Tokenizer

from benchmarks.support import machine
from benchmarks.support.arithmetic import summarize
from benchmarks.support.fake_stages import PACE_FILE, SENT_FILE, Pace
from benchmarks.support.figures import Bar, bar_chart
from benchmarks.support.main import main
from benchmarks.support.many_streams import Arrivals, read_streams
from benchmarks.support.open_dashboards import open_dashboards
from benchmarks.support.own_coordinator import own_coordinator
from benchmarks.support.random_models import MARK, SIZES, ensure_model
from benchmarks.support.reporting import Report
from cluster.settings import ApiSettings, ModelSettings, Settings, WorkerSettings
from protocol.home import Home

MODEL = "25m-4bit"
_PATIENCE_S = 60.0


class Found(msgspec.Struct, frozen=True, kw_only=True):
    """One run. Seconds; dashboards: that were open beside; busy_share: of one core, what the coordinator used; pieces: reads that
    brought tokens.
    """

    dashboards: int
    offered: float
    reached: float
    latency_s: tuple[float, ...]
    busy_share: float
    pieces: int
    tokens: int


def measure(home: Home, port: int, pid: int, pace: Pace, seconds: float, dashboards: int = 0) -> Found:
    """Run all streams to their end at one pace. Raises RuntimeError when a stream fails."""
    num_tokens = max(2, round(pace.tokens_per_s * seconds / pace.streams))
    (home.root / SENT_FILE).unlink(missing_ok=True)
    (home.root / PACE_FILE).write_bytes(msgspec.json.encode(pace))
    with open_dashboards(port, dashboards):
        cpu = machine.cpu_seconds(pid)
        found = read_streams(port, [_request(num_tokens)] * pace.streams, MARK.encode(), seconds + _PATIENCE_S)
        cpu = machine.cpu_seconds(pid) - cpu
    sent = _sent_times(home.root / SENT_FILE)
    if broken := [arrivals for arrivals in found if len(arrivals.times()) != num_tokens]:
        raise RuntimeError(f"{len(broken)} of {pace.streams} streams were incomplete")
    latency = [late for arrivals in found for late in _latencies(arrivals, sent)]
    arrived = [moment for arrivals in found for moment in arrivals.times()]
    duration = max(arrived) - min(min(times) for times in sent.values())
    return Found(
        dashboards=dashboards,
        offered=pace.tokens_per_s,
        reached=len(arrived) / duration,
        latency_s=tuple(latency),
        busy_share=cpu / duration,
        pieces=sum(len(arrivals.pieces) for arrivals in found),
        tokens=len(arrived),
    )


def _latencies(arrivals: Arrivals, sent: dict[int, list[float]]) -> list[float]:
    assert arrivals.sequence is not None
    return [came - went for went, came in zip(sent[arrivals.sequence], arrivals.times(), strict=True)]


def _sent_times(file: Path) -> dict[int, list[float]]:
    deadline = time.monotonic() + _PATIENCE_S
    while not file.exists():
        if time.monotonic() > deadline:
            raise RuntimeError("the fake worker did not say when it sent its tokens")
        time.sleep(0.05)
    times: dict[int, list[float]] = msgspec.msgpack.decode(file.read_bytes(), type=dict[int, list[float]])
    return times


def _request(num_tokens: int) -> bytes:
    fields = {"prompt": [1, 2, 3, 4], "max_tokens": num_tokens, "stream": True, "strategy": "single-device-cached"}
    body = msgspec.json.encode(fields)
    head = (
        f"POST /v1/completions HTTP/1.1\r\nHost: bench\r\nContent-Type: application/json\r\nContent-Length: {len(body)}"
    )
    return head.encode() + b"\r\n\r\n" + body


@contextlib.contextmanager
def coordinator_alone(home: Home, pace: Pace) -> Iterator[tuple[int, int]]:
    """A coordinator with a fake worker; its port and pid."""
    port = machine.free_port()
    settings = Settings(
        model=ModelSettings(path=str(ensure_model(MODEL, machine.model_folder()))),
        api=ApiSettings(port=port, max_queue=4096),
        workers=(WorkerSettings(name="worker-0"),),
    )
    home.create()
    (home.root / PACE_FILE).write_bytes(msgspec.json.encode(pace))
    with own_coordinator("benchmarks.support.coordinator_alone", home, settings) as pid:
        yield port, pid


def run(arguments: argparse.Namespace) -> Report:
    """The full pace, half of it, and a tenth; each with no dashboard and, where that is asked for, with some open beside."""
    model = ensure_model(MODEL, machine.model_folder())
    token = Tokenizer.from_file(str(model / "tokenizer.json")).token_to_id(MARK)
    assert token is not None
    full = Pace(
        tokens_per_s=arguments.tokens_per_s,
        streams=arguments.streams,
        rows=arguments.rows,
        token=token,
        num_layers=SIZES[MODEL.partition("-")[0]].layers,
    )
    shares = (1.0, 0.5, 0.1)
    paces = [msgspec.structs.replace(full, tokens_per_s=share * full.tokens_per_s) for share in shares]
    report = Report("coordinator")
    with tempfile.TemporaryDirectory(prefix="tandem-bench-") as folder:
        home = Home(Path(folder) / "home")
        with coordinator_alone(home, full) as (port, pid):
            pinned = machine.pin(pid, [0])
            machine.pin(os.getpid(), [(os.cpu_count() or 1) - 1])
            found = [
                measure(home, port, pid, pace, arguments.seconds, dashboards)
                for pace in paces
                for dashboards in sorted({0, arguments.dashboard})
            ]
    report.fact("machine", machine.describe())
    report.fact("coordinator", "all its threads on one core" if pinned else "not pinned: this system has no such call")
    report.fact("load", f"{full.streams} streams, {full.rows} in a message, {arguments.seconds:g} s a pace")
    _conclude(report, found)
    return report


def _conclude(report: Report, found: list[Found]) -> None:
    rows = []
    for of_pace in found:
        latency = summarize(of_pace.latency_s)
        assert latency is not None
        together = of_pace.tokens / of_pace.pieces
        times = [value * 1000 for value in (latency.median, latency.p99, latency.largest)]
        rates = [of_pace.dashboards, of_pace.offered, of_pace.reached]
        rows.append([*rates, *times, f"{of_pace.busy_share:.1%}", together])
    columns = [
        "dashboards",
        "offered tokens/s",
        "reached",
        "latency ms",
        "p99",
        "largest",
        "of a core",
        "tokens a read",
    ]
    report.table("coordinator and HTTP, from the head's send to the client's socket", columns, rows)
    alone = [of_pace for of_pace in found if not of_pace.dashboards]
    report.check("tokens/s on one core", alone[0].reached, at_least=0.99 * alone[0].offered)
    report.check("p99 latency in ms at half of that", _p99_ms(alone[1]), at_most=1.0)
    if watched := [of_pace for of_pace in found if of_pace.dashboards]:
        _compare(report, alone, watched)
    report.data["runs"] = [msgspec.to_builtins(of_pace) | {"latency_s": []} for of_pace in found]
    bars = [Bar(f"{of_pace.offered:,.0f} tokens/s", _p99_ms(of_pace)) for of_pace in alone]
    report.figure = bar_chart("Latency added, 99th percentile", "ms", bars)


def _compare(report: Report, alone: list[Found], watched: list[Found]) -> None:
    """What open dashboards cost, at each pace."""
    report.check("tokens/s with dashboards open, of that without", watched[0].reached / alone[0].reached, at_least=0.97)
    shares = [of_pace.busy_share - other.busy_share for of_pace, other in zip(watched, alone, strict=True)]
    report.check("of a core for open dashboards, at the median pace", median(shares), at_most=0.02)


def _p99_ms(found: Found) -> float:
    latency = summarize(found.latency_s)
    return latency.p99 * 1000 if latency else 0.0


def options(parser: argparse.ArgumentParser) -> None:
    """What this benchmark takes."""
    parser.add_argument("--tokens-per-s", type=float, default=20_000)
    parser.add_argument("--streams", type=int, default=256)
    parser.add_argument("--rows", type=int, default=32, help="sequences in a message; a slot of a head has at most 32")
    parser.add_argument("--seconds", type=float, default=10.0, help="for each pace")
    parser.add_argument("--dashboard", type=int, default=0, help="also with so many dashboards open beside")


if __name__ == "__main__":
    raise SystemExit(
        main("coordinator", __doc__, options, run, quick={"tokens_per_s": 2000, "streams": 64, "seconds": 1.0})
    )
