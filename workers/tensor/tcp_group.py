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
from typing import NoReturn, cast

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
_OF_OPERATION = slice(8)  # of a header: all but the bytes behind it
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


class _AtAnother(Exception):
    """A rank is at another operation, or at the same one with another number of bytes."""


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
        self._peers = [_Peer(names[other], connection) for other, connection in sorted(others.items())]
        self._senders = ThreadPoolExecutor(len(others), "rank") if others else None
        self._number = 0
        self._why_broken: str | None = None

    def __repr__(self) -> str:
        return f"TcpGroup(rank {self.rank} of {self.size}, {self._why_broken or 'whole'})"

    def sum(self, x: mx.array) -> mx.array:
        """See `TensorGroup`."""
        x, data = _evaluated(x)
        shape, dtype = x.shape, x.dtype
        found = self._exchange(_SUM, dtype, data, len(data))
        return reduce(add, [x if part is None else from_bytes(part, dtype, shape) for part in found])

    def gather(self, x: mx.array, axis: int = -1, _: Sequence[int] | None = None) -> mx.array:
        """See `TensorGroup`."""
        x, data = _evaluated(x)
        found = self._exchange(_GATHER, x.dtype, data, None)
        parts = [x if part is None else from_bytes(part, x.dtype, self._shape(x, axis, part)) for part in found]
        return mx.concatenate(parts, axis=axis)

    def _shape(self, x: mx.array, axis: int, data: memoryview) -> tuple[int, ...]:
        """Of what a rank gave: as wide along the axis as its bytes say."""
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
        return self._why_broken is not None or any(peer.has_ended for peer in self._peers)

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
        for peer in self._peers:
            peer.connection.close()

    def _end(self, why: str) -> None:
        self._why_broken = self._why_broken or why
        for peer in self._peers:
            with contextlib.suppress(OSError):
                peer.connection.shutdown(socket.SHUT_RDWR)

    def _break(self, why: str) -> NoReturn:
        self._end(why)
        raise GroupBroken(f"the tensor group {'+'.join(self._names)} is broken: {self._why_broken}")

    # --- one operation; in as few calls as can be, since the weights of a layer leave nothing of them in the processor's caches

    def _exchange(self, kind: int, dtype: mx.Dtype, data: memoryview, num_bytes: int | None) -> list[memoryview | None]:
        """What every rank gave, valid until the next operation; None for the own. num_bytes: of each, None where they differ.

        Raises GroupBroken.
        """
        if self._why_broken is not None:
            self._break(self._why_broken)
        self._number = (self._number + 1) & 0xFFFFFFFF
        header = _HEADER.pack(self._number, kind, _TYPE_OF[dtype], len(data))
        found: list[memoryview | None] = []
        sending = self._begun(header, data)
        for peer in self._peers:
            try:
                found.append(peer.taken(header, num_bytes, self._waited))
            except _AtAnother:
                self._break(f"{peer.name} is at another operation")
            except OSError as error:
                self._gone(peer, error)
            self._sent_to(peer.name, len(header) + len(data))
        for future in sending:
            future.result()
        found.insert(self.rank, None)
        return found

    def _begun(self, header: bytes, data: memoryview) -> "list[Future[None]]":
        """Send to all; what is still to go out goes meanwhile."""
        if len(data) > AT_ONCE_BYTES and self._senders is not None:
            return [self._senders.submit(self._send, peer, header, data) for peer in self._peers]
        for peer in self._peers:
            self._send(peer, header, data)
        return []

    def _send(self, peer: "_Peer", header: bytes, data: memoryview) -> None:
        try:
            peer.send(header, data)
        except OSError as error:
            self._gone(peer, error)

    def _gone(self, peer: "_Peer", error: OSError) -> NoReturn:
        self._break(f"{peer.name} is gone ({error.strerror or error})")

    def _waited(self) -> None:
        """Another rank may be lost than the one that is waited for, which may not be at this operation yet."""
        for peer in self._peers:
            if peer.has_ended:
                self._break(f"{peer.name} is gone ({_CLOSED})")
        self.waiting()


class _Peer:
    """A connection to another rank, and what came over it. `send` and `taken` raise OSError where it ends."""

    def __init__(self, name: str, connection: socket.socket):
        self.name = name
        self.connection = connection
        self._buffer = memoryview(bytearray(_HEADER.size + AT_ONCE_BYTES))
        self._num_there = 0
        connection.settimeout(None)  # one that Python keeps would cost a call before each
        connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        _notice_silence(connection)
        for option in (socket.SO_RCVTIMEO, socket.SO_SNDTIMEO):
            connection.setsockopt(socket.SOL_SOCKET, option, _TICK)
        for option in (socket.SO_RCVBUF, socket.SO_SNDBUF):
            connection.setsockopt(socket.SOL_SOCKET, option, _BUFFER_BYTES)

    def __repr__(self) -> str:
        return f"_Peer({self.name}, {self.connection})"

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

    def send(self, header: bytes, data: memoryview) -> None:
        """All of it."""
        left: Sequence[bytes | memoryview] = (header, data)
        while left:
            try:
                left = _behind(left, self.connection.sendmsg(left))
            except BlockingIOError:  # nobody reads for a while
                continue

    def taken(self, header: bytes, num_bytes: int | None, waited: Callable[[], object]) -> memoryview:
        """What the rank gave to the operation that this is the own header of; what comes next begins a new frame. num_bytes: None where
        it says itself how many they are. Raises _AtAnother.
        """
        size = len(header)
        self._fill(size, size + (num_bytes or 0), waited)
        there = self._buffer[:size]
        if num_bytes is None:
            is_same, num_bytes = there[_OF_OPERATION] == header[_OF_OPERATION], _HEADER.unpack(there)[-1]
        else:
            is_same = there == header
        if not is_same:
            raise _AtAnother
        end = size + num_bytes
        self._fill(end, end, waited)
        self._num_there = 0
        return self._buffer[size:end]

    def _fill(self, least: int, most: int, waited: Callable[[], object]) -> None:
        """Have so many bytes in the buffer, from its beginning on."""
        if most > len(self._buffer):
            self._buffer = self._grown(most)
        while self._num_there < least:
            try:
                num_bytes = self._read(self._buffer[self._num_there : most])
            except BlockingIOError:
                waited()
                continue
            if not num_bytes:
                raise ConnectionResetError(_CLOSED)
            self._num_there += num_bytes

    def _grown(self, num_bytes: int) -> memoryview:
        """A longer buffer with what is there."""
        buffer = memoryview(bytearray(num_bytes))
        buffer[: self._num_there] = self._buffer[: self._num_there]
        return buffer

    def _read(self, into: memoryview) -> int:
        """How many bytes came. Raises BlockingIOError where nothing did for TICK_S."""
        asleep_at = time.perf_counter() + _AWAKE_S
        while time.perf_counter() < asleep_at:
            try:
                return self.connection.recv_into(into, 0, socket.MSG_DONTWAIT)
            except BlockingIOError:  # contextlib.suppress takes longer than the wait
                continue
        return self.connection.recv_into(into)


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


def _evaluated(x: mx.array) -> tuple[mx.array, memoryview]:
    """With its bytes."""
    if not x.size:
        return x, memoryview(b"")
    view = memoryview(cast("bytes", x))  # waits for it, and costs nothing where that is not needed
    return (x, view.cast("B")) if view.c_contiguous else _evaluated(mx.contiguous(x))


def _behind(views: Sequence[bytes | memoryview], num_bytes: int) -> list[bytes | memoryview]:
    """What is left of them behind so many bytes."""
    left = []
    for view in views:
        if num_bytes < len(view):
            left.append(view[num_bytes:] if num_bytes else view)
        num_bytes = max(num_bytes - len(view), 0)
    return left
