"""An answer as it comes: Markdown on a terminal, the text itself elsewhere."""

import re
import sys
from collections.abc import Callable, Iterable
from typing import Any, TextIO

from cluster.cli.undisturbed import uninterrupted, without_echo

_FENCE = re.compile(r"^ {0,3}(```|~~~)", re.MULTILINE)


def complete_blocks(text: str) -> tuple[str, str]:
    """The paragraphs and other blocks that nothing can change any more, and the rest."""
    at = len(text)
    while (at := text.rfind("\n\n", 0, at)) >= 0:
        if len(_FENCE.findall(text, 0, at + 1)) % 2 == 0:  # not within code
            return text[: at + 2], text[at + 2 :]
    return "", text


class PlainText:
    """The text as it is."""

    def __init__(self, stream: TextIO):
        self._stream = stream

    def write(self, text: str) -> None:
        self._stream.write(text)
        self._stream.flush()

    def pause(self) -> None:
        """Something else is written now."""

    def finish(self) -> None:
        """Nothing follows."""
        self.write("\n")


class RenderedMarkdown:
    """Markdown. What may still change is written over as it grows; blocks that are complete stay. console: of rich."""

    def __init__(self, console: Any) -> None:
        self._console = console
        self._open = ""
        self._live: Any = None
        self._restore_echo: Callable[[], None] = lambda: None

    def write(self, text: str) -> None:
        """More of the answer."""
        with uninterrupted():
            self._write(text)

    def _write(self, text: str) -> None:
        done, self._open = complete_blocks(self._open + text)
        if self._live is None:
            from rich.live import Live

            self._live = Live(console=self._console, auto_refresh=False, transient=True)
            self._restore_echo = without_echo(self._console.file.fileno())
            self._live.start()
        self._live.update(_markdown(self._open))
        if done.strip():
            self._console.print(_markdown(done))  # above what may still change, which is shown anew with it
        else:
            self._live.refresh()

    def pause(self) -> None:
        """Something else is written now; more of the answer may follow."""
        with uninterrupted():
            self._pause()

    def _pause(self) -> None:
        if self._live is not None:
            self._live.stop()
            self._live = None
            self._restore_echo()

    def finish(self) -> None:
        """Nothing follows."""
        with uninterrupted():
            self._pause()
            if self._open.strip():
                self._console.print(_markdown(self._open))
            self._open = ""


def renderer() -> "PlainText | RenderedMarkdown":
    """What suits standard output."""
    if not sys.stdout.isatty():
        return PlainText(sys.stdout)
    from rich.console import Console

    return RenderedMarkdown(Console())


def _markdown(text: str) -> Any:
    from rich.markdown import Markdown

    return Markdown(text)


def written(pieces: Iterable[str], out: "PlainText | RenderedMarkdown") -> None:
    """Write all of an answer, to wherever it breaks off."""
    try:
        for piece in pieces:
            out.write(piece)
    finally:
        out.finish()
