"""How the start of a cluster goes: its progress in words, and whether it ends with a plan in force or with an error."""

import asyncio
from collections.abc import Callable

from protocol.errors import TandemError


class Starting:
    """Whoever starts the cluster waits on `ended`. After the first end nothing here has a meaning."""

    def __init__(self) -> None:
        self._ended: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self.tell: Callable[[str], None] = lambda _: None
        self._tasks: set[asyncio.Future[None]] = set()

    def __repr__(self) -> str:
        return f"Starting({'ended' if self._ended.done() else 'under way'})"

    async def ended(self) -> None:
        """Returns when the first plan is in force. Raises TandemError when there will be none."""
        await asyncio.shield(self._ended)

    def succeed(self) -> None:
        if not self._ended.done():
            self._ended.set_result(None)

    def fail(self, error: TandemError) -> None:
        if not self._ended.done():
            self._ended.set_exception(error)
