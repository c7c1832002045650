"""The log files of a cluster: the ends of all, or of one, and following it. Lines of JSON are shown as text."""

import itertools
import select
import time
from collections import deque
from pathlib import Path

from protocol.errors import TandemError, UsageError
from protocol.home import Home
from protocol.log_lines import readable

_POLL_S = 0.25
_OUTPUT = 1


def log_files(home: Home, name: str | None) -> list[Path]:
    """The files of process `name` ("coordinator", a worker's name), or of all.

    Raises:
        UsageError: there is no log of that name.
        TandemError: there are no logs at all.
    """
    files = sorted([*home.logs.glob("*.log"), *home.logs.glob("*.out")]) if home.logs.is_dir() else []
    if not files:
        raise TandemError(f"there are no logs in {home.logs} yet; start a cluster first")
    if name is None:
        return [file for file in files if file.stat().st_size > 0]
    chosen = [file for file in files if name in (file.stem, file.name)]
    if not chosen:
        known = ", ".join(sorted({file.stem for file in files}))
        raise UsageError(f"there is no log of {name!r}; there are {known}")
    return [file for file in chosen if file.stat().st_size > 0] or chosen


def print_ends(files: list[Path], num_lines: int) -> int:
    """Print the last lines of each file, under its name where there are several; where the last one ended, in bytes."""
    position = 0
    for file in files:
        if len(files) > 1:
            print(f"==> {file} <==")
        with file.open("rb") as lines:
            print("".join(map(_text, deque(lines, maxlen=num_lines))), end="", flush=True)
            position = lines.tell()
    return position


def follow(file: Path, position: int) -> None:
    """Print the lines of `file` behind a position, also after it was rotated, until interrupted or nobody reads them any more."""
    while not _nobody_reads():
        time.sleep(_POLL_S)
        size = file.stat().st_size if file.exists() else position
        position = 0 if size < position else position
        if size > position:
            with file.open("rb") as appended:
                appended.seek(position)
                for line in itertools.takewhile(lambda line: line.endswith(b"\n"), appended):
                    print(_text(line), end="", flush=True)
                    position += len(line)


def _text(line: bytes) -> str:
    return readable(line.decode(errors="replace"))


def _nobody_reads() -> bool:
    """Who asked from another host goes without a signal, and a log may be silent for long."""
    output = select.poll()
    output.register(_OUTPUT, 0)
    return any(event & (select.POLLHUP | select.POLLERR) for _, event in output.poll(0))
