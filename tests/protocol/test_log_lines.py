"""Lines of logs as JSON objects, and those as text again."""

import json
import logging
import time

import pytest

from protocol.home import Home
from protocol.log_lines import fields, formatter, readable
from protocol.logs import configure_logging

SAID = "two\nlines, and a \u2028 \"quote\" of worker 'é'"


@pytest.fixture
def root():
    """The root logger, as it was afterwards."""
    logger = logging.getLogger()
    handlers, level = logger.handlers[:], logger.level
    logger.handlers = []
    yield logger
    for handler in logger.handlers:
        handler.close()
    logger.handlers, logger.level = handlers, level


@pytest.fixture
def zone(monkeypatch):
    monkeypatch.setenv("TZ", "Europe/Berlin")
    time.tzset()
    yield
    monkeypatch.undo()
    time.tzset()


def record(message, *, exc_info=None, extra=None):
    made = logging.getLogger("here").makeRecord(
        "here", logging.WARNING, "file", 1, "%s", (message,), exc_info, extra=extra
    )
    made.created, made.msecs = 1_700_000_000.25, 250.0
    return made


def raised():
    try:
        raise ValueError("wrong")
    except ValueError as error:
        return type(error), error, error.__traceback__


def test_record_is_one_object_with_its_fields_beside_the_message():
    extra = fields({"request_id": "req_1", "took_s": 0.125, "status": 200, "from": None})
    line = formatter("json").format(record(SAID, extra=extra))
    assert "\n" not in line
    assert json.loads(line) == {
        "time": "2023-11-14T22:13:20.250+00:00",
        "level": "WARNING",
        "logger": "here",
        "message": SAID,
        "request_id": "req_1",
        "took_s": 0.125,
        "status": 200,
        "from": None,
    }


@pytest.mark.parametrize("exc_info", [None, raised()])
def test_line_of_json_reads_as_the_line_of_text(zone, exc_info):
    line = formatter("json").format(record(SAID, exc_info=exc_info))
    assert readable(line + "\n") == formatter("text").format(record(SAID, exc_info=exc_info)) + "\n"
    assert readable(line).startswith("2023-11-14 23:13:20,250 WARNING here: two\n")
    assert ("ValueError: wrong" in readable(line)) is (exc_info is not None)


@pytest.mark.parametrize(
    "line", ["", "\n", "2023-11-14 a line of text\n", "{", '{"a": 1}\n', '{"time": "now"}', "{}\n"]
)
def test_any_other_line_stays_what_it_is(line):
    assert readable(line) == line


def test_log_file_holds_an_object_for_each_line(tmp_path, root):
    home = Home(tmp_path / "home")
    configure_logging(home, "worker-0", "json")
    logging.getLogger("workers").info("layer %d of %d", 3, 8)
    logging.getLogger("workers").warning(SAID)
    lines = (home.logs / "worker-0.log").read_text("utf-8").split("\n")
    assert [json.loads(line)["message"] for line in lines[:-1]] == ["layer 3 of 8", SAID]
    assert lines[-1] == ""
