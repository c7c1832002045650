"""What every connection to another process begins with: its encryption, and by which keys both sides are known."""

import zmq

from protocol.transport.addressing import needs_ipv6
from protocol.transport.keys import KeyPair


def secure(socket: "zmq.Socket[bytes]", endpoint: str, public_key: str, keys: KeyPair) -> None:
    """Have a socket, which is about to be connected to `endpoint`, accept there the owner of that public key (Z85 text) alone."""
    socket.setsockopt(zmq.IPV6, needs_ipv6(endpoint))
    socket.setsockopt(zmq.CURVE_SERVERKEY, public_key.encode())
    socket.setsockopt(zmq.CURVE_PUBLICKEY, keys.public.encode())
    socket.setsockopt(zmq.CURVE_SECRETKEY, keys.secret.encode())
