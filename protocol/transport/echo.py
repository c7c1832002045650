"""How fast a way to another host is, asked of the echo that every answerer is (`protocol.transport.asking`).

Who measures proves its key as for every other message and expects the other's: two hosts with the same private address, as of
docker, never take themselves for each other. The round trip is the least of several; the bandwidth is that of large messages for a while,
and of smaller ones where the way is slow: what several hosts ask of one wifi may not keep heartbeats waiting behind it.
"""

import logging
import math
import time
from collections.abc import Callable

import msgspec
import zmq

from protocol.transport.keys import KeyPair
from protocol.transport.securing import secure

log = logging.getLogger(__name__)

PIECE_BYTES = 1 << 20
_LEAST_PIECE_BYTES = 1 << 16
_NUM_PINGS = 10
_LOAD_S = 0.1
_IN_FLIGHT = 4  # pieces that are sent before the first is answered
_FIRST_ANSWER_MS = 1500
_NEXT_ANSWER_MS = 3000


class Measured(msgspec.Struct, frozen=True, kw_only=True):
    """One way to a host: seconds there and back of a small message, bytes a second of large ones (encrypted, as all are)."""

    round_trip_s: float
    bytes_per_s: float

    def seconds(self, num_bytes: int) -> float:
        """How long a message of that size takes to arrive."""
        return self.round_trip_s / 2 + num_bytes / self.bytes_per_s


def measure(
    endpoint: str,
    public_key: str,
    keys: KeyPair,
    *,
    with_load: bool = True,
    now: Callable[[], float] = time.perf_counter,
) -> Measured | None:
    """How fast the answerer with that key is reached at an endpoint; None where it does not answer. Takes up to two seconds.

    with_load: also how much goes through, which disturbs what else does; else any amount is assumed to.
    """
    socket: zmq.Socket[bytes] = zmq.Context.instance().socket(zmq.DEALER)
    try:
        _connect(socket, endpoint, public_key, keys)
        round_trip_s = _round_trip(socket, now)
        if round_trip_s is None:
            return None
        return Measured(round_trip_s=round_trip_s, bytes_per_s=_bytes_per_s(socket, now) if with_load else float("inf"))
    except zmq.ZMQError as error:
        log.info("%s cannot be measured: %s", endpoint, error)
        return None
    finally:
        socket.close(linger=0)


def _connect(socket: "zmq.Socket[bytes]", endpoint: str, public_key: str, keys: KeyPair) -> None:
    socket.setsockopt(zmq.LINGER, 0)
    secure(socket, endpoint, public_key, keys)
    socket.connect(endpoint)


def _round_trip(socket: "zmq.Socket[bytes]", now: Callable[[], float]) -> float | None:
    """The least of some, the first of which also connects."""
    least = None
    for number in range(_NUM_PINGS + 1):
        began = now()
        socket.send(b"ping")
        if not socket.poll(_NEXT_ANSWER_MS if number else _FIRST_ANSWER_MS):
            return None
        socket.recv()
        if number:
            least = now() - began if least is None else min(least, now() - began)
    return least


def _bytes_per_s(socket: "zmq.Socket[bytes]", now: Callable[[], float]) -> float:
    """Of pieces, some of which are always under way. Raises zmq.Again where an answer stays away."""
    num_bytes, alone_s = _piece(socket, now)
    if alone_s >= _LOAD_S:
        return num_bytes / alone_s
    piece, in_flight = bytes(num_bytes), min(math.ceil(_LOAD_S / alone_s), _IN_FLIGHT)
    began = now()
    num_sent = num_answered = 0
    while now() - began < _LOAD_S or num_answered < 2:
        while num_sent - num_answered < in_flight:
            socket.send(piece, copy=False)
            num_sent += 1
        _await_answer(socket)
        num_answered += 1
    return num_answered * num_bytes / (now() - began)


def _piece(socket: "zmq.Socket[bytes]", now: Callable[[], float]) -> tuple[int, float]:
    """The bytes of which several are under way in the time for all of it, at most PIECE_BYTES, and what they take alone."""
    num_bytes = _LEAST_PIECE_BYTES
    while True:
        began = now()
        socket.send(bytes(num_bytes), copy=False)
        _await_answer(socket)
        alone_s = now() - began
        if num_bytes == PIECE_BYTES or alone_s > _LOAD_S / (2 * _IN_FLIGHT):
            return num_bytes, alone_s
        num_bytes *= 2


def _await_answer(socket: "zmq.Socket[bytes]") -> None:
    if not socket.poll(_NEXT_ANSWER_MS):
        raise zmq.Again
    socket.recv()
