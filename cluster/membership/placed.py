"""One launcher for all workers, which asks the one that each is for: of this host, or of the others."""

import asyncio
from collections.abc import Callable, Collection

from cluster.membership.local import END_GRACE_S, Launcher
from protocol.home import ProcessIdentity
from protocol.values import Peer


class PlacedLauncher:
    """A `Launcher`. names_elsewhere: of the workers that are not `here`."""

    def __init__(self, here: Launcher, elsewhere: Launcher, names_elsewhere: Collection[str]):
        self._here = here
        self._elsewhere = elsewhere
        self._names_elsewhere = names_elsewhere

    def __repr__(self) -> str:
        return f"PlacedLauncher({self._here}, {self._elsewhere})"

    @property
    def ended(self) -> Callable[[str, int | None], None]:
        """See Launcher."""
        return self._here.ended

    @ended.setter
    def ended(self, told: Callable[[str, int | None], None]) -> None:
        self._here.ended = self._elsewhere.ended = told

    @property
    def identities(self) -> dict[str, ProcessIdentity]:
        """See Launcher."""
        return self._here.identities | self._elsewhere.identities

    def _of(self, name: str) -> Launcher:
        return self._elsewhere if name in self._names_elsewhere else self._here

    async def start(self, name: str, *, coordinator: Peer, token: str, memory_limit_bytes: int) -> ProcessIdentity:
        """See Launcher."""
        return await self._of(name).start(
            name, coordinator=coordinator, token=token, memory_limit_bytes=memory_limit_bytes
        )

    def adopt(self, name: str, identity: ProcessIdentity) -> None:
        """See Launcher."""
        self._of(name).adopt(name, identity)

    def has_ended(self, name: str) -> bool:
        """See Launcher."""
        return self._of(name).has_ended(name)

    def kill(self, name: str) -> None:
        """See Launcher."""
        self._of(name).kill(name)

    async def end(self, *names: str, grace_s: float = END_GRACE_S) -> None:
        """See Launcher."""
        here = [name for name in names if name not in self._names_elsewhere]
        elsewhere = [name for name in names if name in self._names_elsewhere]
        ends = [
            launcher.end(*asked, grace_s=grace_s)
            for launcher, asked in ((self._here, here), (self._elsewhere, elsewhere))
            if asked or not names
        ]
        await asyncio.gather(*ends)
