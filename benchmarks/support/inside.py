"""Somebody inside a cluster who means it harm: what may be known there, and what is said to every port with something wrong in it.

All is sent by the threads of ZeroMQ that this process shares, from the network in which they were begun.
"""

import asyncio
import contextlib
import itertools
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
from benchmarks.support.resources import COORDINATOR_NAME, Place, processes_of
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
    PromptLogprobs,
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
from protocol.transport.addressing import endpoint_of
from protocol.transport.asking import IN_FLIGHT
from protocol.transport.securing import secure
from protocol.values import COORDINATOR, LayerRange, Peer, Route, Sampling, TokenLogprobs, pack_ids
from protocol.weight_pieces import AskHashes, AskManifest, AskPiece
from strategy.layer_speeds import LayerSpeeds, PartSpeed
from tests.hosts.tools import network_of

# Of sequences that nobody has: what a message says of a real one is its sender's to say.
_NOBODYS = 1 << 40
_BATCH, _PER_S = 200, 5000
_ANSWER_WITHIN_S, _LOOK_EVERY_S = 5.0, 0.1
_MOST_UNREAD = 64

_Messages = list[tuple[Message, tuple[bytes, ...]]]
Draw = Callable[[], list[bytes]]
"""The frames of the next wrong thing to say."""


class Inside(msgspec.Struct, frozen=True, kw_only=True):
    """What an attacker inside a cluster may know: where it listens and who does, its plan, and keys. names: of the workers, in the
    plan's order; speakers: those whose keys are spoken with, of other hosts than the coordinator's where there are others.
    """

    peers: tuple[Peer, ...]
    names: tuple[str, ...]
    speakers: tuple[str, ...]
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
        self.take(peer)

    def take(self, peer: Peer) -> bool:
        """Drop the answers that came; whether there were any."""
        num_answers = 0
        with contextlib.suppress(zmq.Again):
            while True:
                self._link(peer).recv_multipart(zmq.NOBLOCK)
                num_answers += 1
        return num_answers > 0


async def inside(running: Cluster) -> Inside:
    """Of a running cluster, by the files of its homes and the ports that its processes listen on."""
    desired = Home(running.home).read_desired()
    assert desired is not None
    coordinator = KeyPair(desired.public_key, desired.secret_key)
    status = await get_json(running.url, "/status")
    in_order = sorted(status["workers"], key=lambda worker: worker["layers"] or [0])
    names = tuple(worker["name"] for worker in in_order)
    found = [(where, process) for where in running.places for process in processes_of(where)]
    workers: dict[str, KeyPair] = {}
    peers: list[Peer] = []
    for place, process in found:
        if process.name in names:
            workers[process.name] = KeyPair.kept(Home(place.files), process.name)
        keys = coordinator if process.name == COORDINATOR_NAME else workers.get(process.name)
        if keys is not None:
            ends = itertools.product(place.addresses, _listening(place, process.pid) - {_port_of(running.url)})
            peers += [Peer(endpoint=endpoint_of(*end), public_key=keys.public) for end in ends]
    near = {process.name for place, process in found if place == running.places[0]}
    return Inside(
        peers=tuple(peers),
        names=names,
        speakers=tuple(name for name in names if name not in near) or names,
        epoch=status["epoch"],
        coordinator=coordinator,
        workers=workers,
    )


def _port_of(url: str) -> int:
    return int(url.rpartition(":")[2])


def _listening(place: Place, pid: int) -> set[int]:
    with network_of(place.first_pid) if place.first_pid else contextlib.nullcontext():
        connections = psutil.Process(pid).net_connections(kind="tcp")
    return {connection.laddr.port for connection in connections if connection.status == psutil.CONN_LISTEN}


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
                rows=(Row(sequence, 0, num_sampled=1),),
                num_tokens=2,
                payload=["array", "float32", [1, 2, 256]],
            ),
            (ids, bytes(2048)),
        ),
        (Sampled(number=7, route=route, tokens=((5,),)), ()),
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
        (PromptLogprobs(sequence=_NOBODYS, start=1, entries=(TokenLogprobs(-0.5, ((2, -0.25),)),)), ()),
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
    names, asked = known.names, questions()
    stranger, workers = KeyPair.generate(), [known.workers[name] for name in known.speakers]

    def says(place: int, messages: _Messages) -> Draw:
        return lambda: mutated_frames(*generator.choice(messages), known.epoch, place, generator)

    def of_worker(name: str, keys: KeyPair) -> _Messages:
        return of_stages(names) + of_members(name, names, keys.public)

    return [
        (Frames(stranger, linger_ms=0), says(0, of_worker(names[0], stranger) + of_coordinators(names))),
        *(
            (Frames(keys, linger_ms=0), says(names.index(name), of_worker(name, keys)))
            for name, keys in zip(known.speakers, workers, strict=True)
        ),
        (Frames(known.coordinator, linger_ms=0), says(COORDINATOR, of_coordinators(names))),
        *(
            (Questions(keys), lambda: mutated_question(generator.choice(asked), generator))
            for keys in (stranger, *workers)
        ),
    ]


async def send_messages(known: Inside, count: int, generator: random.Random) -> int:
    """So many wrong messages and questions, in turn from everybody to every port; returns how many."""
    senders = _senders(known, generator)
    sent = 0
    try:
        while sent < count:
            outbox, draw = generator.choice(senders)
            peer = generator.choice(known.peers)
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


async def answering(known: Inside) -> set[str]:
    """The public keys of those of whom a port answers a member."""
    asking, found = Questions(known.workers[known.speakers[0]]), set[str]()
    until = time.monotonic() + _ANSWER_WITHIN_S
    try:
        for peer in known.peers:
            asking.send_frames(peer, [bytes(8), questions()[0]])
        while time.monotonic() < until and len(found) < len(known.workers):
            await asyncio.sleep(_LOOK_EVERY_S)
            found |= {peer.public_key for peer in known.peers if asking.take(peer)}
    finally:
        asking.close()
    return found
