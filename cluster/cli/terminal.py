"""What the commands say beside their output: notes and progress, on stderr.

Progress is a line that is written over, and only once something has taken a second. Under an answer that has begun it takes a line
of its own, so that nothing of the answer is written over. Where there is no terminal it is a plain line every few seconds.
"""

import os
import shutil
import sys
import textwrap
import time
from typing import TextIO

_SILENT_S = 1.0
# Without a terminal: how often a line is written, at first and, where something takes long, by what share of the time so far.
_LINE_EVERY_S, _LINE_SHARE = 5.0, 0.1


class Terminal:
    """Notes and progress on `stream`."""

    def __init__(self, stream: TextIO):
        self._stream = stream
        self._began: float | None = None
        self._shown = False
        self._last_line_at: float | None = None
        self.interactive = stream.isatty() and os.environ.get("CI") != "true"

    def __repr__(self) -> str:
        return f"Terminal(interactive={self.interactive})"

    def note(self, text: str) -> None:
        """A line that stays."""
        self.done()
        print(text, file=self._stream, flush=True)

    def aside(self, text: str) -> None:
        """A dim text that stays, on a terminal only, broken between words."""
        if self.interactive:
            lines = textwrap.wrap(text, shutil.get_terminal_size().columns, break_on_hyphens=False)
            self.note("\n".join(f"\033[2m{line}\033[0m" for line in lines))

    def progress(self, text: str, now: float | None = None, *, below: bool = False, at_once: bool = False) -> None:
        """How far something is; `now` in seconds of a monotonic clock.

        below: other text stands on the line; at_once: it has taken long already.
        """
        now = time.monotonic() if now is None else now
        self._began = now if self._began is None else self._began
        if not self.interactive:
            self._line(text, now)
        elif at_once or now - self._began >= _SILENT_S:
            start = "\n" if below and not self._shown else "\r\033[K"
            self._shown = True
            print(f"{start}{text}", end="", file=self._stream, flush=True)

    def _line(self, text: str, now: float) -> None:
        """A plain one, unless there was one just now."""
        assert self._began is not None
        last_at = self._began if self._last_line_at is None else self._last_line_at
        if now - last_at >= max(_LINE_EVERY_S, (now - self._began) * _LINE_SHARE):
            self._last_line_at = now
            print(f"tandem: {text}", file=self._stream, flush=True)

    def done(self) -> None:
        """The thing in progress ended: take its line away."""
        self._began = self._last_line_at = None
        if self._shown:
            self._shown = False
            print("\r\033[K", end="", file=self._stream, flush=True)


def standard_terminal() -> Terminal:
    """Notes and progress on this process's stderr."""
    return Terminal(sys.stderr)
