"""Pages that are open beside a measurement and read everything: `python -m benchmarks.support.open_dashboards PORT COUNT`.

A process of its own, so that reading costs whoever measures nothing; it says when all have begun, and reads until it is ended.
"""

import contextlib
import os
import selectors
import socket
import subprocess
import sys
from collections.abc import Iterator

from benchmarks.support import machine

_READ_BYTES = 1 << 16
_ASK = b"GET /dashboard/feed HTTP/1.1\r\nHost: localhost\r\n\r\n"
_BEGUN = b"begun\n"


@contextlib.contextmanager
def open_dashboards(port: int, count: int) -> Iterator[None]:
    """So many of them while the block lasts. Raises RuntimeError when they cannot be opened."""
    if not count:
        yield
        return
    command = [sys.executable, "-m", "benchmarks.support.open_dashboards", str(port), str(count)]
    with subprocess.Popen(command, cwd=machine.CHECKOUT, stdout=subprocess.PIPE) as process:
        try:
            assert process.stdout is not None
            if process.stdout.readline() != _BEGUN:
                raise RuntimeError("the dashboards could not be opened")
            machine.pin(process.pid, [(os.cpu_count() or 1) - 1])
            yield
        finally:
            process.terminate()


def _read_on(port: int, count: int) -> None:
    with selectors.DefaultSelector() as selector:
        for _ in range(count):
            connection = socket.create_connection(("127.0.0.1", port))
            connection.sendall(_ASK)
            if not connection.recv(_READ_BYTES).startswith(b"HTTP/1.1 200"):
                raise RuntimeError("a dashboard was refused")
            selector.register(connection, selectors.EVENT_READ)
        os.write(1, _BEGUN)
        while selector.get_map():
            for key, _ in selector.select():
                if not key.fileobj.recv(_READ_BYTES):  # type: ignore[union-attr]
                    selector.unregister(key.fileobj)


if __name__ == "__main__":
    _read_on(int(sys.argv[1]), int(sys.argv[2]))
