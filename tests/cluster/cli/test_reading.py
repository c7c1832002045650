"""The prompt of a command line, with what comes on standard input."""

import os
from pathlib import Path

import pytest

from cluster.cli import reading
from cluster.cli.reading import read_prompt
from protocol.errors import UsageError


class Said:
    def __init__(self):
        self.notes = []

    def note(self, text):
        self.notes.append(text)


@pytest.fixture
def said():
    return Said()


@pytest.fixture
def piped():
    """A pipe that was written to; what is left open stays open."""
    opened = []

    def make(text, *, ends=True):
        reader, writer = os.pipe()
        os.write(writer, text)
        if ends:
            os.close(writer)
        else:
            opened.append(writer)
        opened.append(os.fdopen(reader, "rb"))
        return opened[-1]

    yield make
    for each in opened:
        os.close(each) if isinstance(each, int) else each.close()


@pytest.mark.parametrize(
    ("words", "text"),
    [
        (["hello", "world"], "the file\n\n\nhello world"),
        (["-"], "the file\n"),
        (["summarise", "this:", "-"], "summarise this:\n\nthe file\n"),
        (["read", "-", "and", "sum up"], "read\n\nthe file\n\n\nand sum up"),
    ],
)
def test_words_are_joined_and_a_pipe_goes_in_front_or_where_it_was_put(piped, said, words, text):
    assert read_prompt(words, piped(b"the file\n"), said) == text
    assert said.notes == []


def test_a_file_goes_in_front(tmp_path, said):
    (tmp_path / "text").write_text("one\n")
    with (tmp_path / "text").open("rb") as file:
        assert read_prompt(["two"], file, said) == "one\n\n\ntwo"


def test_empty_input_changes_nothing(piped, said):
    assert read_prompt(["hello"], piped(b""), said) == "hello"
    with Path(os.devnull).open("rb") as nothing:
        assert read_prompt(["hello"], nothing, said) == "hello"


def test_pipe_that_stays_silent_is_left_out_and_that_is_said(piped, said, monkeypatch):
    monkeypatch.setattr(reading, "_SILENT_S", 0.01)
    assert read_prompt(["hello"], piped(b"", ends=False), said) == "hello"
    assert len(said.notes) == 1
    assert "standard input" in said.notes[0]


def test_input_that_is_no_text_is_refused(piped, said):
    with pytest.raises(UsageError, match="UTF-8"):
        read_prompt(["hello"], piped(b"\xff\xfe"), said)
    with pytest.raises(UsageError, match="empty"):
        read_prompt(["-"], piped(b"\n"), said)
