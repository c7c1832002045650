"""Log files of the long-running processes: one rotating file for each, under the home's `logs`.

Rule for all who log: never a prompt, an answer or a key; counts, names and ids only.
"""

import logging
import logging.handlers
import time
from collections.abc import Callable

from protocol.home import Home
from protocol.log_lines import LogFormat, formatter

_MAX_BYTES = 5_000_000
_NUM_OLD_FILES = 3
# Of one kind of line, how many there are within so many seconds before the rest is only counted.
_MOST_LINES, _WITHIN_S = 20, 60.0


# What a line says that is written however often it comes, as in log.info(..., extra=EACH).
EACH = {"is_each": True}


class Repeats(logging.Filter):
    """Lets a kind of line through a few times a minute and counts the others, so that no peer that sends nonsense rotates
    the history away. A kind is a place in the code. now: seconds of a monotonic clock.
    """

    def __init__(self, now: Callable[[], float] = time.monotonic) -> None:
        super().__init__()
        self._now = now
        self._counts: dict[tuple[str, int], tuple[float, int]] = {}  # since when, and how many

    def filter(self, record: logging.LogRecord) -> bool:
        """Whether to write a line; the first one after others were left out says how many."""
        if getattr(record, "is_each", False):
            return True
        kind, now = (record.pathname, record.lineno), self._now()
        since, count = self._counts.get(kind, (now, 0))
        if now - since >= _WITHIN_S:
            if count > _MOST_LINES:
                record.msg, record.args = f"{record.getMessage()} (and {count - _MOST_LINES} like it before)", ()
            since, count = now, 0
        self._counts[kind] = (since, count + 1)
        return count < _MOST_LINES


def configure_logging(home: Home, name: str, log_format: LogFormat = "text") -> None:
    """Send this process's log to `logs/NAME.log`, in place of whatever handled it before."""
    home.create()
    handler = logging.handlers.RotatingFileHandler(
        home.logs / f"{name}.log", maxBytes=_MAX_BYTES, backupCount=_NUM_OLD_FILES, encoding="utf-8"
    )
    handler.setFormatter(formatter(log_format))
    handler.addFilter(Repeats())
    root = logging.getLogger()
    for old in list(root.handlers):
        root.removeHandler(old)
        old.close()
    root.addHandler(handler)
    root.setLevel(logging.INFO)


def say_on_terminal() -> None:
    """What is logged is also said to whoever started this process, for one that a person watches."""
    handler = logging.StreamHandler()
    handler.setFormatter(logging.Formatter("tandem: %(message)s"))
    handler.addFilter(Repeats())
    logging.getLogger().addHandler(handler)
