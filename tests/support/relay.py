"""A TCP relay on loopback that stands for the cable between two processes, and whose faults a test or a benchmark plays.

It knows nothing of what it forwards. Its connections live on an asyncio loop on a thread of their own; every method may be
called from any thread and returns when it has taken effect.
"""

import asyncio
import contextlib
import socket
import struct
import threading
from collections.abc import Callable

_READ_BYTES = 1 << 18
_CHUNKS_UNDER_WAY = 256
_TIMEOUT_S = 10.0
_RESET_ON_CLOSE = struct.pack("ii", 1, 0)  # struct linger: on, 0 seconds


class Relay:
    """Listens on a free port of 127.0.0.1 and forwards each connection to `target_port` there, in both directions."""

    def __init__(self, target_port: int):
        self._target_port = target_port
        self._loop = asyncio.new_event_loop()
        self._forwarding = asyncio.Event()
        self._forwarding.set()
        self._delay_s = 0.0
        self._bytes_per_s: float | None = None
        self._writers: set[asyncio.StreamWriter] = set()
        self._pumps: set[asyncio.Task[None]] = set()
        listener = socket.create_server(("127.0.0.1", 0))
        self.port: int = listener.getsockname()[1]
        self._server = self._loop.run_until_complete(asyncio.start_server(self._serve, sock=listener))
        self._thread = threading.Thread(target=self._loop.run_forever, name="relay", daemon=True)
        self._thread.start()

    def __repr__(self) -> str:
        return f"Relay({self.port} to {self._target_port})"

    @property
    def endpoint(self) -> str:
        """Where ZeroMQ connects to."""
        return f"tcp://127.0.0.1:{self.port}"

    def reset(self) -> None:
        """Break every connection on both sides (RST); new ones are forwarded."""
        self._on_loop(self._reset)

    def cut(self) -> None:
        """Forward nothing more, as if the cable were out: connections stay open, new ones are accepted, nothing is told."""
        self._on_loop(self._forwarding.clear)

    def heal(self) -> None:
        """Forward again, without delay or limit: what was held back first, in order, as TCP would repeat it."""
        self._on_loop(self._heal)

    def delay(self, seconds: float) -> None:
        """Forward everything so much later, in each direction; as many bytes per second as before."""
        self._delay_s = seconds

    def throttle(self, bytes_per_s: float) -> None:
        """Forward at most so many bytes per second in each direction of each connection."""
        self._bytes_per_s = bytes_per_s

    def close(self) -> None:
        """Close every connection and the port, and end the thread."""
        asyncio.run_coroutine_threadsafe(self._close(), self._loop).result(_TIMEOUT_S)
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join(_TIMEOUT_S)
        self._loop.close()

    def _on_loop(self, act: Callable[[], object]) -> None:
        async def acting() -> None:
            act()

        asyncio.run_coroutine_threadsafe(acting(), self._loop).result(_TIMEOUT_S)

    def _reset(self) -> None:
        for writer in [writer for writer in self._writers if not writer.transport.is_closing()]:
            writer.get_extra_info("socket").setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, _RESET_ON_CLOSE)
            writer.transport.abort()
        for pump in self._pumps:
            pump.cancel()

    def _heal(self) -> None:
        self._delay_s, self._bytes_per_s = 0.0, None
        self._forwarding.set()

    async def _close(self) -> None:
        self._server.close()
        self._reset()
        await asyncio.gather(*self._pumps, return_exceptions=True)

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        """One connection, from its beginning until both directions have ended."""
        task = asyncio.current_task()
        assert task is not None
        self._pumps.add(task)
        mine = {writer}
        self._writers.add(writer)
        try:
            await self._forwarding.wait()
            target_reader, target_writer = await asyncio.open_connection("127.0.0.1", self._target_port)
            mine.add(target_writer)
            self._writers.add(target_writer)
            async with asyncio.TaskGroup() as directions:
                directions.create_task(self._pump(reader, target_writer))
                directions.create_task(self._pump(target_reader, writer))
        except* (OSError, asyncio.CancelledError):
            pass
        finally:
            for each in mine:
                each.transport.abort()
            self._writers -= mine
            self._pumps.discard(task)

    async def _pump(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        """One direction: a line of chunks and when each is due."""
        line: asyncio.Queue[tuple[float, bytes]] = asyncio.Queue(_CHUNKS_UNDER_WAY)
        async with asyncio.TaskGroup() as ends:
            ends.create_task(self._take(reader, line))
            ends.create_task(self._give(line, writer))

    async def _take(self, reader: asyncio.StreamReader, line: "asyncio.Queue[tuple[float, bytes]]") -> None:
        data = b"begun"
        while data:
            data = b""
            with contextlib.suppress(ConnectionError):  # told to the other side as an end
                data = await reader.read(_READ_BYTES)
            if self._bytes_per_s is not None:  # here, so that what waits stays with the sender, as before a slow link
                await asyncio.sleep(len(data) / self._bytes_per_s)
            await line.put((self._loop.time() + self._delay_s, data))

    async def _give(self, line: "asyncio.Queue[tuple[float, bytes]]", writer: asyncio.StreamWriter) -> None:
        while True:
            due, data = await line.get()
            await asyncio.sleep(max(0.0, due - self._loop.time()))
            await self._forwarding.wait()
            if not data:
                writer.write_eof()
                return
            writer.write(data)
            await writer.drain()
