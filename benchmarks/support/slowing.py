"""A share of a processor for some processes, by a control group of Linux's of either version. Needs the superuser."""

import contextlib
import os
from collections.abc import Iterator
from pathlib import Path

from protocol.errors import TandemError

_ROOT = Path("/sys/fs/cgroup")
# Short, so that what is slowed runs evenly.
_PERIOD_US = 5000


class Slowed:
    """A group whose processes have `share` of one processor together."""

    def __init__(self, folder: Path, share: float):
        self._folder = folder
        quota_us = max(round(share * _PERIOD_US), 1000)
        if (folder / "cpu.max").exists():
            (folder / "cpu.max").write_text(f"{quota_us} {_PERIOD_US}")
        else:
            (folder / "cpu.cfs_period_us").write_text(str(_PERIOD_US))
            (folder / "cpu.cfs_quota_us").write_text(str(quota_us))

    def __repr__(self) -> str:
        return f"Slowed({self._folder})"

    @contextlib.contextmanager
    def here(self) -> Iterator[None]:
        """What is started meanwhile is slowed for as long as it lives."""
        (self._folder / "cgroup.procs").write_text(str(os.getpid()))
        try:
            yield
        finally:
            (self._folder.parent / "cgroup.procs").write_text(str(os.getpid()))

    def give_back(self) -> None:
        """All who are in it, to the group above."""
        for pid in (self._folder / "cgroup.procs").read_text().split():
            with contextlib.suppress(OSError):  # it ended
                (self._folder.parent / "cgroup.procs").write_text(pid)


@contextlib.contextmanager
def slowed(share: float) -> Iterator[Slowed]:
    """A group that is gone afterwards. Raises TandemError where there can be none."""
    above = _ROOT / "cpu" if (_ROOT / "cpu").is_dir() else _ROOT
    folder = above / f"tandem-{os.getpid()}"
    try:
        folder.mkdir()
    except OSError as error:
        raise TandemError(f"no control group can be made here to slow a worker: {error}") from None
    group = Slowed(folder, share)
    try:
        yield group
    finally:
        group.give_back()
        folder.rmdir()
