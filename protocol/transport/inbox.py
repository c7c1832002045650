"""An inbox: where a process receives, on a thread of its own, from those whose keys it admits.

Knows of messages only whether they decode.
"""

import contextlib
import logging
import threading
from collections.abc import Sequence

import msgspec
import zmq

from protocol.codec import MAX_FRAME_BYTES, decode
from protocol.errors import AddressUnavailable, WireError
from protocol.transport.addressing import ANY, LOOPBACK, advertised, endpoint_of, needs_ipv6, own_networks, this_host
from protocol.transport.admission import Admits, admit, anybody
from protocol.transport.keys import KeyPair
from protocol.transport.sending import Deliver
from protocol.values import Peer

log = logging.getLogger(__name__)

_READ_TIMEOUT_MS = 200
_CURVE_BYTES = 256  # what encryption adds to a frame, and more


class Limits(msgspec.Struct, frozen=True):
    """frame_bytes: of one frame, those of handshakes too; pending: messages that wait to be read, 0 for any number;
    handshake_ms: until who connected has proved its key.
    """

    frame_bytes: int = MAX_FRAME_BYTES + _CURVE_BYTES
    pending: int = 0
    handshake_ms: int = 10_000


FOR_MEMBERS = Limits()
# Where whoever comes may say who they are, and little else.
FOR_STRANGERS = Limits(frame_bytes=16 << 10, pending=64)


class ZmqInbox:
    """A bound, encrypted PULL socket; `deliver` is called on the inbox's own thread for each message that decodes. It may
    raise WireError for one that does not fit.

    listen: addresses of this host, ANY for all of them; processes here always reach it. port, keys: those of an inbox
    before, which whoever sent to it finds again; new ones where None. admits: whose messages are taken; each envelope says
    its sender's key.

    Raises:
        AddressUnavailable: it cannot be bound.
    """

    def __init__(
        self,
        deliver: Deliver,
        *,
        listen: Sequence[str] = (LOOPBACK,),
        port: int | None = None,
        keys: KeyPair | None = None,
        admits: Admits = anybody,
        limits: Limits = FOR_MEMBERS,
    ):
        self._deliver = deliver
        self._admits = admits
        keys = keys or KeyPair.generate()
        self._socket = bindable_socket(zmq.PULL, keys, limits, admits)
        port = bind(self._socket, listen, port)
        self.peer = Peer(
            endpoint=endpoint_of(LOOPBACK, port),
            public_key=keys.public,
            host=this_host(),
            addresses=advertised(listen, port, own_networks()),
        )
        self.num_dropped = 0
        self._closing = threading.Event()
        self._thread = threading.Thread(target=self._read, name="inbox", daemon=True)

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
        key, origin = str(frames[0].get("User-Id")), str(frames[0].get("Peer-Address"))
        if not self._admits(key):
            self.num_dropped += 1
            log.warning("dropped a message of %s, whose key is not admitted any more", key)
            return
        try:
            self._deliver(decode([frame.buffer for frame in frames], key=key, origin=origin))
        except WireError as error:
            self.num_dropped += 1
            log.warning("dropped %s, from %s", error, key)

    def close(self) -> None:
        """Stop reading; returns when the socket is closed."""
        self._closing.set()
        if self._thread.ident is None:
            self._socket.close()
        else:
            self._thread.join(timeout=5)

    def __repr__(self) -> str:
        return f"ZmqInbox({self.peer.endpoint})"


def bind(socket: "zmq.Socket[bytes]", listen: Sequence[str], port: int | None) -> int:
    """Bind a socket where it is to be reached, at one port everywhere: None takes a free one. Returns it.

    Raises:
        AddressUnavailable: it cannot be bound; the socket is closed.
    """
    hosts = [ANY] if ANY in listen else list(dict.fromkeys([LOOPBACK, *listen]))
    try:
        for host in hosts:
            socket.setsockopt(zmq.IPV6, needs_ipv6(host))
            if port is None:
                port = socket.bind_to_random_port(f"tcp://{host}")
            else:
                socket.bind(endpoint_of(host, port))
    except zmq.ZMQError as error:
        socket.close()
        what = host if port is None else f"port {port} of {host}"
        raise AddressUnavailable(
            f"{what} cannot be used ({zmq.strerror(error.errno or 0)}): end what uses it or choose another"
        ) from error
    assert port is not None
    return port


def bindable_socket(
    kind: int,
    keys: KeyPair,
    limits: Limits,
    admits: Admits,
    context: "zmq.Context[zmq.Socket[bytes]] | None" = None,
) -> "zmq.Socket[bytes]":
    """An encrypted socket of that kind within limits, for those whom `admits` takes. context: None for the process's own."""
    socket: zmq.Socket[bytes] = (context or zmq.Context.instance()).socket(kind)
    socket.setsockopt(zmq.LINGER, 0)
    socket.setsockopt(zmq.RCVHWM, limits.pending)
    socket.setsockopt(zmq.RCVTIMEO, _READ_TIMEOUT_MS)
    socket.setsockopt(zmq.MAXMSGSIZE, limits.frame_bytes)
    socket.setsockopt(zmq.HANDSHAKE_IVL, limits.handshake_ms)
    socket.setsockopt(zmq.TCP_KEEPALIVE, 1)  # gives back the descriptors of peers that vanished
    socket.setsockopt(zmq.CURVE_SERVER, 1)
    socket.setsockopt(zmq.CURVE_PUBLICKEY, keys.public.encode())
    socket.setsockopt(zmq.CURVE_SECRETKEY, keys.secret.encode())
    admit(socket, admits)
    return socket
