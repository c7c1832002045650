"""The lines that a person types into a conversation, or that a pipe gives: edited, completed and remembered on a terminal."""

import os
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path

from protocol.errors import UsageError

# Words that may follow a command.
Arguments = Mapping[str, Sequence[str]]


def typed_lines(history: Path, commands: Sequence[str], arguments: Arguments) -> Iterator[str]:
    """What is typed, line by line, none of them empty; ends with the input. history: a file of what was typed before."""
    ask = _on_a_terminal(history, commands, arguments) if sys.stdin.isatty() and sys.stdout.isatty() else _plainly
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


def _on_a_terminal(history: Path, commands: Sequence[str], arguments: Arguments) -> Callable[[], str]:
    """Enter ends the input; Esc Enter, and pasted text, make further lines."""
    from prompt_toolkit import PromptSession
    from prompt_toolkit.completion import Completer, Completion
    from prompt_toolkit.document import Document
    from prompt_toolkit.history import FileHistory
    from prompt_toolkit.key_binding import KeyBindings, KeyPressEvent

    class Commands(Completer):
        def get_completions(self, document: Document, _: object) -> Iterator[Completion]:
            for word, typed in completions(document.text_before_cursor, commands, arguments):
                yield Completion(word, -len(typed))

    keys = KeyBindings()

    @keys.add("enter")
    def _(event: KeyPressEvent) -> None:
        event.current_buffer.validate_and_handle()

    @keys.add("escape", "enter")
    def _(event: KeyPressEvent) -> None:
        event.current_buffer.insert_text("\n")

    os.close(os.open(history, os.O_CREAT | os.O_WRONLY, 0o600))  # what people say to a model is theirs
    session: PromptSession[str] = PromptSession(
        history=FileHistory(str(history)),
        completer=Commands(),
        complete_while_typing=True,
        key_bindings=keys,
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
