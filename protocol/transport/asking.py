"""Questions between hosts and their answers, megabytes each: what answers, and what asks.

An answerer reads questions on one thread and answers on some others, those alone whose keys it admits. It knows nothing of what
it is asked, and echoes what is no question, for whoever measures the way (`protocol.transport.echo`). Nobody may ever ask, as
where all workers are on one machine: so it has one idle thread until somebody connects. Who does not read costs no more than
its own connection: few answers wait in it, and one for which there is no room is dropped, as is what is asked beyond IN_FLIGHT;
whoever wants it asks again. Encryption limits a connection, so that a context of its own has several threads for it, and whoever
asks for much has several connections.
"""

import contextlib
import logging
import os
import queue
import threading
from collections import Counter
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor

import zmq

from protocol.transport.addressing import LOOPBACK
from protocol.transport.admission import Admits
from protocol.transport.echo import PIECE_BYTES
from protocol.transport.inbox import Limits, bindable_socket
from protocol.transport.keys import KeyPair
from protocol.transport.listening import listeners_at
from protocol.transport.securing import secure
from protocol.values import Buffer

log = logging.getLogger(__name__)

IN_FLIGHT = 8  # of one connection
_LIMITS = Limits(frame_bytes=PIECE_BYTES + 4096, pending=64, handshake_ms=3_000)
_MOST_ANSWER_BYTES = 8 << 20
_IO_THREADS = 4
_ANSWERING_THREADS = 2
_MOST_PENDING = 64
_NUMBER_BYTES = 8
_ECHO_BYTES = 8

Answer = Callable[[bytes], Sequence[Buffer]]
"""The frames that answer a question; called on any thread."""


class ZmqAnswerer:
    """A bound, encrypted ROUTER socket, once somebody connects. answer: what it raises is answered with nothing. listen, keys,
    admits: as of `ZmqInbox`.

    Raises:
        AddressUnavailable: it cannot be bound.
    """

    def __init__(self, answer: Answer, *, listen: Sequence[str] = (LOOPBACK,), keys: KeyPair, admits: Admits):
        self._answer = answer
        self._keys = keys
        self._admits = admits
        self._listeners = listeners_at(listen)
        self.port: int = self._listeners[0].getsockname()[1]
        self._answers: queue.SimpleQueue[list[Buffer]] = queue.SimpleQueue()
        self._pending: Counter[bytes] = Counter()
        self._wakes, self._wake = os.pipe()
        self._closing = threading.Event()
        self._thread = threading.Thread(target=self._run, name="answers", daemon=True)

    def __repr__(self) -> str:
        return f"ZmqAnswerer(port {self.port}, {self._pending.total()} pending)"

    def start(self) -> None:
        """Begin to answer."""
        self._thread.start()

    def _run(self) -> None:
        zmq.select([self._wakes, *self._listeners], [], [])
        if not self._closing.is_set():
            with self._opened() as bound, ThreadPoolExecutor(_ANSWERING_THREADS, "answering") as pool:
                self._serve(bound, pool)

    def _opened(self) -> "zmq.Socket[bytes]":
        """Takes the listeners over, with whoever connected already."""
        context: zmq.Context[zmq.Socket[bytes]] = zmq.Context(io_threads=_IO_THREADS)
        bound = bindable_socket(zmq.ROUTER, self._keys, _LIMITS, self._admits, context)
        bound.setsockopt(zmq.SNDHWM, IN_FLIGHT)
        bound.setsockopt(zmq.ROUTER_MANDATORY, 1)  # say so where there is no room, do not wait
        for listener in self._listeners:
            bound.setsockopt(zmq.USE_FD, listener.detach())
            bound.bind(f"tcp://*:{self.port}")
        return bound

    def _serve(self, bound: "zmq.Socket[bytes]", pool: ThreadPoolExecutor) -> None:
        while not self._closing.is_set():
            is_full = self._pending.total() >= _MOST_PENDING
            ready = zmq.select([self._wakes, *([] if is_full else [bound])], [], [])[0]
            if self._wakes in ready:
                os.read(self._wakes, 4096)
                self._send(bound)
            if bound in ready:
                self._take(bound, pool)

    def _take(self, bound: "zmq.Socket[bytes]", pool: ThreadPoolExecutor) -> None:
        sender, *frames = bound.recv_multipart(copy=False)
        asker = sender.bytes
        if not frames or not self._admits(str(sender.get("User-Id"))):
            return
        if len(frames) == 1:
            _pass(bound, [asker, frames[0].buffer[:_ECHO_BYTES]])
        elif len(frames) == 2 and len(frames[0]) == _NUMBER_BYTES and self._pending[asker] < IN_FLIGHT:
            self._pending[asker] += 1
            pool.submit(self._work, asker, frames[0].bytes, frames[1].bytes)

    def _work(self, asker: bytes, number: bytes, asked: bytes) -> None:
        """On a thread of the pool."""
        try:
            frames = self._answer(asked)
        except Exception:  # the boundary of one question: it must not count as pending for ever
            log.exception("a question was not answered")
            frames = ()
        self._answers.put([asker, number, *frames])
        os.write(self._wake, b".")

    def _send(self, bound: "zmq.Socket[bytes]") -> None:
        with contextlib.suppress(queue.Empty):
            while True:
                frames = self._answers.get_nowait()
                asker = bytes(frames[0])
                self._pending[asker] -= 1
                if not self._pending[asker]:
                    del self._pending[asker]
                _pass(bound, frames)

    def close(self) -> None:
        """Answer nobody any more."""
        self._closing.set()
        os.write(self._wake, b".")
        if self._thread.ident is not None:
            self._thread.join(timeout=5)
        for listener in self._listeners:
            listener.close()
        for end in (self._wakes, self._wake):
            os.close(end)


def _pass(bound: "zmq.Socket[bytes]", frames: Sequence[Buffer]) -> None:
    """On to who asked, which may be gone, or not read."""
    with contextlib.suppress(zmq.ZMQError):
        bound.send_multipart(frames, zmq.NOBLOCK, copy=False)


class ZmqAsker:
    """One connection to an answerer, for one thread. Answers come in any order, or not at all."""

    def __init__(self, context: "zmq.Context[zmq.Socket[bytes]]", endpoint: str, public_key: str, keys: KeyPair):
        self._endpoint = endpoint
        self._socket = context.socket(zmq.DEALER)
        self._socket.setsockopt(zmq.LINGER, 0)
        self._socket.setsockopt(zmq.MAXMSGSIZE, _MOST_ANSWER_BYTES)
        secure(self._socket, endpoint, public_key, keys)
        self._socket.connect(endpoint)

    def __repr__(self) -> str:
        return f"ZmqAsker({self._endpoint})"

    def ask(self, number: int, asked: bytes) -> None:
        """Ask; the answer will have the same number."""
        with contextlib.suppress(zmq.Again):
            self._socket.send_multipart([number.to_bytes(_NUMBER_BYTES), asked], zmq.NOBLOCK)

    def receive(self, timeout_s: float) -> tuple[int, list[Buffer]] | None:
        """The next answer, None where none comes in time."""
        if not self._socket.poll(int(timeout_s * 1000)):
            return None
        number, *frames = self._socket.recv_multipart(copy=False)
        return int.from_bytes(number.bytes), [frame.buffer for frame in frames]

    def close(self) -> None:
        """End the connection."""
        self._socket.close(linger=0)


class ZmqAskers:
    """Connections of one process to answerers."""

    def __init__(self, keys: KeyPair):
        self._keys = keys
        self._context: zmq.Context[zmq.Socket[bytes]] = zmq.Context(io_threads=_IO_THREADS)

    def __repr__(self) -> str:
        return f"ZmqAskers({self._keys.public})"

    def open(self, endpoint: str, public_key: str) -> ZmqAsker:
        """A new connection. Raises zmq.ZMQError for an endpoint that is none."""
        return ZmqAsker(self._context, endpoint, public_key, self._keys)
