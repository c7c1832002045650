"""Hundreds of streams read by one thread with as little work as possible: when bytes came, and how many tokens they held.

A token is a mark, a character that occurs nowhere else in what the server sends, so that counting it is all the parsing
there is.
"""

import contextlib
import gc
import re
import selectors
import socket
import time
from collections.abc import Iterator

import msgspec

_REQUEST_ID = re.compile(rb'"id":"cmpl-(\d+)"')
_READ_BYTES = 1 << 16


class Arrivals(msgspec.Struct, kw_only=True):
    """Of one stream. pieces: (time.perf_counter, tokens) for each read that held tokens."""

    sequence: int | None = None
    pieces: list[tuple[float, int]] = []

    def times(self) -> list[float]:
        """When each token came."""
        return [moment for moment, tokens in self.pieces for _ in range(tokens)]


def read_streams(port: int, requests: list[bytes], mark: bytes, timeout_s: float) -> list[Arrivals]:
    """Send each request on a connection of its own and read every stream to its end.

    Raises TimeoutError when they have not all ended after `timeout_s` seconds, RuntimeError when one is refused.
    """
    found = [Arrivals() for _ in requests]
    deadline = time.perf_counter() + timeout_s
    with _no_collections(), selectors.DefaultSelector() as selector:
        for request, arrivals in zip(requests, found, strict=True):
            connection = socket.create_connection(("127.0.0.1", port))
            connection.sendall(request)
            connection.setblocking(False)
            selector.register(connection, selectors.EVENT_READ, arrivals)
        while selector.get_map():
            if time.perf_counter() > deadline:
                raise TimeoutError(f"{len(selector.get_map())} of {len(requests)} streams have not ended")
            for key, _ in selector.select(timeout=1.0):
                connection = key.fileobj  # type: ignore[assignment]
                if not _read(connection, key.data, mark):
                    selector.unregister(connection)
                    connection.close()
    return found


@contextlib.contextmanager
def _no_collections() -> Iterator[None]:
    """No pauses of the reader's own among the times that it takes."""
    gc.disable()
    try:
        yield
    finally:
        gc.enable()


def _read(connection: socket.socket, arrivals: Arrivals, mark: bytes) -> bool:
    """Whether the stream goes on. Raises RuntimeError when the server refuses it."""
    data = connection.recv(_READ_BYTES)
    now = time.perf_counter()
    if not data:
        return False
    if tokens := data.count(mark):
        arrivals.pieces.append((now, tokens))
    if arrivals.sequence is None:
        if not arrivals.pieces and data.startswith(b"HTTP/1.1 ") and not data.startswith(b"HTTP/1.1 200"):
            raise RuntimeError(f"a stream was refused: {data.decode(errors='replace')}")
        if match := _REQUEST_ID.search(data):
            arrivals.sequence = int(match[1])
    return b"[DONE]" not in data
