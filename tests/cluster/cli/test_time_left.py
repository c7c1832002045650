"""What is said of something that takes its time, with and without a terminal."""

import io

import pytest

from cluster.cli.terminal import Terminal
from cluster.cli.time_left import TimeLeft, duration


def told(*steps, total=100):
    left = TimeLeft("starting", 0.0)
    for now, done in steps:
        left.tell(f"reading {done}", done, total, now)
    return left


def test_time_left_is_by_the_speed_so_far():
    assert told((0.0, 0), (10.0, 25)).said(10.0) == "reading 25, about 30 s left"


def test_speed_is_that_of_the_last_half_minute():
    assert told((0.0, 0), (70.0, 1), (80.0, 11), (90.0, 21)).said(90.0) == "reading 21, about 79 s left"


def test_nothing_is_foretold_from_a_moment_or_while_nothing_comes():
    assert told((0.0, 0), (0.5, 25)).said(0.5) == "reading 25"
    assert told((0.0, 25), (10.0, 25)).said(10.0) == "reading 25 (10 s)"


def test_what_cannot_be_counted_says_how_long_it_takes():
    left = told((0.0, 0), (10.0, 100))
    left.tell("measuring", None, None, 11.0)
    assert left.said(13.0) == "measuring"
    assert left.said(34.0) == "measuring (23 s)"


@pytest.mark.parametrize(("seconds", "words"), [(8.2, "8 s"), (150, "2 min"), (9000, "2.5 h")])
def test_durations_are_in_the_unit_that_people_use(seconds, words):
    assert duration(seconds) == words


def test_without_a_terminal_progress_is_a_line_every_few_seconds_and_fewer_of_what_takes_long():
    terminal = Terminal(stream := io.StringIO())
    for now in range(2000):
        terminal.progress(f"at {now}", float(now))
    terminal.done()
    at = [int(line.removeprefix("tandem: at ")) for line in stream.getvalue().splitlines()]
    assert at[:5] == [5, 10, 15, 20, 25]
    assert 40 < len(at) < 60


def test_what_is_quickly_over_leaves_no_line():
    terminal = Terminal(stream := io.StringIO())
    for begun in (0.0, 10.0):
        terminal.progress("at it", begun)
        terminal.progress("at it", begun + 4.0)
        terminal.done()
    assert stream.getvalue() == ""
