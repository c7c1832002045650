"""Hundreds of thousands of wrong messages and requests beside a client that is served: does anybody notice?

Messages go to every port on which a process of the cluster listens, from a stranger and with the keys of two workers and
of the coordinator. Each has something wrong: a field, a buffer, a frame, an epoch, some bytes.
Left out is what its sender may say by right: a coordinator may end a worker, and a worker may say that it failed, or its link.
What is kept of past requests is limited to little: it grows to its limit by design. Requests go to the API over
connections of their own. Meanwhile one client streams answer after answer, and `/health` is asked.
"""

import argparse
import asyncio
import contextlib
import random
from collections import Counter
from collections.abc import AsyncIterator, Sequence
from typing import Any

import msgspec
import psutil
import zmq

from benchmarks.support import machine
from benchmarks.support.client import Answer, Target, ask_health, checked, get_json, stream
from benchmarks.support.contenders import Cluster, WorkerLimits, cluster
from benchmarks.support.main import main
from benchmarks.support.mutation import mutated_frames, mutated_request
from benchmarks.support.reporting import Report
from benchmarks.support.resources import Sample, sample
from benchmarks.support.trials import until_ready
from cluster.config import BUNDLED_MODEL
from protocol.home import Home
from protocol.join_token import make_secret
from protocol.messages import (
    Cancel,
    CloseSequence,
    CopyArrived,
    DropPrefix,
    ForgetConversation,
    Generate,
    Heartbeat,
    Inspected,
    Join,
    KeepPrefix,
    KnownPrefix,
    Loaded,
    LoadProgress,
    Message,
    OpenSequence,
    PrefillProgress,
    Prepared,
    Reused,
    Row,
    Sampled,
    Step,
    StepFailed,
    Tokens,
    Update,
)
from protocol.transport import KeyPair, ZmqOutbox
from protocol.values import COORDINATOR, LayerRange, Peer, Route, Sampling, pack_ids

MODEL = machine.CHECKOUT / BUNDLED_MODEL
PROMPT = tuple(range(20, 84))
TOKENS = 64
KEPT_BYTES = 4 << 20
# Of sequences that nobody has: what a message says of a real one is its sender's to say.
_NOBODYS = 1 << 40
_BATCH, _PER_S = 200, 5000
_CONNECTIONS = 16
_ANSWER_WITHIN_S = 10.0
_HEALTH_WITHIN_S, _GAP_MORE_S, _MEMORY_MORE = 1.0, 0.5, 0.10
_SETTLE_S = 15.0

_Messages = list[tuple[Message, tuple[bytes, ...]]]


class Inside(msgspec.Struct, frozen=True, kw_only=True):
    """What an attacker inside a cluster may know: its ports with the key of who listens, its plan, and keys."""

    ports: list[tuple[int, str]]
    names: tuple[str, ...]
    epoch: int
    coordinator: KeyPair
    workers: dict[str, KeyPair]


class Frames(ZmqOutbox):
    """Sends frames as they are."""

    def send_frames(self, peer: Peer, frames: Sequence[bytes]) -> None:
        """Queue them."""
        with contextlib.suppress(zmq.Again):  # ZeroMQ gave the link up: its other end refused the key
            self._link(peer).send_multipart(list(frames), zmq.NOBLOCK)


async def inside(running: Cluster) -> Inside:
    """Of a running cluster, by the files of its home and the ports that its processes listen on."""
    home = Home(running.home)
    desired = home.read_desired()
    assert desired is not None
    coordinator = KeyPair(desired.public_key, desired.secret_key)
    status = await get_json(running.url, "/status")
    names = tuple(worker["name"] for worker in status["workers"])
    workers = {name: KeyPair.kept(home, name) for name in names}
    api = int(running.url.rpartition(":")[2])
    ports = [(port, coordinator.public) for port in _listening(running.front_pid) if port != api]
    for worker in status["workers"]:
        ports += [(port, workers[worker["name"]].public) for port in _listening(worker["pid"])]
    return Inside(ports=ports, names=names, epoch=status["epoch"], coordinator=coordinator, workers=workers)


def _listening(pid: int) -> list[int]:
    connections = psutil.Process(pid).net_connections(kind="tcp")
    return [connection.laddr.port for connection in connections if connection.status == psutil.CONN_LISTEN]


def of_stages(names: tuple[str, ...]) -> _Messages:
    """What workers say to each other."""
    route, sequence, ids = Route(names), _NOBODYS, pack_ids((20, 21))
    return [
        (
            OpenSequence(
                sequence=sequence,
                route=route,
                cached=True,
                sampling=Sampling(),
                seed=1,
                history=(20, 21),
                max_length=9,
            ),
            (b"k" * 16,),
        ),
        (CloseSequence(sequence=sequence, route=route), ()),
        (KeepPrefix(sequence=sequence, route=route, spans=((0, 64),)), (b"k" * 16,)),
        (DropPrefix(route=route), (b"k" * 16,)),
        (CopyArrived(route=route), ()),
        (
            Step(
                number=7,
                route=route,
                slot=None,
                cached=True,
                rows=(Row(sequence, 0, sample=True),),
                num_tokens=2,
                payload=["array", "float32", [1, 2, 256]],
            ),
            (ids, bytes(2048)),
        ),
        (Sampled(number=7, route=route, tokens=(5,)), ()),
        (StepFailed(number=7, route=route, message="m"), ()),
    ]


def of_members(name: str, names: tuple[str, ...]) -> _Messages:
    """What a worker says to the coordinator, less what it may say by right: that it is stuck, or that it failed."""
    inspected = Inspected(
        worker=name,
        architecture="llama",
        num_layers=8,
        legal_cuts=(4,),
        why_not=None,
        batches=True,
        last_position_only=True,
        context_tokens=None,
    )
    peer = Peer(endpoint="tcp://127.0.0.1:9", public_key="k" * 40)
    return [
        (Heartbeat(worker=next(other for other in (*names, "?") if other != name)), ()),
        (inspected, ()),
        (LoadProgress(worker=name, loaded_bytes=5), ()),
        (Loaded(worker=name, weights_bytes=5, vocabulary_size=400), ()),
        (Prepared(worker=name, layers=LayerRange(0, 4), read_bytes=7), ()),
        (Tokens(updates=(Update(_NOBODYS, (2, 3), "stop"),)), ()),
        (PrefillProgress(sequence=_NOBODYS, processed=2, total=3), ()),
        (Reused(sequence=_NOBODYS, num_tokens=64), ()),
        (
            Join(
                protocol=3, secret=make_secret(), name=name, host="h", pid=7, peer=peer, data=peer, memory_limit_bytes=9
            ),
            (),
        ),
    ]


def of_coordinators(names: tuple[str, ...]) -> _Messages:
    """What a coordinator says of requests; of plans and processes it may say anything."""
    route = Route(names)
    request = Generate(
        sequence=_NOBODYS, route=route, cached=True, max_tokens=0, end_tokens=(1,), sampling=Sampling(), seed=1
    )
    return [
        (request, (pack_ids((20, 21)),)),
        (Cancel(sequence=_NOBODYS), ()),
        (KnownPrefix(route=Route((names[0], "?")), capacity=4, snapshots=False), (b"k" * 16, pack_ids((4,)))),
        (ForgetConversation(conversation="c"), ()),
    ]


async def send_messages(known: Inside, count: int, generator: random.Random) -> int:
    """So many wrong messages, in turn from everybody to every port; returns how many."""
    name, other = known.names[0], known.names[-1]
    everything = of_stages(known.names) + of_members(name, known.names) + of_coordinators(known.names)
    senders: list[tuple[KeyPair, int, _Messages]] = [
        (KeyPair.generate(), 0, everything),
        (known.workers[name], 0, of_stages(known.names) + of_members(name, known.names)),
        (known.workers[other], len(known.names) - 1, of_stages(known.names) + of_members(other, known.names)),
        (known.coordinator, COORDINATOR, of_coordinators(known.names)),
    ]
    outboxes = [(Frames(keys, linger_ms=0), place, messages) for keys, place, messages in senders]
    pairs = [
        (sender, Peer(endpoint=f"tcp://127.0.0.1:{port}", public_key=key))
        for sender in outboxes
        for port, key in known.ports
    ]
    sent = 0
    try:
        while sent < count:
            (outbox, place, messages), peer = generator.choice(pairs)
            for _ in range(_BATCH):
                message, buffers = generator.choice(messages)
                outbox.send_frames(peer, mutated_frames(message, buffers, known.epoch, place, generator))
            if generator.random() < 0.05:
                outbox.forget(peer)
            sent += _BATCH
            await asyncio.sleep(_BATCH / _PER_S)
    finally:
        for outbox, _, _ in outboxes:
            outbox.close()
    return sent


def _requests() -> list[tuple[str, Any]]:
    messages = [{"role": "user", "content": "Hello"}]
    sampling = {"temperature": 0.5, "top_p": 0.9, "seed": 3, "logit_bias": {"5": 1.0}, "stop": ["x"]}
    return [
        ("/v1/completions", {"prompt": "Hello", "max_tokens": 2, **sampling}),
        ("/v1/completions", {"prompt": [20, 21], "max_tokens": 2, "stream": True}),
        ("/v1/chat/completions", {"messages": messages, "max_tokens": 2, **sampling}),
        ("/v1/chat/completions", {"messages": messages, "max_tokens": 2, "stream": True, "conversation": "c"}),
        ("/v1/explain", {"prompt": "Hello", "max_tokens": 2}),
        ("/v1/models", None),
        ("/health", None),
        ("/status", None),
    ]


async def send_requests(url: str, count: int, generator: random.Random) -> Counter[str]:
    """So many wrong requests, some at a time; the statuses of the answers."""
    statuses: Counter[str] = Counter()
    left = iter(range(count))

    async def client() -> None:
        for _ in left:
            path, body = generator.choice(_requests())
            statuses[await _status(url, mutated_request(path, body, generator))] += 1

    await asyncio.gather(*(client() for _ in range(_CONNECTIONS)))
    return statuses


async def _status(url: str, request: bytes) -> str:
    """What the server says first. Only the beginning is waited for; an incomplete request is ended."""
    host, _, port = url.removeprefix("http://").partition(":")
    reader, writer = await asyncio.open_connection(host, int(port))
    try:
        async with asyncio.timeout(_ANSWER_WITHIN_S):
            writer.write(request)
            writer.write_eof()
            line = await reader.readline()
        return line[9:12].decode(errors="replace") if line else "closed"
    except TimeoutError:
        return "silent"
    except OSError:
        return "closed"
    finally:
        writer.close()


class Served:
    """A client that streams answer after answer, and how it was served."""

    def __init__(self, running: Cluster):
        self._running = running
        self._target = Target(
            name="honest", url=running.url, model=running.model, end_tokens=(1,), strategy="distributed-cached"
        )
        self.answers: list[Answer] = []
        self.health_s: list[float] = []

    def __repr__(self) -> str:
        return f"Served({len(self.answers)} answers)"

    async def one(self) -> Answer:
        """An answer."""
        return await stream(self._target, PROMPT, TOKENS)

    @contextlib.asynccontextmanager
    async def meanwhile(self) -> AsyncIterator[None]:
        """While something else happens."""
        tasks = [asyncio.create_task(self._stream()), asyncio.create_task(ask_health(self._running.url, self.health_s))]
        try:
            yield
        finally:
            for task in tasks:
                task.cancel()
            await asyncio.gather(*tasks, return_exceptions=True)

    async def _stream(self) -> None:
        while True:
            self.answers.append(await self.one())


def longest_gap(answers: Sequence[Answer]) -> float:
    """Seconds between two tokens of one answer, at most."""
    gaps = [later - earlier for answer in answers for earlier, later in zip(answer.text_at, answer.text_at[1:])]  # noqa: B905
    return max(gaps, default=0.0)


async def run(arguments: argparse.Namespace) -> Report:
    """Both attacks on one cluster."""
    generator = random.Random(arguments.seed)
    async with cluster(MODEL, [WorkerLimits()] * arguments.workers, kept_bytes=KEPT_BYTES) as running:
        await until_ready(running, arguments.workers)
        served = Served(running)
        right = checked(await served.one()).tandem["token_ids"]
        alone = [checked(await served.one()) for _ in range(arguments.answers)]
        known = await inside(running)  # what is kept for later use is there before anything is counted
        await send_messages(known, arguments.messages // 10, generator)
        await send_requests(running.url, arguments.requests // 10, generator)
        before = sample(running.home, 0)
        async with served.meanwhile():
            sent = await send_messages(await inside(running), arguments.messages, generator)
            print(f"{sent} messages sent", flush=True)
            statuses = await send_requests(running.url, arguments.requests, generator)
            print(f"requests: {statuses}", flush=True)
        await asyncio.sleep(_SETTLE_S)
        after = sample(running.home, 1)
        status = await until_ready(running, arguments.workers)
    report = Report("mutations")
    report.fact("machine", machine.describe())
    report.fact("sent", f"{sent} messages, {sum(statuses.values())} requests, seed {arguments.seed}")
    report.fact("plans", f"{status['epoch'] & 0xFFFFFFFF} until the end")
    report.table("answers to requests", ["status", "number"], [list(pair) for pair in sorted(statuses.items())])
    _add_use(report, before, after)
    wrong = [answer for answer in served.answers if answer.error or answer.tandem.get("token_ids") != right]
    report.check(f"answers of {len(served.answers)} beside it that are wrong", len(wrong), at_most=0)
    report.check(
        "longest gap beside it, less that alone, s",
        longest_gap(served.answers) - longest_gap(alone),
        at_most=_GAP_MORE_S,
    )
    report.check("seconds until /health answers, longest", max(served.health_s), at_most=_HEALTH_WITHIN_S)
    report.check("requests that are not answered", statuses["silent"] + statuses["500"], at_most=0)
    report.data |= {"errors": sorted({answer.error for answer in wrong if answer.error})}
    return report


def _add_use(report: Report, before: Sample, after: Sample) -> None:
    """Processes that ended, and what the others hold more than before."""
    rows, grown = [], [0.0]
    for use in before.processes:
        later = after.of(use.pid)
        if later is not None:
            grown.append(later.resident_bytes / use.resident_bytes - 1)
            rows.append(
                [use.name, use.resident_bytes / 1e6, later.resident_bytes / 1e6, use.descriptors, later.descriptors]
            )
    report.table("processes", ["process", "MB before", "MB after", "descriptors before", "after"], rows)
    report.check("processes that ended", len(before.processes) - len(rows), at_most=0)
    report.check("memory of a process, more than before", max(grown), at_most=_MEMORY_MORE)


def options(parser: argparse.ArgumentParser) -> None:
    """What this benchmark takes."""
    parser.add_argument("--workers", type=int, default=2)
    parser.add_argument("--messages", type=int, default=200_000)
    parser.add_argument("--requests", type=int, default=50_000)
    parser.add_argument("--answers", type=int, default=10, help="alone, before anything is sent")
    parser.add_argument("--seed", type=int, default=0)


if __name__ == "__main__":
    quick = {"messages": 4000, "requests": 400, "answers": 2}
    raise SystemExit(main("mutations", __doc__, options, run, quick=quick))
