"""The prompt of a command line: its words, and what a file or a pipe gives on standard input."""

import os
import select
import stat
from collections.abc import Sequence
from typing import BinaryIO

from cluster.cli.terminal import Terminal
from protocol.errors import UsageError

# For so long a pipe that nobody was told to read may stay silent. Some programs leave one open for whoever they start.
_SILENT_S = 3.0


def read_prompt(words: Sequence[str], stdin: BinaryIO, terminal: Terminal) -> str:
    """The words as one text, with what comes on `stdin` in place of "-", or in front of them where that is a file or a pipe.

    Raises:
        UsageError: it is empty or not UTF-8.
    """
    try:
        text = _joined(words, stdin, terminal)
        text.encode("utf-8")  # an argument that is not UTF-8 arrives with lone surrogates
    except UnicodeError:
        raise UsageError("the prompt is not valid UTF-8 text; convert it to UTF-8 first") from None
    if not text.strip():
        raise UsageError('the prompt is empty; give some text, as in ./launch.sh prompt "What is a KV cache?"')
    return text


def _joined(words: Sequence[str], stdin: BinaryIO, terminal: Terminal) -> str:
    if list(words) == ["-"]:
        return stdin.read().decode("utf-8")
    if "-" in words:
        at = list(words).index("-")
        return "\n\n".join(
            filter(None, (" ".join(words[:at]), stdin.read().decode("utf-8"), " ".join(words[at + 1 :])))
        )
    text = " ".join(words)
    given = stdin.read().decode("utf-8") if _gives(stdin, terminal) else ""
    return f"{given}\n\n{text}" if given.strip() else text


def _gives(stdin: BinaryIO, terminal: Terminal) -> bool:
    """Whether somebody put a file or a pipe there, for us to read."""
    try:
        mode = os.fstat(stdin.fileno()).st_mode
    except (OSError, ValueError):  # closed, or none of the system's
        return False
    if stat.S_ISFIFO(mode) and not select.select([stdin], [], [], _SILENT_S)[0]:
        terminal.note(
            "tandem: nothing comes on standard input, so it is left out; end the prompt with - to wait for it."
        )
        return False
    return stat.S_ISFIFO(mode) or stat.S_ISREG(mode)
