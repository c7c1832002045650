"""The starts of workers' processes: those here are made at once, those on other hosts behind everybody's back, all of them at a time.

Owns what is under way. What follows from a start that fails is said to the roster; who starts when is the roster's to decide.
"""

import asyncio
import logging
from collections.abc import Callable

from cluster.membership.local import Launcher
from cluster.membership.roster import JOIN_WITHIN_S, REJOIN_WITHIN_S, Roster
from cluster.membership.ssh_command import HostUnavailable
from protocol.home import ProcessIdentity
from protocol.values import Peer

log = logging.getLogger(__name__)


class Launching:
    """door: where workers will ask to be let in; failed: told of a worker that could not be started, and why where its host
    is to blame.
    """

    def __init__(
        self,
        launcher: Launcher,
        roster: Roster,
        *,
        door: Callable[[], Peer],
        now: Callable[[], float],
        failed: Callable[[str, str | None], None],
    ):
        self.launcher = launcher
        self._roster = roster
        self._door = door
        self._now = now
        self._failed = failed
        self._under_way: set[asyncio.Task[None]] = set()

    def __repr__(self) -> str:
        return f"Launching({len(self._under_way)} under way)"

    async def start(self, name: str) -> None:
        """Start a worker's process; it joins by itself. Raises OSError or HostUnavailable."""
        self._roster.expect(name, JOIN_WITHIN_S, self._now())
        await self.launcher.start(
            name,
            coordinator=self._door(),
            token=self._roster.token(self._door().public_key),
            memory_limit_bytes=self._roster.members[name].memory_limit_bytes,
        )

    def begin(self, name: str) -> None:
        """The same, without a wait."""
        task = asyncio.create_task(self._try(name))
        self._under_way.add(task)
        task.add_done_callback(self._under_way.discard)

    async def _try(self, name: str) -> None:
        try:
            await self.start(name)
        except HostUnavailable as error:
            self._failed(name, str(error))
        except OSError as error:
            log.error("%s cannot be started: %s", name, error)
            self._failed(name, None)

    def adopt(self, name: str, process: ProcessIdentity) -> None:
        """A worker of an earlier coordinator lives; it will join again by itself."""
        self._roster.expect(name, REJOIN_WITHIN_S, self._now())
        self.launcher.adopt(name, process)

    async def stop(self) -> None:
        """Nothing starts any more, and what was started ends."""
        for task in tuple(self._under_way):
            task.cancel()
        await asyncio.gather(*self._under_way, return_exceptions=True)
        await self.launcher.end()
