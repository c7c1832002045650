"""A line of a conversation as it is edited on a terminal, by prompt_toolkit: history, completion, several lines."""

import os
import sys
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path

from prompt_toolkit import PromptSession
from prompt_toolkit.completion import Completer, Completion
from prompt_toolkit.document import Document
from prompt_toolkit.history import FileHistory
from prompt_toolkit.key_binding import KeyBindings, KeyPressEvent

# For the text before the cursor: what may stand in place of its end, each with that end.
Complete = Callable[[str], Iterable[tuple[str, str]]]


class _Completer(Completer):
    def __init__(self, complete: Complete):
        self._complete = complete

    def get_completions(self, document: Document, _: object) -> Iterator[Completion]:
        for word, typed in self._complete(document.text_before_cursor):
            yield Completion(word, -len(typed))


def editor(history: Path, complete: Complete) -> Callable[[], str]:
    """Asks for a line each time; EOFError for Ctrl-D. history: a file of what was typed before, for its user only."""
    os.close(os.open(history, os.O_CREAT | os.O_WRONLY, 0o600))
    session: PromptSession[str] = PromptSession(
        history=FileHistory(str(history)),
        completer=_Completer(complete),
        complete_while_typing=True,
        key_bindings=_keys(),
        multiline=True,
        prompt_continuation="  ",
    )

    def ask() -> str:
        while True:
            try:
                return session.prompt("> ")
            except KeyboardInterrupt:
                if not session.default_buffer.text:
                    print("Ctrl-D or /exit ends the conversation.", file=sys.stderr)

    return ask


def _keys() -> KeyBindings:
    """Enter ends the input; Esc Enter, and pasted text, make further lines."""
    keys = KeyBindings()

    @keys.add("enter")
    def _(event: KeyPressEvent) -> None:
        event.current_buffer.validate_and_handle()

    @keys.add("escape", "enter")
    def _(event: KeyPressEvent) -> None:
        event.current_buffer.insert_text("\n")

    return keys
