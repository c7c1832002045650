"""What one open feed is still to be sent. Who reads too slowly is let go: its page comes back and begins anew."""

import asyncio
from collections import deque

# How far a reader may be behind, and how far before it is spared what is for the moment alone. What is sent at the beginning is a
# third of the first.
MOST_BYTES = 1 << 20
SPARED_BYTES = MOST_BYTES // 2


class Outbox:
    """sees_all: whether its reader may see and do everything. overflow: set once it is too far behind.

    What is put here is shared with other feeds, so that a slow one costs no copies.
    """

    def __init__(self, *, sees_all: bool):
        self.sees_all = sees_all
        self.overflow = asyncio.Event()
        self._parts: deque[bytes] = deque()
        self._num_bytes = 0
        self._arrival = asyncio.Event()
        self._has_ended = False

    def __repr__(self) -> str:
        return f"Outbox({self._num_bytes} bytes)"

    def put(self, data: bytes) -> None:
        """Send it behind everything else."""
        if self.overflow.is_set():
            return
        self._num_bytes += len(data)
        if self._num_bytes > MOST_BYTES:
            self.overflow.set()
            self._parts.clear()
            return
        self._parts.append(data)
        self._arrival.set()

    def offer(self, data: bytes) -> None:
        """Send it, unless its reader is behind already."""
        if self._num_bytes + len(data) <= SPARED_BYTES:
            self.put(data)

    def end(self) -> None:
        """Nothing more will come."""
        self._has_ended = True
        self._arrival.set()

    async def take(self) -> bytes:
        """Everything that is there, at least something; nothing at the end."""
        while not self._parts and not self._has_ended:
            self._arrival.clear()
            await self._arrival.wait()
        data = b"".join(self._parts)
        self._parts.clear()
        self._num_bytes = 0
        return data
