"""How a start goes, told to the process that asked for it: a line of JSON each, on standard output."""

import os
from pathlib import Path
from typing import Any

import msgspec

from cluster.planning.progress import StartProgress
from protocol.errors import TandemError


class StartReport:
    """The lines that tell the parent how the start goes. must_be_heard: whether it needs a parent."""

    def __init__(self, *, must_be_heard: bool) -> None:
        self._open = True
        self._must_be_heard = must_be_heard

    def tell(self, **line: Any) -> None:
        """Write one line. Raises TandemError when nobody hears it who must."""
        if not self._open:
            return
        try:
            os.write(1, msgspec.json.encode(line) + b"\n")
        except OSError:
            self.close()
            if self._must_be_heard:
                raise TandemError("whoever asked for the start is gone; nothing is left running") from None

    def progress(self, told: StartProgress) -> None:
        """How far something is; from any thread. Raises as `tell`."""
        self.tell(**told.line)

    def close(self) -> None:
        """Nothing more will be told."""
        if self._open:
            self._open = False
            with Path(os.devnull).open("wb") as nowhere:
                os.dup2(nowhere.fileno(), 1)
