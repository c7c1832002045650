"""The API's connections: how many there are, what a client may send before it is answered, and how long it may take.

uvicorn's protocol on httptools parses; this holds it to limits, so that nobody costs memory, descriptors or places by being
silent, endless or many. Knows nothing of what is asked. One connection is one instance, on the event loop.
"""

import asyncio
import fcntl
import socket
import sys
import termios
from collections import Counter
from http import HTTPStatus
from typing import Any, ClassVar, cast

from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol

from cluster.api.events import as_json
from protocol.descriptors import allow_descriptors
from protocol.errors import ApiError

# Of a request line and its headers, in bytes and in number.
MAX_HEAD_BYTES = 64 * 1024
MAX_HEADERS = 128
# From the connection, or the first byte of a further request, to the end of its headers.
HEAD_TIMEOUT_S = 30.0
# Requests that may wait behind one that is being answered.
MAX_PIPELINED = 8
# When the server stops: for who has not read all that was written.
LAST_READ_S = 1.5
# What is written and not sent yet, before the answer waits for its reader.
WRITE_BUFFER_BYTES = 16 * 1024
# In a request's scope: closes its connection at once, whatever of the answer is not sent yet.
ABORT = "tandem.abort"
# Descriptors for files, workers and whatever else the coordinator opens, and connections that leave room for other addresses.
_KEPT_BACK = 256
# Where the system allows few: what a coordinator of some workers has open by itself.
_LEAST_KEPT_BACK = 52
_FOR_OTHER_ADDRESSES = 8
_LEAST_CONNECTIONS = 8
_MOST_CONNECTIONS = 8192
_VERSIONS = ("1.0", "1.1")
_SO_NWRITE = 0x1024  # of macOS, which Python does not name
_TOO_LARGE = f"the headers are larger than {MAX_HEAD_BYTES // 1024} KB"


def max_connections() -> int:
    """How many connections there may be, of the descriptors that the process may open: as many as the system allows."""
    allowed = allow_descriptors(_MOST_CONNECTIONS + _KEPT_BACK)
    return max(allowed - min(_KEPT_BACK, max(_LEAST_KEPT_BACK, allowed // 4)), _LEAST_CONNECTIONS)


def _unsent_bytes(connection: socket.socket) -> int:
    """What was written to a connection and its other end has not taken: the system's own buffer can hold an answer for minutes."""
    if sys.platform == "darwin":
        return connection.getsockopt(socket.SOL_SOCKET, _SO_NWRITE)
    return int.from_bytes(fcntl.ioctl(connection.fileno(), termios.TIOCOUTQ, bytes(4)), sys.byteorder)


class _Refused(Exception):
    """A request whose head is over a limit; the parser stops there."""


class Connection(HttpToolsProtocol):
    """See the module. most: connections in all."""

    most = _LEAST_CONNECTIONS
    _by_address: ClassVar[Counter[str]] = Counter()

    def __init__(self, *arguments: Any, **named: Any) -> None:
        super().__init__(*arguments, **named)
        self._address = ""
        self._head_bytes = 0
        self._is_in_head = True
        self._late: asyncio.TimerHandle | None = None
        self._unsent_bytes = 0
        self._refusal: tuple[int, str] = (400, "this is no HTTP request that can be understood")

    # --- the connection

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        super().connection_made(transport)
        transport.set_write_buffer_limits(high=WRITE_BUFFER_BYTES)
        self._address = self.client[0] if self.client is not None else ""
        self._by_address[self._address] += 1
        self._expect_head()
        if self._are_too_many():
            self._refuse_now(503, "there are as many connections as may be; try again soon")

    def _are_too_many(self) -> bool:
        of_one = self.most - self.most // _FOR_OTHER_ADDRESSES
        return len(self.connections) > self.most or self._by_address[self._address] > of_one

    def connection_lost(self, exc: Exception | None) -> None:
        self._expect_nothing()
        self._by_address[self._address] -= 1
        if not self._by_address[self._address]:
            del self._by_address[self._address]
        super().connection_lost(exc)

    def shutdown(self) -> None:
        """The server stops, and waits a moment for who is behind with reading."""
        super().shutdown()
        self.loop.call_later(LAST_READ_S, self._leave_unread)

    def _leave_unread(self) -> None:
        if self.flow.write_paused:
            self.transport.abort()

    def leave_unread(self) -> None:
        """The server is about to stop: who has taken nothing since this was asked before, of what was there for it, is left."""
        before, self._unsent_bytes = self._unsent_bytes, _unsent_bytes(self.transport.get_extra_info("socket"))
        if 0 < before <= self._unsent_bytes:
            self.transport.abort()

    # --- the head of a request

    def data_received(self, data: bytes) -> None:
        super().data_received(data)
        if self._is_in_head and self.parser is not None and not self.transport.is_closing():
            self._head_bytes += len(data)  # of a header that does not end nothing else is heard
            if self._head_bytes > MAX_HEAD_BYTES:
                self._refuse_now(431, _TOO_LARGE)

    def on_message_begin(self) -> None:
        super().on_message_begin()
        cast(dict[str, Any], self.scope)[ABORT] = self.transport.abort
        self._is_in_head, self._head_bytes = True, 0
        self._expect_head()

    def on_url(self, url: bytes) -> None:
        super().on_url(url)
        self._count(len(url))

    def on_header(self, name: bytes, value: bytes) -> None:
        super().on_header(name, value)
        self._count(len(name) + len(value))
        if len(self.headers) > MAX_HEADERS:
            self._refuse(431, f"there are more than {MAX_HEADERS} headers")

    def _count(self, num_bytes: int) -> None:
        self._head_bytes += num_bytes
        if self._head_bytes > MAX_HEAD_BYTES:
            self._refuse(431, _TOO_LARGE)

    def on_headers_complete(self) -> None:
        self._is_in_head = False
        self._expect_nothing()
        version = self.parser.get_http_version()
        if version not in _VERSIONS:
            self._refuse(505, "this server speaks HTTP/1.1")
        num_hosts = sum(name == b"host" for name, _ in self.headers)
        if num_hosts > 1 or (version == "1.1" and num_hosts != 1):
            self._refuse(400, "a request needs one Host header")
        if len(self.pipeline) >= MAX_PIPELINED:
            self.transport.abort()
            raise _Refused
        super().on_headers_complete()

    # --- what is over a limit

    def _refuse(self, status: int, why: str) -> None:
        """From within the parser, which stops there."""
        self._refusal = (status, why)
        raise _Refused(why)

    def _refuse_now(self, status: int, why: str) -> None:
        self._refusal = (status, why)
        self.send_400_response(why)

    def send_400_response(self, msg: str) -> None:  # noqa: ARG002 - uvicorn's words for what it does not understand
        """The answer to a request that never becomes one; nothing where another answer is under way."""
        if not self.transport.is_closing() and (self.cycle is None or self.cycle.response_complete):
            status, why = self._refusal
            self.transport.write(_refusal(status, why))
        self.transport.close()

    def _expect_head(self) -> None:
        self._expect_nothing()
        self._late = self.loop.call_later(HEAD_TIMEOUT_S, self._give_up)

    def _expect_nothing(self) -> None:
        if self._late is not None:
            self._late.cancel()
            self._late = None

    def _give_up(self) -> None:
        if self.cycle is None or self.cycle.response_complete:
            self.transport.abort()


def _refusal(status: int, why: str) -> bytes:
    error = ApiError(why)
    error.status, error.error_type, error.code = status, "invalid_request_error", "invalid_request"
    body = as_json(error.body())
    head = f"HTTP/1.1 {status} {HTTPStatus(status).phrase}\r\ncontent-type: application/json\r\ncontent-length: {len(body)}\r\n"
    return head.encode() + b"connection: close\r\n\r\n" + body
