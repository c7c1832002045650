"""The `TensorGroup` of processes: sums and gathers over one TCP connection for each pair of ranks.

Every rank sends its part to all others and adds what it is sent in rank order, so that all hold the same bits. A rank that waits
stays awake for a moment, then sleeps in the system. Frames say which operation of which kind and type they are of, so that ranks which
are not at the same one break the group and never add what does not belong together. Who the others are was proved before
(`workers.tensor.meeting`); what is sent is not encrypted. A wait ends with its connection, which does so also where the other host falls
silent, or with `abort`, which is for whoever watches the rank.
"""

import contextlib
import math
import socket
import struct
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from functools import reduce
from operator import add
from typing import NamedTuple, NoReturn, cast

import mlx.core as mx

from workers.model.payload import from_bytes
from workers.tensor.group import Carrier, GroupBroken

# Of a frame that every system takes at once, so that all may send before anybody receives; a longer one goes out meanwhile.
AT_ONCE_BYTES = 64 << 10
_BUFFER_BYTES = 4 * AT_ONCE_BYTES
# How long a rank that waits stays awake: waking up takes longer than ranks of one speed wait for each other.
_AWAKE_S = 100e-6
# How often one that sleeps looks up.
TICK_S = 1.0
_TICK = struct.pack("ll", int(TICK_S), 0)
# A host that does not even acknowledge for so long is gone. (TCP_USER_TIMEOUT also ends connections whose other end is slow to read.)
_SILENCE_S = 3
_PROBE_EVERY_S = 1
_DROP_AFTER_S = 0x80  # of macOS: TCP_RXT_CONNDROPTIME
# Of Linux: where TCP_INFO says how often the oldest part was sent again, and probes were, after 0.2, 0.6, 1.4 and 3 s.
_SENT_AGAIN, _MOST_SENT_AGAIN = slice(2, 4), 4

_HEADER = struct.Struct("<IHHQ")  # number, kind, type, bytes behind it
_SUM, _GATHER = 1, 2
_CLOSED = "the connection was closed"
_DTYPES = (
    mx.bool_, mx.uint8, mx.uint16, mx.uint32, mx.uint64, mx.int8, mx.int16, mx.int32, mx.int64,
    mx.float16, mx.bfloat16, mx.float32, mx.complex64,
)  # fmt: skip
_TYPE_OF = {dtype: index for index, dtype in enumerate(_DTYPES)}


Sent = Callable[[str, int], object]
"""Told a worker and how many bytes went to it."""


def _uncounted(_worker: str, _num_bytes: int) -> None:
    """Nobody counts."""


class _Frame(NamedTuple):
    """What a rank adds to an operation. num_bytes: of every rank's, None where they differ."""

    header: bytes
    data: memoryview
    num_bytes: int | None


class TcpGroup:
    """See the module. others: a connection to each other rank, as `meet` makes them; names: of all ranks, for people; waiting: called
    about every TICK_S while an operation waits, and sent: told what went to which of `names`, both on the thread of the operation.
    """

    in_graph = False

    def __init__(
        self,
        rank: int,
        others: Mapping[int, socket.socket],
        names: Sequence[str],
        waiting: Callable[[], object] = lambda: None,
        sent: Sent = _uncounted,
    ):
        self.rank = rank
        self.size = len(others) + 1
        self.waiting = waiting
        self._sent_to = sent
        self.carrier = Carrier("tcp")
        self._names = names
        self._peers = {other: _Peer(connection) for other, connection in sorted(others.items())}
        self._senders = ThreadPoolExecutor(len(others), "rank") if others else None
        self._number = 0
        self._why_broken: str | None = None

    def __repr__(self) -> str:
        return f"TcpGroup(rank {self.rank} of {self.size}, {self._why_broken or 'whole'})"

    def sum(self, x: mx.array) -> mx.array:
        """See `TensorGroup`."""
        x = _evaluated(x)
        found = self._exchange(_SUM, x, x.nbytes)
        return reduce(add, (self._part(rank, x, found, x.shape) for rank in range(self.size)))

    def gather(self, x: mx.array, axis: int = -1, _: Sequence[int] | None = None) -> mx.array:
        """See `TensorGroup`."""
        x = _evaluated(x)
        found = self._exchange(_GATHER, x, None)
        parts = [self._part(rank, x, found, self._shape(x, axis, found.get(rank))) for rank in range(self.size)]
        return mx.concatenate(parts, axis=axis)

    def _part(self, rank: int, x: mx.array, found: Mapping[int, memoryview], shape: tuple[int, ...]) -> mx.array:
        return x if rank == self.rank else from_bytes(found[rank], x.dtype, shape)

    def _shape(self, x: mx.array, axis: int, data: memoryview | None) -> tuple[int, ...]:
        """Of what a rank gave: as wide along the axis as its bytes say."""
        if data is None:
            return x.shape
        shape = list(x.shape)
        shape[axis] = 1
        wide = x.dtype.size * max(math.prod(shape), 1)
        if data.nbytes % wide:
            self._break("the ranks gather what does not go together")
        shape[axis] = data.nbytes // wide
        return tuple(shape)

    @property
    def has_ended(self) -> bool:
        """Whether it was given up here, or a rank is gone. On any thread."""
        return self._why_broken is not None or any(peer.has_ended for peer in self._peers.values())

    def abort(self) -> None:
        """See `TensorGroup`."""
        self._end("it was given up")

    def failed(self, _: Exception) -> None:
        """See `TensorGroup`."""
        self.abort()

    def close(self) -> None:
        """See `TensorGroup`; ends the connections, too."""
        self._end("it was closed")
        if self._senders is not None:
            self._senders.shutdown()
        for peer in self._peers.values():
            peer.connection.close()

    def _end(self, why: str) -> None:
        self._why_broken = self._why_broken or why
        for peer in self._peers.values():
            with contextlib.suppress(OSError):
                peer.connection.shutdown(socket.SHUT_RDWR)

    def _break(self, why: str) -> NoReturn:
        self._end(why)
        raise GroupBroken(f"the tensor group {'+'.join(self._names)} is broken: {self._why_broken}")

    # --- one operation

    def _exchange(self, kind: int, x: mx.array, num_bytes: int | None) -> dict[int, memoryview]:
        """What every other rank gave, valid until the next operation. num_bytes: as of `_Frame`."""
        self._number = (self._number + 1) & 0xFFFFFFFF
        data = memoryview(cast("bytes", x)).cast("B") if x.size else memoryview(b"")
        frame = _Frame(_HEADER.pack(self._number, kind, _TYPE_OF[x.dtype], x.nbytes), data, num_bytes)
        if self._why_broken is not None:
            self._break(self._why_broken)
        sent = [self._sent(rank, frame) for rank in self._peers]
        found = {rank: self._received(rank, frame) for rank in self._peers}
        for future in sent:
            if future is not None:
                future.result()
        for rank in self._peers:
            self._sent_to(self._names[rank], _HEADER.size + x.nbytes)
        return found

    def _sent(self, rank: int, frame: _Frame) -> "Future[None] | None":
        if len(frame.data) <= AT_ONCE_BYTES or self._senders is None:
            self._send(rank, frame)
            return None
        return self._senders.submit(self._send, rank, frame)

    def _send(self, rank: int, frame: _Frame) -> None:
        """Raises GroupBroken."""
        try:
            self._peers[rank].send(frame)
        except OSError as error:
            self._break(f"{self._names[rank]} is gone ({error.strerror or error})")

    def _received(self, rank: int, frame: _Frame) -> memoryview:
        """What a rank gave. Raises GroupBroken."""
        peer = self._peers[rank]
        try:
            peer.fill(_HEADER.size, _HEADER.size + (frame.num_bytes or 0), self._waited)
            number, kind, dtype, num_bytes = _HEADER.unpack_from(peer.buffer)
            own = _HEADER.unpack(frame.header)
            if own[:3] != (number, kind, dtype) or frame.num_bytes not in (None, num_bytes):
                self._break(f"{self._names[rank]} is at another operation")
            return peer.take(_HEADER.size, num_bytes, self._waited)
        except OSError as error:
            self._break(f"{self._names[rank]} is gone ({error.strerror or error})")

    def _waited(self) -> None:
        """Another rank may be lost than the one that is waited for, which may not be at this operation yet."""
        for rank, peer in self._peers.items():
            if peer.has_ended:
                self._break(f"{self._names[rank]} is gone ({_CLOSED})")
        self.waiting()


class _Peer:
    """A connection to another rank, and what came over it. `fill` and `take` raise OSError where it ends."""

    def __init__(self, connection: socket.socket):
        self.connection = connection
        self.buffer = bytearray(_HEADER.size + AT_ONCE_BYTES)
        self._num_there = 0
        connection.settimeout(None)  # one that Python keeps would cost a call before each
        connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        _notice_silence(connection)
        for option in (socket.SO_RCVTIMEO, socket.SO_SNDTIMEO):
            connection.setsockopt(socket.SOL_SOCKET, option, _TICK)
        for option in (socket.SO_RCVBUF, socket.SO_SNDBUF):
            connection.setsockopt(socket.SOL_SOCKET, option, _BUFFER_BYTES)

    def __repr__(self) -> str:
        return f"_Peer({self.connection})"

    @property
    def has_ended(self) -> bool:
        """Whether nothing will come any more."""
        if _times_sent_again(self.connection) >= _MOST_SENT_AGAIN:
            return True
        try:
            return not self.connection.recv(1, socket.MSG_PEEK | socket.MSG_DONTWAIT)
        except BlockingIOError:
            return False
        except OSError:
            return True

    def send(self, frame: _Frame) -> None:
        """All of it."""
        left = [memoryview(frame.header), frame.data]
        while left:
            with contextlib.suppress(BlockingIOError):  # nobody reads for a while
                num_sent = self.connection.sendmsg(left)
                left = _behind(left, num_sent)

    def fill(self, least: int, most: int, waited: Callable[[], object]) -> None:
        """Have so many bytes in the buffer, from its beginning on."""
        if most > len(self.buffer):
            self.buffer += bytes(most - len(self.buffer))
        view = memoryview(self.buffer)
        while self._num_there < least:
            try:
                num_bytes = self._read(view[self._num_there : most])
            except BlockingIOError:
                waited()
                continue
            if not num_bytes:
                raise ConnectionResetError(_CLOSED)
            self._num_there += num_bytes

    def _read(self, into: memoryview) -> int:
        """How many bytes came. Raises BlockingIOError where nothing did for TICK_S."""
        asleep_at = time.perf_counter() + _AWAKE_S
        while time.perf_counter() < asleep_at:
            try:
                return self.connection.recv_into(into, 0, socket.MSG_DONTWAIT)
            except BlockingIOError:  # contextlib.suppress takes longer than the wait
                continue
        return self.connection.recv_into(into)

    def take(self, start: int, num_bytes: int, waited: Callable[[], object]) -> memoryview:
        """So many bytes from there on, once they are there; what comes next begins a new frame."""
        end = start + num_bytes
        self.fill(end, end, waited)
        self._num_there = 0
        return memoryview(self.buffer)[start:end]


def _notice_silence(connection: socket.socket) -> None:
    """Have the connection end when the other host answers nothing, also where nothing is said."""
    connection.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
    connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_KEEPINTVL, _PROBE_EVERY_S)
    connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_KEEPCNT, _SILENCE_S // _PROBE_EVERY_S - 1)
    if sys.platform == "darwin":
        connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_KEEPALIVE, _PROBE_EVERY_S)
        connection.setsockopt(socket.IPPROTO_TCP, _DROP_AFTER_S, _SILENCE_S)
    else:
        connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_KEEPIDLE, _PROBE_EVERY_S)


def _times_sent_again(connection: socket.socket) -> int:
    """How often something was that nobody acknowledged yet; 0 where the system itself ends such a connection, or knows of none."""
    if sys.platform != "linux":
        return 0
    try:
        return max(connection.getsockopt(socket.IPPROTO_TCP, socket.TCP_INFO, _SENT_AGAIN.stop)[_SENT_AGAIN])
    except OSError:
        return 0


def _evaluated(x: mx.array) -> mx.array:
    view = memoryview(cast("bytes", x)) if x.size else None  # waits for it, and costs nothing where that is not needed
    return x if view is None or view.c_contiguous else _evaluated(mx.contiguous(x))


def _behind(views: Sequence[memoryview], num_bytes: int) -> list[memoryview]:
    """What is left of them behind so many bytes."""
    left = []
    for view in views:
        if num_bytes < len(view):
            left.append(view[num_bytes:])
        num_bytes = max(num_bytes - len(view), 0)
    return left
