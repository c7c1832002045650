"""How a line of a log is written: as text for people, or as one JSON object for programs; and the second as the first again.

A JSON line has `time` (UTC), `level`, `logger` and `message`, `exception` where there is one, and whatever the caller gave as
`extra=fields(...)`, by name.
"""

import logging
from collections.abc import Mapping
from datetime import UTC, datetime
from typing import Any, Literal

import msgspec

LogFormat = Literal["text", "json"]
TEXT_FORMAT = "%(asctime)s %(levelname)s %(name)s: %(message)s"
_FIELDS = "fields"


class _Line(msgspec.Struct, kw_only=True):
    """What `readable` needs of a line."""

    time: datetime
    level: str
    logger: str
    message: str
    exception: str | None = None


def fields(values: Mapping[str, Any]) -> dict[str, Any]:
    """What a call of a logger takes as `extra`: numbers and words that stand beside the message in JSON."""
    return {_FIELDS: values}


def formatter(log_format: LogFormat) -> logging.Formatter:
    """Of the lines of a log file."""
    return JsonLines() if log_format == "json" else logging.Formatter(TEXT_FORMAT)


class JsonLines(logging.Formatter):
    """A record as one line, whatever it says."""

    def format(self, record: logging.LogRecord) -> str:
        line = {
            "time": datetime.fromtimestamp(record.created, UTC).isoformat(timespec="milliseconds"),
            "level": record.levelname,
            "logger": record.name,
            "message": record.getMessage(),
        }
        if record.exc_info:
            line["exception"] = self.formatException(record.exc_info)
        return msgspec.json.encode(line | getattr(record, _FIELDS, {})).decode()


def readable(line: str) -> str:
    """A line of either format as text; times in this machine's zone. Anything else stays what it is."""
    if not line.startswith("{"):
        return line
    try:
        found = msgspec.json.decode(line, type=_Line)
    except msgspec.DecodeError:  # what a library printed
        return line
    at = found.time.astimezone()
    text = f"{at:%Y-%m-%d %H:%M:%S},{at.microsecond // 1000:03} {found.level} {found.logger}: {found.message}\n"
    return text if found.exception is None else f"{text}{found.exception}\n"
