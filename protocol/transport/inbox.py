"""An inbox: where a process receives, on a thread of its own. Knows of messages only whether they decode."""

import contextlib
import logging
import threading

import zmq

from protocol.codec import decode
from protocol.errors import AddressUnavailable, WireError
from protocol.transport.keys import KeyPair
from protocol.transport.sending import Deliver
from protocol.values import Peer

log = logging.getLogger(__name__)

_READ_TIMEOUT_MS = 200
_MAX_FRAME_BYTES = 2 << 30


class ZmqInbox:
    """A bound, encrypted PULL socket; `deliver` is called on the inbox's own thread for each message that decodes.

    port, keys: those of an inbox before, which whoever sent to it finds again; new ones where None.

    Raises:
        AddressUnavailable: it cannot be bound.
    """

    def __init__(
        self, deliver: Deliver, *, host: str = "127.0.0.1", port: int | None = None, keys: KeyPair | None = None
    ):
        self._deliver = deliver
        keys = keys or KeyPair.generate()
        self._socket = _bindable_socket(keys)
        self.peer = Peer(endpoint=f"tcp://{host}:{self._bind(host, port)}", public_key=keys.public)
        self.num_dropped = 0
        self._closing = threading.Event()
        self._thread = threading.Thread(target=self._read, name="inbox", daemon=True)

    def _bind(self, host: str, port: int | None) -> int:
        try:
            if port is None:
                return self._socket.bind_to_random_port(f"tcp://{host}")
            self._socket.bind(f"tcp://{host}:{port}")
        except zmq.ZMQError as error:
            self._socket.close()
            what = host if port is None else f"port {port} of {host}"
            raise AddressUnavailable(
                f"{what} cannot be used ({zmq.strerror(error.errno or 0)}): end what uses it or choose another"
            ) from error
        return port

    def start(self) -> None:
        """Begin to deliver messages."""
        self._thread.start()

    def _read(self) -> None:
        while not self._closing.is_set():
            with contextlib.suppress(zmq.Again):
                self._receive()
        self._socket.close()

    def _receive(self) -> None:
        frames = self._socket.recv_multipart(copy=False)  # raises Again when none came in time
        try:
            envelope = decode([frame.buffer for frame in frames])
        except WireError as error:
            self.num_dropped += 1
            log.warning("dropped %s", error)
            return
        self._deliver(envelope)

    def close(self) -> None:
        """Stop reading; returns when the socket is closed."""
        self._closing.set()
        if self._thread.ident is None:
            self._socket.close()
        else:
            self._thread.join(timeout=5)

    def __repr__(self) -> str:
        return f"ZmqInbox({self.peer.endpoint})"


def _bindable_socket(keys: KeyPair) -> "zmq.Socket[bytes]":
    socket: zmq.Socket[bytes] = zmq.Context.instance().socket(zmq.PULL)
    socket.setsockopt(zmq.LINGER, 0)
    socket.setsockopt(zmq.RCVHWM, 0)
    socket.setsockopt(zmq.RCVTIMEO, _READ_TIMEOUT_MS)
    socket.setsockopt(zmq.MAXMSGSIZE, _MAX_FRAME_BYTES)
    socket.setsockopt(zmq.TCP_KEEPALIVE, 1)  # gives back the descriptors of peers that vanished
    socket.setsockopt(zmq.CURVE_SERVER, 1)
    socket.setsockopt(zmq.CURVE_PUBLICKEY, keys.public.encode())
    socket.setsockopt(zmq.CURVE_SECRETKEY, keys.secret.encode())
    return socket
