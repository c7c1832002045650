"""Log files of the long-running processes: one rotating file for each, under the home's `logs`.

Rule for all who log: never a prompt, an answer or a key; counts, names and ids only.
"""

import logging
import logging.handlers

from protocol.home import Home

_MAX_BYTES = 5_000_000
_NUM_OLD_FILES = 3


def configure_logging(home: Home, name: str) -> None:
    """Send this process's log to `logs/NAME.log`, in place of whatever handled it before."""
    home.create()
    handler = logging.handlers.RotatingFileHandler(
        home.logs / f"{name}.log", maxBytes=_MAX_BYTES, backupCount=_NUM_OLD_FILES, encoding="utf-8"
    )
    handler.setFormatter(logging.Formatter("%(asctime)s %(levelname)s %(name)s: %(message)s"))
    root = logging.getLogger()
    for old in list(root.handlers):
        root.removeHandler(old)
        old.close()
    root.addHandler(handler)
    root.setLevel(logging.INFO)
