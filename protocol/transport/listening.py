"""TCP ports of this process that are no ZeroMQ sockets from the beginning."""

import socket
from collections.abc import Sequence

from protocol.errors import AddressUnavailable
from protocol.transport.addressing import ANY, LOOPBACK


def listeners_at(listen: Sequence[str]) -> list[socket.socket]:
    """Sockets that listen at one free port of each address, as of `ZmqInbox`, and do not block. Raises AddressUnavailable."""
    hosts = [ANY] if ANY in listen else list(dict.fromkeys([LOOPBACK, *listen]))
    found: list[socket.socket] = []
    try:
        for host in hosts:
            port = found[0].getsockname()[1] if found else 0
            family = socket.AF_INET6 if ":" in host else socket.AF_INET
            found.append(socket.create_server(("" if host == ANY else host, port), family=family))
            found[-1].setblocking(False)
    except OSError as error:
        for listener in found:
            listener.close()
        raise AddressUnavailable(
            f"{host} cannot be used ({error.strerror}): end what uses it or choose another"
        ) from error
    return found
