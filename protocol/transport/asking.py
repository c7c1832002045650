"""Questions between hosts and their answers, megabytes each: what answers, and what asks.

An answerer reads questions on one thread and answers on some others, those alone whose keys it admits. It knows nothing of what
it is asked. Who does not read costs no more than its own connection: few answers wait in it, and one for which there is no room is
dropped, as is what is asked beyond IN_FLIGHT; whoever wants it asks again. Encryption limits a connection, so that a context of
its own has several threads for it, and whoever asks for much has several connections.
"""

import contextlib
import os
import queue
import threading
from collections import Counter
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor

import zmq

from protocol.transport.addressing import LOOPBACK
from protocol.transport.admission import Admits
from protocol.transport.inbox import Limits, bind, bindable_socket
from protocol.transport.keys import KeyPair
from protocol.transport.securing import secure
from protocol.values import Buffer

IN_FLIGHT = 8  # of one connection
_LIMITS = Limits(frame_bytes=16 << 10, pending=64)
_MOST_ANSWER_BYTES = 8 << 20
_IO_THREADS = 4
_ANSWERING_THREADS = 2
_MOST_PENDING = 64
_READ_TIMEOUT_MS = 200
_NUMBER_BYTES = 8

Answer = Callable[[bytes], Sequence[Buffer]]
"""The frames that answer a question; called on any thread."""


class ZmqAnswerer:
    """A bound, encrypted ROUTER socket. answer: must not raise. listen, keys, admits: as of `ZmqInbox`."""

    def __init__(self, answer: Answer, *, listen: Sequence[str] = (LOOPBACK,), keys: KeyPair, admits: Admits):
        self._answer = answer
        self._admits = admits
        self._context: zmq.Context[zmq.Socket[bytes]] = zmq.Context(io_threads=_IO_THREADS)
        self._socket = bindable_socket(zmq.ROUTER, keys, _LIMITS, admits, self._context)
        self._socket.setsockopt(zmq.SNDHWM, IN_FLIGHT)
        self._socket.setsockopt(zmq.ROUTER_MANDATORY, 1)  # say so where there is no room, do not wait
        self.port = bind(self._socket, listen, None)
        self._answers: queue.SimpleQueue[list[Buffer]] = queue.SimpleQueue()
        self._pending: Counter[bytes] = Counter()
        self._wakes, self._wake = os.pipe()
        self._closing = threading.Event()
        self._thread = threading.Thread(target=self._serve, name="answers", daemon=True)

    def __repr__(self) -> str:
        return f"ZmqAnswerer(port {self.port}, {self._pending.total()} pending)"

    def start(self) -> None:
        """Begin to answer."""
        self._thread.start()

    def _serve(self) -> None:
        with ThreadPoolExecutor(_ANSWERING_THREADS, "answering") as pool:
            while not self._closing.is_set():
                is_full = self._pending.total() >= _MOST_PENDING
                ready = zmq.select(
                    [self._wakes, *([] if is_full else [self._socket])], [], [], _READ_TIMEOUT_MS / 1000
                )[0]
                if self._wakes in ready:
                    os.read(self._wakes, 4096)
                    self._send()
                if self._socket in ready:
                    self._take(pool)

    def _take(self, pool: ThreadPoolExecutor) -> None:
        sender, *frames = self._socket.recv_multipart(copy=False)
        asker = sender.bytes
        if len(frames) != 2 or len(frames[0]) != _NUMBER_BYTES or self._pending[asker] >= IN_FLIGHT:
            return
        if self._admits(str(sender.get("User-Id"))):
            self._pending[asker] += 1
            pool.submit(self._work, asker, frames[0].bytes, frames[1].bytes)

    def _work(self, asker: bytes, number: bytes, asked: bytes) -> None:
        """On a thread of the pool."""
        self._answers.put([asker, number, *self._answer(asked)])
        os.write(self._wake, b".")

    def _send(self) -> None:
        with contextlib.suppress(queue.Empty):
            while True:
                frames = self._answers.get_nowait()
                asker = bytes(frames[0])
                self._pending[asker] -= 1
                if not self._pending[asker]:
                    del self._pending[asker]
                with contextlib.suppress(zmq.ZMQError):  # who asked is gone, or does not read
                    self._socket.send_multipart(frames, zmq.NOBLOCK, copy=False)

    def close(self) -> None:
        """Answer nobody any more."""
        self._closing.set()
        if self._thread.ident is not None:
            self._thread.join(timeout=5)
        self._socket.close(linger=0)
        for end in (self._wakes, self._wake):
            os.close(end)


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
