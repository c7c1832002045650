"""Listening: a bound socket made first, so that a port in use is a plain error, and uvicorn on top of it."""

import asyncio
import contextlib
import errno
import socket
from collections.abc import Iterator

import uvicorn
from starlette.types import ASGIApp, Receive, Scope, Send

from cluster.api.connection import Connection, max_connections
from cluster.api.generation import DIRECT_SEND
from protocol.errors import TandemError

BACKLOG = 1024
KEEP_ALIVE_S = 30
# Of a stream: what the system takes of an answer whose reader does not read is neither paused nor counted.
SEND_BUFFER_BYTES = 32 * 1024
# When the server is about to stop: how long somebody may take nothing.
UNREAD_S = 0.5


def bind(host: str, port: int) -> socket.socket:
    """A listening TCP socket; port 0 takes a free one. Raises TandemError that says what to do."""
    try:
        family, kind, protocol, _, address = socket.getaddrinfo(
            host, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE
        )[0]
    except OSError as error:
        raise TandemError(f"the API address {host} is not known to this machine: {error.strerror}") from error
    listener = socket.socket(family, kind, protocol)
    try:
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, SEND_BUFFER_BYTES)
        listener.bind(address)
        listener.listen(BACKLOG)
    except OSError as error:
        listener.close()
        raise TandemError(_why_not(host, port, error)) from error
    return listener


async def serve(
    app: ASGIApp,
    listener: socket.socket,
    *,
    stopping: asyncio.Event,
    draining: asyncio.Event | None = None,
    grace_s: int = 5,
) -> None:
    """Serve `app` until `stopping` is set, then let running requests end for `grace_s` seconds. Closes `listener`.

    draining: set when running answers are waited for; those that nobody reads are ended then.

    Takes no signals: they are the caller's.
    """
    Connection.most = max_connections()
    config = uvicorn.Config(
        _DirectSend(app),
        http=Connection,
        access_log=False,
        proxy_headers=False,
        log_config=None,
        log_level="warning",
        lifespan="off",
        ws="none",
        backlog=BACKLOG,
        timeout_keep_alive=KEEP_ALIVE_S,
        timeout_graceful_shutdown=grace_s,
        server_header=False,
    )
    server = _Server(config)
    watchers = [asyncio.create_task(_stop_when(stopping, server))]
    if draining is not None:
        watchers.append(asyncio.create_task(_leave_unread_when(draining, server)))
    try:
        await server.serve(sockets=[listener])
    finally:
        for watcher in watchers:
            watcher.cancel()
        listener.close()


class _DirectSend:
    """Puts the server's own `send` into the scope: the many writes of a stream skip the layers that watch for its start."""

    def __init__(self, app: ASGIApp) -> None:
        self._app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        scope[DIRECT_SEND] = send
        await self._app(scope, receive, send)


class _Server(uvicorn.Server):
    @contextlib.contextmanager
    def capture_signals(self) -> Iterator[None]:
        yield


async def _stop_when(stopping: asyncio.Event, server: uvicorn.Server) -> None:
    await stopping.wait()
    server.should_exit = True


async def _leave_unread_when(draining: asyncio.Event, server: uvicorn.Server) -> None:
    await draining.wait()
    while True:
        for connection in list(server.server_state.connections):
            if isinstance(connection, Connection):
                connection.leave_unread()
        await asyncio.sleep(UNREAD_S)


def _why_not(host: str, port: int, error: OSError) -> str:
    if error.errno == errno.EADDRINUSE:
        return f"port {port} on {host} is in use; stop what uses it, or choose another with --port"
    if error.errno == errno.EACCES:
        return f"port {port} on {host} needs more rights than you have; choose one above 1023 with --port"
    return f"the API cannot listen on {host} port {port}: {error.strerror}"
