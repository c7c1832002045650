"""The lines that a person types into a conversation, or that a pipe gives: edited, completed and remembered on a terminal."""

import sys
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

from protocol.errors import UsageError

# Words that may follow a command.
Arguments = Mapping[str, Sequence[str]]


def typed_lines(history: Path, commands: Sequence[str], arguments: Arguments) -> Iterator[str]:
    """What is typed, line by line, none of them empty; ends with the input. history: a file of what was typed before."""
    ask = _plainly
    if sys.stdin.isatty() and sys.stdout.isatty():
        from cluster.cli.editing import editor

        ask = editor(history, lambda text: completions(text, commands, arguments))
    while True:
        try:
            line = ask()
        except EOFError:
            return
        except UnicodeDecodeError:
            raise UsageError("the input is not valid UTF-8 text") from None
        if line.strip():
            yield line.strip()


def completions(text: str, commands: Sequence[str], arguments: Arguments) -> Iterator[tuple[str, str]]:
    """What may stand in place of the end of a command that is being typed, each with that end."""
    name, space, rest = text.partition(" ")
    words, typed = (arguments.get(name, ()), rest) if space else (commands, name)
    return ((word, typed) for word in words if text.startswith("/") and word.startswith(typed))


def _plainly() -> str:
    return input("> " if sys.stdin.isatty() else "")
