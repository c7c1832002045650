"""A relay before each worker's data inbox, so that a benchmark can play faults of the cable between two workers.

Who measures opens the `Relays`; a worker of `relayed_worker` asks for its own as it starts, through the port that stands in
its environment, and gives the relay's address to the others as where it receives.
"""

import json
import os
import socket
import socketserver
import threading
from collections.abc import Mapping

from tests.support.relay import Relay

_PORT = "TANDEM_BENCH_RELAYS"
_TIMEOUT_S = 10.0


class Relays:
    """The relays by worker name; a worker that starts again gets a new one."""

    def __init__(self) -> None:
        self._relays: dict[str, Relay] = {}
        relays = self

        class Asked(socketserver.StreamRequestHandler):
            def handle(self) -> None:
                name, port = json.loads(self.rfile.readline())
                self.wfile.write(b"%d\n" % relays.add(name, port))

        self._server = socketserver.TCPServer(("127.0.0.1", 0), Asked)
        threading.Thread(target=self._server.serve_forever, name="relays", daemon=True).start()

    def __repr__(self) -> str:
        return f"Relays({', '.join(self._relays)})"

    @property
    def environment(self) -> Mapping[str, str]:
        """What the environment of a worker must hold."""
        return {_PORT: str(self._server.server_address[1])}

    def add(self, name: str, port: int) -> int:
        """The port of a new relay to a worker's inbox, in the place of an earlier one."""
        if name in self._relays:
            self._relays[name].close()
        self._relays[name] = Relay(port)
        return self._relays[name].port

    def to(self, name: str) -> Relay:
        """The relay to a worker. Raises KeyError when it has asked for none."""
        return self._relays[name]

    def close(self) -> None:
        """Close every relay."""
        self._server.shutdown()
        self._server.server_close()
        for relay in self._relays.values():
            relay.close()


def relayed_port(name: str, port: int) -> int:
    """In a worker: the port under which its inbox on `port` is to be reached. Raises OSError."""
    with socket.create_connection(("127.0.0.1", int(os.environ[_PORT])), timeout=_TIMEOUT_S) as asked:
        asked.sendall(json.dumps([name, port]).encode() + b"\n")
        with asked.makefile() as answer:
            return int(answer.readline())
