"""An answer that is drawn on a terminal while it comes, and who interrupts that."""

import io
import os
import signal

import pyte
import pytest
from rich.console import Console

from cluster.cli.rendering import RenderedMarkdown, written
from cluster.cli.undisturbed import uninterrupted, without_echo

WORDS = [f"word{number:02}" for number in range(40)]


class Terminal(io.StringIO):
    """Ctrl-C comes when half of something has been written, once that is wanted."""

    def __init__(self):
        super().__init__()
        self.interrupts = False

    def fileno(self):
        return os.open(os.devnull, os.O_WRONLY)

    def write(self, text):
        half = len(text) // 2
        super().write(text[:half])
        if self.interrupts and "word" in text:
            self.interrupts = False
            os.kill(os.getpid(), signal.SIGINT)
        super().write(text[half:])
        return len(text)


@pytest.fixture
def interruptible():
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    signal.signal(signal.SIGINT, before)


@pytest.mark.usefixtures("interruptible")
@pytest.mark.parametrize("columns", [40, 60, 80])
def test_interruption_while_an_answer_is_written_leaves_each_word_once(columns):
    terminal = Terminal()
    out = RenderedMarkdown(Console(file=terminal, force_terminal=True, width=columns, color_system=None))

    def pieces():
        for word in WORDS[:-1]:
            yield f"{word} "
        terminal.interrupts = True
        yield f"{WORDS[-1]} "
        pytest.fail("nobody heard the interruption")

    terminal.write("> hello\n" * 8)
    with pytest.raises(KeyboardInterrupt):
        written(pieces(), out)
    screen = pyte.Screen(columns, 24)
    pyte.Stream(screen).feed(terminal.getvalue().replace("\n", "\r\n"))
    assert " ".join(screen.display).split() == [">", "hello"] * 8 + WORDS


@pytest.mark.usefixtures("interruptible")
def test_interruption_is_heard_when_what_must_be_whole_is_done():
    done = []

    def work():
        with uninterrupted():
            os.kill(os.getpid(), signal.SIGINT)
            done.append(True)

    with pytest.raises(KeyboardInterrupt):
        work()
    assert done == [True]
    assert signal.getsignal(signal.SIGINT) is signal.default_int_handler


def test_what_is_no_terminal_has_no_echo_to_switch_off():
    with open(os.devnull) as nowhere:  # noqa: PTH123 - a descriptor is wanted
        without_echo(nowhere.fileno())()
