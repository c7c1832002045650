"""How much memory this host has for workers: what there is, what is free, and what the system lets a process have.

A Mac's GPU pages what is beyond the working set that Metal recommends; on Linux a control group may allow less than the machine
has. Only workers have MLX in their processes, so Metal's figure is asked for in another one. What is free now says nothing of
limits: workers that were there before hold what they are to go on with.
"""

import contextlib
import functools
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import msgspec
import psutil

# Of a machine's memory, what all its workers together may use for weights and caches.
MEMORY_SHARE = 0.75
_ASK_METAL = "import mlx.core as mx; print(mx.device_info()['max_recommended_working_set_size'])"
_METAL_S = 30.0
_GROUPS, _OWN_GROUPS = Path("/sys/fs/cgroup"), Path("/proc/self/cgroup")


class HostMemory(msgspec.Struct, frozen=True, kw_only=True):
    """Bytes. total: what a process of this host can have at most; free: of that, now; working_set: what Metal recommends at
    most, None without Metal.
    """

    total: int
    free: int
    working_set: int | None = None

    def of_worker(self, num_workers: int) -> int:
        """The limit of one of so many workers where nobody sets another."""
        usable = int(self.total * MEMORY_SHARE)
        return (usable if self.working_set is None else min(usable, self.working_set)) // num_workers


class GroupMemory(msgspec.Struct, frozen=True):
    """What a control group allows, and what of it is free; bytes."""

    limit: int
    free: int


def read_host_memory() -> HostMemory:
    """This host's."""
    memory = psutil.virtual_memory()
    groups = read_groups(_GROUPS, _OWN_GROUPS) if sys.platform == "linux" else []
    return HostMemory(
        total=min([memory.total, *(group.limit for group in groups)]),
        free=min([memory.available, *(group.free for group in groups)]),
        working_set=_working_set() if sys.platform == "darwin" else None,
    )


@functools.cache
def _working_set() -> int | None:
    try:
        found = subprocess.run(
            [sys.executable, "-c", _ASK_METAL], capture_output=True, timeout=_METAL_S, check=True, text=True
        )
        return int(found.stdout)
    except (OSError, subprocess.SubprocessError, ValueError):
        return None


def read_groups(mounted: Path, own: Path) -> list[GroupMemory]:
    """The limits of this process's control group and of all above it. mounted: where control groups are; own: a file that
    names the groups of this process. Linux's versions 1 and 2 of them; nothing where there are none.
    """
    found: list[GroupMemory] = []
    with contextlib.suppress(OSError):
        for line in own.read_text().splitlines():
            controllers, _, name = line.partition(":")[2].partition(":")
            if not controllers:
                found += _limits(mounted, name, ("memory.max", "memory.current", "inactive_file"))
            elif "memory" in controllers.split(","):
                files = ("memory.limit_in_bytes", "memory.usage_in_bytes", "total_inactive_file")
                found += _limits(mounted / "memory", name, files)
    return found


def _limits(root: Path, name: str, files: tuple[str, str, str]) -> Iterator[GroupMemory]:
    """From a group upwards. In a container the name may be the host's, which is not there; then the root is its own."""
    limit_file, used_file, given_back = files
    group = root / name.lstrip("/")
    for folder in (group, *(parent for parent in group.parents if parent == root or root in parent.parents)):
        with contextlib.suppress(OSError, ValueError):  # "max" is no number: no limit
            limit = int((folder / limit_file).read_text())
            statistics = dict(line.split() for line in (folder / "memory.stat").read_text().splitlines())
            used = int((folder / used_file).read_text()) - int(statistics.get(given_back, 0))
            yield GroupMemory(limit, max(limit - used, 0))
