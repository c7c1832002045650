"""What is written of lines that come again and again."""

import logging

from protocol.logs import EACH, Repeats


class Lines(logging.Handler):
    def __init__(self):
        super().__init__()
        self.now = 0.0
        self.said = []
        self.addFilter(Repeats(lambda: self.now))

    def emit(self, record):
        self.said.append(record.getMessage())


def logger_to(lines):
    logger = logging.getLogger(f"{__name__}.{id(lines)}")
    logger.propagate = False
    logger.addHandler(lines)
    return logger


def test_a_line_that_comes_again_and_again_is_counted_and_others_are_written():
    lines = Lines()
    logger = logger_to(lines)
    for number in range(1000):
        logger.warning("dropped message %d", number)
    logger.warning("something else")
    assert lines.said == [f"dropped message {number}" for number in range(20)] + ["something else"]


def test_lines_of_which_each_is_wanted_are_all_written():
    lines = Lines()
    logger = logger_to(lines)
    for number in range(100):
        logger.warning("request %d", number, extra=EACH)
    assert len(lines.said) == 100


def test_a_minute_later_it_says_how_many_there_were():
    lines = Lines()
    logger = logger_to(lines)

    def say():
        logger.warning("dropped %s", "100 %d")

    for _ in range(25):
        say()
    lines.now = 61.0
    say()
    assert lines.said[20:] == ["dropped 100 %d (and 5 like it before)"]
    lines.now = 122.0
    say()
    assert lines.said[21:] == ["dropped 100 %d"]
