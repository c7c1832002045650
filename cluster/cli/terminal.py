"""What the commands say beside their output: notes and progress, on stderr.

Progress is a line that is written over, only on a terminal, and only once something has taken a second. Under an answer
that has begun it takes a line of its own, so that nothing of the answer is written over.
"""

import os
import sys
import time
from typing import TextIO

_SILENT_S = 1.0


class Terminal:
    """Notes and progress on `stream`."""

    def __init__(self, stream: TextIO):
        self._stream = stream
        self._began: float | None = None
        self._shown = False
        self.interactive = stream.isatty() and os.environ.get("CI") != "true"

    def __repr__(self) -> str:
        return f"Terminal(interactive={self.interactive})"

    def note(self, text: str) -> None:
        """A line that stays."""
        self.done()
        print(text, file=self._stream, flush=True)

    def aside(self, text: str) -> None:
        """A dim line that stays, on a terminal only."""
        if self.interactive:
            self.note(f"\033[2m{text}\033[0m")

    def progress(self, text: str, now: float | None = None, *, below: bool = False, at_once: bool = False) -> None:
        """How far something is; `now` in seconds of a monotonic clock.

        below: other text stands on the line; at_once: it has taken long already.
        """
        now = time.monotonic() if now is None else now
        self._began = now if self._began is None else self._began
        if self.interactive and (at_once or now - self._began >= _SILENT_S):
            start = "\n" if below and not self._shown else "\r\033[K"
            self._shown = True
            print(f"{start}{text}", end="", file=self._stream, flush=True)

    def done(self) -> None:
        """The thing in progress ended: take its line away."""
        self._began = None
        if self._shown:
            self._shown = False
            print("\r\033[K", end="", file=self._stream, flush=True)


def standard_terminal() -> Terminal:
    """Notes and progress on this process's stderr."""
    return Terminal(sys.stderr)
