"""Whose connections an inbox takes: answers ZeroMQ, which asks at each handshake (ZAP). Knows keys, not who has them.

One thread answers for all inboxes of a context. A key that is refused gets no further than the handshake; one that is
taken stays connected, so an inbox asks again about each message.
"""

import atexit
import functools
import itertools
import threading
from collections.abc import Callable

import zmq
from zmq.auth.thread import ThreadAuthenticator

Admits = Callable[[str], bool]
"""Whether the owner of a public key (Z85 text) may send. Called on any thread."""


def anybody(_key: str) -> bool:
    """Admits everybody."""
    return True


class _Policy:
    """An `Admits` in the form in which pyzmq asks."""

    def __init__(self, admits: Admits):
        self._admits = admits

    def __repr__(self) -> str:
        return f"_Policy({self._admits!r})"

    def callback(self, _domain: str, key: bytes) -> bool:
        return self._admits(key.decode())


_numbers = itertools.count(1)
_starting = threading.Lock()  # a context takes one authenticator, whichever thread needs it first


@functools.cache
def _authenticator(context: "zmq.Context[zmq.Socket[bytes]]") -> ThreadAuthenticator:
    """The one of a context, which is to end before its thread would be frozen at exit."""
    authenticator = ThreadAuthenticator(context)
    authenticator.start()
    atexit.register(authenticator.stop)
    return authenticator


def admit(socket: "zmq.Socket[bytes]", admits: Admits) -> None:
    """Let an inbox that is not bound yet take only connections with admitted keys; messages say theirs as "User-Id"."""
    domain = f"inbox-{next(_numbers)}"
    with _starting:
        authenticator = _authenticator(socket.context)
    authenticator.configure_curve_callback(domain, _Policy(admits))
    socket.setsockopt(zmq.ZAP_DOMAIN, domain.encode())
