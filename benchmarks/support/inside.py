"""Somebody inside a cluster who means it harm: what may be known there, and what is said to every port with something wrong in it."""

import asyncio
import contextlib
import random
import time
from collections.abc import Callable, Sequence

import msgspec
import psutil
import zmq

from benchmarks.support import machine
from benchmarks.support.client import get_json
from benchmarks.support.contenders import Cluster
from benchmarks.support.mutation import mutated_frames, mutated_question
from cluster.config import BUNDLED_MODEL
from protocol.codec import PROTOCOL
from protocol.home import Home
from protocol.join_token import make_secret
from protocol.messages import (
    Cancel,
    CloseSequence,
    CopyArrived,
    DropPrefix,
    ForgetConversation,
    Generate,
    HandedOver,
    HandOver,
    Heartbeat,
    Inspected,
    Join,
    KeepPrefix,
    KnownPrefix,
    Leave,
    LinkFigures,
    LinkLost,
    LinksMeasured,
    Loaded,
    LoadProgress,
    Message,
    OpenSequence,
    PrefillProgress,
    Prepared,
    ReadingFailed,
    ReadPrompt,
    Reused,
    Row,
    Sampled,
    SequenceFailed,
    Step,
    StepFailed,
    StopReading,
    Tokens,
    Update,
)
from protocol.model_digest import model_digest
from protocol.transport import KeyPair, ZmqOutbox
from protocol.transport.asking import IN_FLIGHT, ZmqAskers
from protocol.transport.securing import secure
from protocol.values import COORDINATOR, LayerRange, Peer, Route, Sampling, pack_ids
from protocol.weight_pieces import AskHashes, AskManifest, AskPiece
from strategy.layer_speeds import LayerSpeeds, PartSpeed

# Of sequences that nobody has: what a message says of a real one is its sender's to say.
_NOBODYS = 1 << 40
_BATCH, _PER_S = 200, 5000
_ANSWER_WITHIN_S = 5.0
_MOST_UNREAD = 64

_Messages = list[tuple[Message, tuple[bytes, ...]]]
Draw = Callable[[], list[bytes]]
"""The frames of the next wrong thing to say."""


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


class Questions(Frames):
    """The same to what answers; answers are taken and dropped."""

    def _connect(self, peer: Peer) -> "zmq.Socket[bytes]":
        socket: zmq.Socket[bytes] = zmq.Context.instance().socket(zmq.DEALER)
        socket.setsockopt(zmq.LINGER, 0)
        socket.setsockopt(zmq.RCVHWM, _MOST_UNREAD)
        secure(socket, peer.endpoint, peer.public_key, self._keys)
        socket.connect(peer.endpoint)
        return socket

    def send_frames(self, peer: Peer, frames: Sequence[bytes]) -> None:
        """Queue them, and take what came."""
        super().send_frames(peer, frames)
        with contextlib.suppress(zmq.Again):
            while True:
                self._link(peer).recv_multipart(zmq.NOBLOCK)


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
        *_of_readers(route, sequence),
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


def _of_readers(route: Route, sequence: int) -> _Messages:
    """The same of a prompt that they read for the last of them."""
    part, worker, holder = ["array", "uint8", [9]], route.head, route.last
    return [
        (ReadPrompt(sequence=sequence, route=route, holder=holder, start=1), (pack_ids((20, 21)),)),
        (StopReading(sequence=sequence, route=route), ()),
        (HandOver(sequence=sequence, route=route, holder=worker, request=sequence, start=0, end=64), ()),
        (HandedOver(sequence=sequence, route=route, worker=worker, start=0, end=64, part=part), (bytes(9),)),
        (ReadingFailed(sequence=sequence, message="m"), ()),
    ]


def of_members(name: str, names: tuple[str, ...], public_key: str) -> _Messages:
    """What a worker says to the coordinator, less what it may say by right: that it is stuck, that it failed, that it leaves."""
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
    layers = LayerSpeeds(
        decode_s=(0.5, None),
        chunk_s=(2.0, None),
        chunk_tokens=64,
        overhead=PartSpeed(0.0, 0.5),
        head=PartSpeed(1.0, 2.0),
    )
    another = next(other for other in (*names, "?") if other != name)
    figures = LinkFigures(
        to=another, interface="en0", kind="wifi", address="10.0.0.9", round_trip_us=9, bytes_per_s=9, in_use=True
    )
    return [
        (Heartbeat(worker=another), ()),
        (Leave(worker=another), ()),
        (LinkLost(worker=another, peer="?", why="w"), ()),
        (LinksMeasured(worker=name, links=(figures,)), ()),
        (inspected, ()),
        (LoadProgress(worker=name, loaded_bytes=5), ()),
        (Loaded(worker=name, weights_bytes=5, vocabulary_size=400, layers=layers), ()),
        (Prepared(worker=name, layers=LayerRange(0, 4), read_bytes=7), ()),
        (Tokens(updates=(Update(_NOBODYS, (2, 3), "stop"),)), ()),
        (PrefillProgress(sequence=_NOBODYS, processed=2, total=3), ()),
        (Reused(sequence=_NOBODYS, num_tokens=64), ()),
        (SequenceFailed(sequence=_NOBODYS, message="m"), ()),
        (_join(name, public_key), ()),
    ]


def _join(name: str, public_key: str) -> Join:
    peer = Peer(endpoint="tcp://127.0.0.1:9", public_key=public_key)
    return Join(
        protocol=PROTOCOL,
        secret=make_secret(),
        name=name,
        host="h",
        pid=7,
        peer=peer,
        data=peer,
        memory_limit_bytes=9,
    )


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


def questions() -> list[bytes]:
    """What members ask each other of the bundled model, which every worker can answer."""
    digest = model_digest(machine.CHECKOUT / BUNDLED_MODEL)
    asks = (AskManifest(digest), AskHashes(digest, 0, (0, 1)), AskPiece(digest, 0, 0), AskManifest("0" * 32))
    return [msgspec.msgpack.encode(ask) for ask in asks]


def _senders(known: Inside, generator: random.Random) -> list[tuple[Frames, Draw]]:
    """Who speaks, and what they say."""
    names, stranger = known.names, KeyPair.generate()
    first, last = (known.workers[name] for name in (names[0], names[-1]))
    of_first = of_stages(names) + of_members(names[0], names, first.public)
    of_last = of_stages(names) + of_members(names[-1], names, last.public)
    of_stranger = of_stages(names) + of_members(names[0], names, stranger.public) + of_coordinators(names)

    def says(place: int, messages: _Messages) -> Draw:
        return lambda: mutated_frames(*generator.choice(messages), known.epoch, place, generator)

    asked = questions()
    return [
        (Frames(stranger, linger_ms=0), says(0, of_stranger)),
        (Frames(first, linger_ms=0), says(0, of_first)),
        (Frames(last, linger_ms=0), says(len(names) - 1, of_last)),
        (Frames(known.coordinator, linger_ms=0), says(COORDINATOR, of_coordinators(names))),
        *(
            (Questions(keys), lambda: mutated_question(generator.choice(asked), generator))
            for keys in (stranger, first, last)
        ),
    ]


async def send_messages(known: Inside, count: int, generator: random.Random) -> int:
    """So many wrong messages and questions, in turn from everybody to every port; returns how many."""
    senders = _senders(known, generator)
    peers = [Peer(endpoint=f"tcp://127.0.0.1:{port}", public_key=key) for port, key in known.ports]
    sent = 0
    try:
        while sent < count:
            outbox, draw = generator.choice(senders)
            peer = generator.choice(peers)
            if isinstance(outbox, Questions) or generator.random() < 0.05:
                outbox.forget(peer)
            for _ in range(_BATCH // IN_FLIGHT):
                for _ in range(IN_FLIGHT):  # questions beyond these are not taken
                    outbox.send_frames(peer, draw())
                await asyncio.sleep(IN_FLIGHT / _PER_S)
            sent += _BATCH
    finally:
        for outbox, _ in senders:
            outbox.close()
    return sent


async def answering(known: Inside) -> set[int]:
    """The ports that answer a member."""
    return await asyncio.to_thread(_answering, known)


def _answering(known: Inside) -> set[int]:
    askers = ZmqAskers(known.workers[known.names[0]])
    opened = {port: askers.open(f"tcp://127.0.0.1:{port}", key) for port, key in known.ports}
    found: set[int] = set()
    until = time.monotonic() + _ANSWER_WITHIN_S
    try:
        for asker in opened.values():
            asker.ask(1, questions()[0])
        while (left_s := until - time.monotonic()) > 0 and len(found) < len(opened):
            waits_s = min(left_s, 0.1)
            found |= {port for port in opened.keys() - found if opened[port].receive(waits_s) is not None}
    finally:
        for asker in opened.values():
            asker.close()
    return found
