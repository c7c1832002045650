"""What the processes and the home of a cluster hold of the machine: memory, descriptors, threads, files."""

from collections import Counter
from pathlib import Path

import msgspec
import psutil

from benchmarks.support.footprint import footprint_bytes


class ProcessUse(msgspec.Struct, frozen=True, kw_only=True):
    """Of one process. name: a worker's, or the module that it runs."""

    pid: int
    name: str
    resident_bytes: int
    descriptors: int
    threads: int


class Sample(msgspec.Struct, frozen=True, kw_only=True):
    """Of a cluster at one time. requests: answered so far; files: by folder under the home."""

    requests: int
    processes: tuple[ProcessUse, ...]
    files: dict[str, int]

    def of(self, pid: int) -> ProcessUse | None:
        """The process, or None when it was not there."""
        return next((process for process in self.processes if process.pid == pid), None)


def sample(home: Path, requests: int) -> Sample:
    """Every process that has the home in its command line, and every file in the home."""
    return Sample(requests=requests, processes=tuple(_processes(home)), files=_files(home))


def _processes(home: Path) -> list[ProcessUse]:
    found = []
    for process in psutil.process_iter(["cmdline", "status"]):
        command = process.info["cmdline"] or []
        if str(home) not in command or process.info["status"] == psutil.STATUS_ZOMBIE:
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


def _name(command: list[str]) -> str:
    for option in ("--name", "-m"):
        if option in command:
            return command[command.index(option) + 1]
    return Path(command[0]).name


def _files(home: Path) -> dict[str, int]:
    return dict(Counter(str(file.parent.relative_to(home)) for file in home.rglob("*") if file.is_file()))


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
