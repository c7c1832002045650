"""Whether who receives at an endpoint has the key that it is known by: a handshake, and nothing sent after it."""

import threading

import zmq

from protocol.transport.keys import KeyPair
from protocol.transport.monitoring import watch_socket
from protocol.transport.securing import secure


def proves_key(endpoint: str, public_key: str, limit_s: float) -> bool:
    """Whether an inbox with that key lets a stranger connect at an endpoint (tcp://HOST:PORT) within `limit_s` seconds."""
    keys = KeyPair.generate()
    proven = threading.Event()
    socket: zmq.Socket[bytes] = zmq.Context.instance().socket(zmq.PUSH)
    try:
        socket.setsockopt(zmq.LINGER, 0)
        secure(socket, endpoint, public_key, keys)
        watch_socket(socket, zmq.EVENT_HANDSHAKE_SUCCEEDED, lambda _: proven.set())
        socket.connect(endpoint)
        return proven.wait(limit_s)
    except zmq.ZMQError:
        return False
    finally:
        socket.disable_monitor()
        socket.close(linger=0)
