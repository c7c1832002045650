"""Streams as bytes: a server-sent event, a comment, the end mark, a line of JSON, and the event that thousands are sent of.

Knows JSON and the event stream format; nothing of what the events say.
"""

from collections.abc import Callable
from typing import Any

import msgspec

DONE = b"data: [DONE]\n\n"
_MARK = "\ue000text\ue000"
# Lines to many clients (Python's str.splitlines), though not to these formats: so they go out escaped.
_LINE_SEPARATORS = tuple((mark.encode(), b"\\u%04x" % ord(mark)) for mark in "\x85\u2028\u2029")
_json = msgspec.json.Encoder()

as_json = _json.encode


def event(data: Any, name: str = "") -> bytes:
    """One event that carries `data`, with a name of its own where its API has one."""
    named = f"event: {name}\n".encode() if name else b""
    return named + b"data: " + _in_one_line(data) + b"\n\n"


def line(data: dict[str, Any]) -> bytes:
    """One line that carries `data`, of a stream of nothing else."""
    return _in_one_line(data) + b"\n"


def _in_one_line(data: Any) -> bytes:
    """As JSON, without what ends a line to some client."""
    encoded = _json.encode(data)
    if not encoded.isascii():
        for separator, escaped in _LINE_SEPARATORS:
            encoded = encoded.replace(separator, escaped)
    return encoded


def named_event(data: dict[str, Any]) -> bytes:
    """One event that carries `data`, under the name that is its `type`."""
    return event(data, data["type"])


def comment(text: str) -> bytes:
    """A comment in the stream, which clients skip and people see."""
    return f": {text}\n\n".encode()


class TextEvent:
    """An event in which only a text changes: everything around it is encoded once for each answer.

    frame: the event of a text, which it holds exactly once.
    """

    def __init__(self, frame: Callable[[str], bytes]) -> None:
        self._before, self._after = frame(_MARK).split(_json.encode(_MARK))

    def __repr__(self) -> str:
        return f"<TextEvent of {len(self._before) + len(self._after)} bytes around a text>"

    def of(self, text: str) -> bytes:
        """The event that carries `text`."""
        return self._before + _in_one_line(text) + self._after
