"""More requests than may wait, one client beside another's many, and readers that do not read: who is served how.

A burst: many requests at once from several clients; whoever is refused comes back exactly when told. A neighbour: one
request of one client while another has many under way, beside the same request alone. Readers: streams that are read, alone
and beside streams that are opened and never read; then `stop`, while they are there. The model is a tiny random one: a
reader must be a thousand tokens behind before it counts as one.
"""

import argparse
import asyncio
import contextlib
import random
import socket
import statistics
import time
from collections import Counter
from collections.abc import AsyncIterator
from typing import Any

import msgspec

from benchmarks.support import machine
from benchmarks.support.arithmetic import gaps, summarize
from benchmarks.support.client import Answer, Target, ask_health, checked, get_json, stream
from benchmarks.support.contenders import Cluster, WorkerLimits, cluster, stop
from benchmarks.support.figures import Bar, bar_chart
from benchmarks.support.main import main
from benchmarks.support.reporting import Report
from benchmarks.support.trials import until_ready
from workers.zoo import make_tiny_model

NUM_LAYERS = 8
END_TOKENS = (1,)
CLIENTS = 20
BURST_TOKENS = 8
ONE_TOKENS, MANY_TOKENS = 16, 32
READER_TOKENS, HONEST_TOKENS = 3000, 768
RECEIVE_BUFFER_BYTES = 4096
NEIGHBOUR_RATIO, HONEST_RATIO = 2.0, 0.95
HEALTH_WITHIN_S, STOP_WITHIN_S, PLACES_WITHIN_S = 1.0, 3.0, 75.0
PROMPT_TOKENS, PROMPT_IDS = 16, range(20, 60)
# A letter: a random model may go on for thousands of tokens that are no text yet, of which there is nothing to send.
TEXT_TOKEN = 40
_POLL_S = 0.25
_FREE_LIMIT_S = 600.0
_SOME_BEHIND_S = 75.0

_prompts = random.Random(0)


def a_prompt() -> tuple[int, ...]:
    """One with a beginning of its own: nothing is kept of it, so it pulls nobody to a worker."""
    return tuple(_prompts.choices(PROMPT_IDS, k=PROMPT_TOKENS))


def target_of(running: Cluster, client: str) -> Target:
    """The cluster as this client asks it."""
    return Target(name=client, url=running.url, model=running.model, api_key=client, end_tokens=END_TOKENS)


async def burst(running: Cluster, num_requests: int) -> Counter[str]:
    """All at once; what became of each. Waits are as the server says them."""

    async def one(number: int) -> str:
        target, prompt = target_of(running, f"client-{number % CLIENTS}"), a_prompt()
        first = await stream(target, prompt, BURST_TOKENS)
        if first.error is None:
            return "answered"
        if first.retry_after_s is None:
            return f"failed: {first.error}"
        await asyncio.sleep(first.retry_after_s)
        second = await stream(target, prompt, BURST_TOKENS)
        return "answered when told" if second.error is None else f"refused again: {second.error}"

    return Counter(await asyncio.gather(*(one(number) for number in range(num_requests))))


class Neighbour(msgspec.Struct, frozen=True, kw_only=True):
    """Seconds to the first token of one client's request, alone and beside many of another, and of the longest step of those:
    without a token of any of them.
    """

    alone_s: float
    beside_s: float
    step_s: float


async def neighbour(running: Cluster, num_many: int) -> Neighbour:
    """One round."""
    one, many = target_of(running, "one"), target_of(running, "many")
    alone = checked(await stream(one, a_prompt(), ONE_TOKENS))
    others = [Answer(sent_at=0.0) for _ in range(num_many)]
    tasks = [asyncio.create_task(stream(many, a_prompt(), MANY_TOKENS, into=answer)) for answer in others]
    while not any(answer.text_at for answer in others):  # noqa: ASYNC110 - an answer fills without telling anybody
        await asyncio.sleep(0.01)
    beside = checked(await stream(one, a_prompt(), ONE_TOKENS))
    await asyncio.gather(*tasks)
    step_s = max(gaps(sorted(at for answer in others for at in answer.text_at)))
    return Neighbour(alone_s=alone.ttft_s or 0.0, beside_s=beside.ttft_s or 0.0, step_s=step_s)


@contextlib.asynccontextmanager
async def readers_that_do_not_read(running: Cluster, count: int) -> AsyncIterator[None]:
    """So many streams that are opened, and of which nothing but the first line is read."""
    host, _, port = running.url.removeprefix("http://").partition(":")
    asked = {"max_tokens": READER_TOKENS, "stream": True, "logit_bias": {str(TEXT_TOKEN): 100}}
    writers = []
    try:
        for _ in range(count):
            reader, writer = await asyncio.open_connection(sock=_connected(host, int(port)), limit=1024)
            writers.append(writer)
            body = msgspec.json.encode({"prompt": a_prompt(), **asked})
            head = f"POST /v1/completions HTTP/1.1\r\nHost: localhost\r\nContent-Length: {len(body)}\r\n\r\n"
            writer.write(head.encode() + body)
            await reader.readline()
        yield
    finally:
        for writer in writers:
            writer.transport.abort()


def _connected(host: str, port: int) -> socket.socket:
    """A connection whose end here takes little by itself: what the system has taken counts as read."""
    connection = socket.socket()
    connection.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, RECEIVE_BUFFER_BYTES)
    connection.connect((host, port))
    connection.setblocking(False)
    return connection


async def honest_speed(running: Cluster, num_streams: int) -> float:
    """Tokens per second of streams that are read."""
    target = target_of(running, "honest")
    started = time.perf_counter()
    answers = await asyncio.gather(*(stream(target, a_prompt(), HONEST_TOKENS) for _ in range(num_streams)))
    return sum(checked(answer).num_tokens for answer in answers) / (time.perf_counter() - started)


async def readers(running: Cluster, arguments: argparse.Namespace) -> dict[str, Any]:
    """Speeds alone, at once beside readers, and once they are behind; seconds until no place is theirs.

    Alone is before and after: a shared machine's speed drifts.
    """

    async def speeds() -> list[float]:
        return [await honest_speed(running, arguments.streams) for _ in range(arguments.rounds)]

    before = await speeds()
    async with readers_that_do_not_read(running, arguments.readers):
        began = time.perf_counter()
        at_once = await honest_speed(running, arguments.streams)
        await _until_none(running, "running")
        behind_s = time.perf_counter() - began
        behind = await speeds()
        measured_s = time.perf_counter() - began
        await _until_none(running, "running", "waiting")
        free_s = time.perf_counter() - began
    after = await speeds()
    return {
        "alone": statistics.median(before + after),
        "at once": at_once,
        "behind": statistics.median(behind),
        "rounds": {"before": before, "behind": behind, "after": after},
        "behind_s": behind_s,
        "measured_s": measured_s,
        "free_s": free_s,
    }


async def _until_none(running: Cluster, *states: str) -> None:
    """Until no request is in one of these states, or for long."""
    began = time.perf_counter()
    while time.perf_counter() - began < _FREE_LIMIT_S:
        requests = (await get_json(running.url, "/status"))["requests"]
        if not any(requests[state] for state in states):
            return
        await asyncio.sleep(_POLL_S)


async def run(arguments: argparse.Namespace) -> Report:
    """All three parts on one cluster."""
    model = make_tiny_model("qwen3", machine.model_folder() / "overload", num_hidden_layers=NUM_LAYERS)
    async with cluster(model, [WorkerLimits()] * arguments.workers) as running:
        await until_ready(running, arguments.workers)
        await honest_speed(running, 2)
        await neighbour(running, arguments.many)  # the first one also compiles and fills caches
        rounds = [await neighbour(running, arguments.many) for _ in range(arguments.rounds)]
        print(f"neighbour: {rounds}", flush=True)
        waits: list[float] = []
        asking = asyncio.create_task(ask_health(running.url, waits))
        speeds = await readers(running, arguments)
        print(f"readers: {speeds}", flush=True)
        verdicts = await burst(running, arguments.burst)
        asking.cancel()
        await asyncio.gather(asking, return_exceptions=True)
        async with readers_that_do_not_read(running, arguments.readers):
            await asyncio.sleep(_SOME_BEHIND_S)
            stop_s = await stop(running)
    report = Report("overload")
    report.fact("machine", machine.describe())
    report.fact("model", f"random, of {NUM_LAYERS} tiny layers, float32; {arguments.workers} workers")
    report.table("burst", ["requests", "number"], [[name, count] for name, count in verdicts.most_common(10)])
    told = verdicts["answered"] + verdicts["answered when told"]
    report.check(
        "requests of the burst that were not answered, at once or when told", arguments.burst - told, at_most=0
    )
    _add_neighbour(report, rounds, arguments.many)
    _add_readers(report, speeds, arguments)
    report.check("seconds until /health answers meanwhile, longest", max(waits), at_most=HEALTH_WITHIN_S)
    report.check("seconds until stopped, with readers that do not read", stop_s, at_most=STOP_WITHIN_S)
    report.data |= {"neighbour": [msgspec.to_builtins(one) for one in rounds], "readers": speeds}
    return report


def _add_neighbour(report: Report, rounds: list[Neighbour], num_many: int) -> None:
    alone, beside = (summarize([getattr(one, name) for one in rounds]) for name in ("alone_s", "beside_s"))
    assert alone is not None
    assert beside is not None
    over = statistics.median(one.beside_s - one.step_s - NEIGHBOUR_RATIO * one.alone_s for one in rounds)
    step_s = statistics.median(one.step_s for one in rounds)
    rows = [
        [f"beside {num_many} of another client", beside.median, beside.largest],
        ["alone", alone.median, alone.largest],
    ]
    report.table("first token of one request, s", ["", "median", "longest"], rows)
    report.fact("neighbour", f"the longest step of the others took {step_s * 1000:.0f} ms")
    report.check("seconds to the first token beside others, beyond twice those alone and one step", over, at_most=0)
    report.figure = bar_chart("First token of one request", "s", [Bar(str(row[0]), float(row[1])) for row in rows])


def _add_readers(report: Report, speeds: dict[str, Any], arguments: argparse.Namespace) -> None:
    rows = [[name, speeds[name], speeds[name] / speeds["alone"]] for name in ("alone", "at once", "behind")]
    title = f"{arguments.streams} streams beside {arguments.readers} that nobody reads"
    report.table(title, ["", "tokens/s", "of alone"], rows)
    behind_s, measured_s, free_s = (speeds[name] for name in ("behind_s", "measured_s", "free_s"))
    report.fact("readers", f"behind after {behind_s:.0f} s, speeds until {measured_s:.0f} s, gone after {free_s:.0f} s")
    report.check("tokens/s beside readers that are behind / alone", rows[2][2], at_least=HONEST_RATIO)
    report.check(
        "seconds from the last one behind until no place is theirs", free_s - behind_s, at_most=PLACES_WITHIN_S
    )


def options(parser: argparse.ArgumentParser) -> None:
    """What this benchmark takes."""
    parser.add_argument("--workers", type=int, default=2)
    parser.add_argument("--burst", type=int, default=2000, help="requests at once")
    parser.add_argument("--many", type=int, default=200, help="requests of the other client")
    parser.add_argument("--rounds", type=int, default=5, help="of one request beside them, and of each speed")
    parser.add_argument("--readers", type=int, default=256, help="streams that nobody reads")
    parser.add_argument("--streams", type=int, default=8, help="that are read beside them")


if __name__ == "__main__":
    quick = {"burst": 300, "many": 20, "rounds": 1, "readers": 4, "streams": 2}
    raise SystemExit(main("overload", __doc__, options, run, quick=quick))
