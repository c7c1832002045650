"""What the processes and the home of a cluster hold of the machine: memory, descriptors, threads, files."""

import contextlib
from collections import Counter
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Self

import msgspec
import psutil

from benchmarks.support.footprint import footprint_bytes
from protocol.transport import LOOPBACK

COORDINATOR_NAME = "cluster.coordinator"


class Place(msgspec.Struct, frozen=True, kw_only=True):
    """A machine that a cluster has processes on, each with `home` in its command line. files: where that folder is found from here;
    addresses: those of what listens there; first_pid: of the process from which all others there come, None for this machine.
    """

    home: Path
    files: Path
    addresses: tuple[str, ...]
    first_pid: int | None = None

    @classmethod
    def here(cls, home: Path) -> Self:
        """This machine."""
        return cls(home=home, files=home, addresses=(LOOPBACK,))


class ProcessUse(msgspec.Struct, frozen=True, kw_only=True):
    """Of one process. name: a worker's, or the module that it runs."""

    pid: int
    name: str
    resident_bytes: int
    descriptors: int
    threads: int


class Sample(msgspec.Struct, frozen=True, kw_only=True):
    """Of a cluster at one time. requests: answered so far; files: by folder under the homes."""

    requests: int
    processes: tuple[ProcessUse, ...]
    files: dict[str, int]

    def of(self, pid: int) -> ProcessUse | None:
        """The process, or None when it was not there."""
        return next((process for process in self.processes if process.pid == pid), None)


def sample(places: Sequence[Place], requests: int) -> Sample:
    """Every process of a cluster, and every file in its homes."""
    processes = tuple(process for place in places for process in processes_of(place))
    return Sample(requests=requests, processes=processes, files=_files(places))


def processes_of(place: Place) -> list[ProcessUse]:
    """Those with the home in their command line, by name."""
    found = []
    for process in _running(place):
        command = _command(process)
        if str(place.home) not in command:
            continue
        with process.oneshot():
            found.append(
                ProcessUse(
                    pid=process.pid,
                    name=_name(command),
                    resident_bytes=footprint_bytes(process),
                    descriptors=process.num_fds(),
                    threads=process.num_threads(),
                )
            )
    return sorted(found, key=lambda use: (use.name, use.pid))


def _running(place: Place) -> Iterable[psutil.Process]:
    if place.first_pid is None:
        return psutil.process_iter()
    return psutil.Process(place.first_pid).children(recursive=True)


def _command(process: psutil.Process) -> list[str]:
    """None of one that has ended, or is not ours to look at."""
    with contextlib.suppress(psutil.NoSuchProcess, psutil.AccessDenied):
        return process.cmdline()
    return []


def _name(command: list[str]) -> str:
    for option in ("--name", "-m"):
        if option in command:
            return command[command.index(option) + 1]
    return Path(command[0]).name


def _files(places: Sequence[Place]) -> dict[str, int]:
    files = ((place.files, file) for place in places for file in place.files.rglob("*") if file.is_file())
    return dict(Counter(str(file.parent.relative_to(home)) for home, file in files))


class Growth(msgspec.Struct, frozen=True, kw_only=True):
    """A process that lived from one sample to the last: what it held at the first and at most since; memory as bytes."""

    name: str
    resident: tuple[int, int]
    descriptors: tuple[int, int]
    threads: tuple[int, int]

    @property
    def memory(self) -> float:
        """The most since, over the first, less 1."""
        return self.resident[1] / self.resident[0] - 1


def growth(samples: list[Sample]) -> list[Growth]:
    """Of every process that is in all the samples. Descriptors and threads: at the first and at the last, since some
    come and go.
    """
    first, *later = samples
    found = []
    for process in first.processes:
        uses = [use for one in later if (use := one.of(process.pid)) is not None]
        if len(uses) == len(later) and uses:
            found.append(
                Growth(
                    name=process.name,
                    resident=(process.resident_bytes, max(use.resident_bytes for use in uses)),
                    descriptors=(process.descriptors, uses[-1].descriptors),
                    threads=(process.threads, uses[-1].threads),
                )
            )
    return found
