"""How the start of a cluster goes: its progress in words, and whether it ends with a plan in force or with an error."""

import asyncio
from collections.abc import Callable

from cluster.planning.plan import Plan
from cluster.planning.progress import StartProgress
from protocol.errors import TandemError


class Starting:
    """Whoever starts the cluster waits on `ended`. After the first end nothing here has a meaning."""

    def __init__(self) -> None:
        self._ended: asyncio.Future[Plan] = asyncio.get_running_loop().create_future()
        self.tell: Callable[[StartProgress], None] = lambda _: None
        self._tasks: set[asyncio.Future[None]] = set()

    def __repr__(self) -> str:
        return f"Starting({'ended' if self._ended.done() else 'under way'})"

    async def ended(self) -> Plan:
        """The first plan that was in force; another may be by now, or none. Raises TandemError when there will be none."""
        return await asyncio.shield(self._ended)

    def succeed(self, plan: Plan) -> None:
        if not self._ended.done():
            self._ended.set_result(plan)

    def fail(self, error: TandemError) -> None:
        if not self._ended.done():
            self._ended.set_exception(error)
