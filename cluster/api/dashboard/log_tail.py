"""The ends of the log files of a home, and what is added to them: of the coordinator, and of the workers here.

Reads files, so it belongs into a thread; nothing is open between two looks. Lines of JSON are told as text.
"""

import heapq
from collections import deque
from collections.abc import Iterable, Iterator
from pathlib import Path

from protocol.log_lines import readable

KEPT_LINES = 200
# Of one file and one look; of more the last are read.
_MOST_BYTES = 128 * 1024
_TIME = "0000-00-00 00:00:00,000"


class LogTail:
    """The last lines of all files together, each with the name of its process in front of it."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._positions: dict[Path, int] = {}
        self.lines: deque[str] = deque(maxlen=KEPT_LINES)

    def __repr__(self) -> str:
        return f"LogTail({self._folder})"

    def read(self) -> list[str]:
        """The lines that were added since the last call, at first the last ones that there are; in the order of their times."""
        files = sorted(self._folder.glob("*.log"))
        told = [_timed(file.stem, self._added(file)) for file in files]
        added = [line for _, line in heapq.merge(*told, key=lambda timed: timed[0])][-KEPT_LINES:]
        self.lines += added
        return added

    def _added(self, file: Path) -> list[str]:
        """Whole lines only; what is no longer there when it is looked for was rotated away."""
        try:
            with file.open("rb") as opened:
                size = opened.seek(0, 2)
                known = self._positions.get(file, 0)
                begin = 0 if size < known else known  # after a rotation it begins anew
                skipped = max(begin, size - _MOST_BYTES)
                opened.seek(skipped)
                data = opened.read(size - skipped)
        except OSError:
            return []
        whole = data[: data.rfind(b"\n") + 1]
        self._positions[file] = skipped + len(whole)
        lines = whole.decode(errors="replace").splitlines()
        return lines[1:] if skipped > begin else lines


def _timed(name: str, lines: Iterable[str]) -> Iterator[tuple[str, str]]:
    """Each with its time; those of a traceback have that of the line that they belong to."""
    at = ""
    for line in lines:
        for text in readable(line).splitlines():
            if _begins_with_time(text):
                at = text[: len(_TIME)]
            yield at, f"{name} {text}"


def _begins_with_time(text: str) -> bool:
    found = text[: len(_TIME)]
    return len(found) == len(_TIME) and all(
        given.isdigit() if wanted == "0" else given == wanted for given, wanted in zip(found, _TIME, strict=True)
    )
