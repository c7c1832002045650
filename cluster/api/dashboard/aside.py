"""What takes a while to look at, and so is looked at now and then, in a thread: the log files, and what `doctor` finds."""

from collections.abc import Awaitable, Callable, Collection, Iterable, Iterator
from pathlib import Path
from typing import Any

import msgspec

from cluster.api.dashboard.log_tail import LogTail
from cluster.api.dashboard.news import status_without_key
from cluster.serving.examining import within
from cluster.serving.findings import Finding
from cluster.serving.status import Status

# In examinations: this machine's own cables and libraries seldom change.
_MACHINE_EACH = 12

RunInThread = Callable[..., Awaitable[Any]]
Told = list[dict[str, str | None]]


class Aside:
    """logs: the folder of log files, None where there is none; run_in_thread: awaits a function that takes a while.

    findings: the latest, for those who may see everything and for the others.
    """

    def __init__(
        self,
        logs: Path | None,
        run_in_thread: RunInThread,
        examine_machine: Callable[[], Iterator[Finding]],
    ) -> None:
        self._tail = None if logs is None else LogTail(logs)
        self._run_in_thread = run_in_thread
        self._examine_machine = examine_machine
        self._machine: list[Finding] = []
        self._num_examined = 0
        self.findings: dict[bool, Told] = {True: [], False: []}

    def __repr__(self) -> str:
        return f"Aside({self._tail}, {len(self.findings[True])} findings)"

    @property
    def lines(self) -> list[str]:
        """The last ones, as far as they are read."""
        return [] if self._tail is None else list(self._tail.lines)

    async def new_lines(self) -> list[str]:
        """Those that were added to the logs."""
        return [] if self._tail is None else await self._run_in_thread(self._tail.read)

    async def examine(self, status: Status) -> bool:
        """Whether there is another finding than before. What this machine finds of itself names its addresses."""
        if self._num_examined % _MACHINE_EACH == 0:
            self._machine = await self._run_in_thread(lambda: list(self._examine_machine()))
        self._num_examined += 1
        before, names = self.findings, {worker.name for worker in status.workers} | {host.name for host in status.hosts}
        self.findings = {
            True: _told([*self._machine, *within(msgspec.to_builtins(status))], names),
            False: _told(within(msgspec.to_builtins(status_without_key(status))), names),
        }
        return self.findings != before


def _told(findings: Iterable[Finding], names: Collection[str]) -> Told:
    """As a page is told: what was found, and what to do."""
    parts = [(finding.verdict, *finding.parts(names)) for finding in findings]
    return [{"level": level, "what": what, "do": advice} for level, what, advice in parts]
