"""Server-sent events as bytes: one event, a comment, the end mark, and the event that thousands are sent of.

Knows JSON and the event stream format; nothing of what the events say.
"""

from collections.abc import Callable
from typing import Any

import msgspec

DONE = b"data: [DONE]\n\n"
_MARK = "\ue000text\ue000"
# Lines to many clients (Python's str.splitlines), though not to the event stream format: so they go out escaped.
_LINE_SEPARATORS = tuple((mark.encode(), b"\\u%04x" % ord(mark)) for mark in "\x85\u2028\u2029")
_json = msgspec.json.Encoder()

as_json = _json.encode


def event(data: dict[str, Any]) -> bytes:
    """One event that carries `data`."""
    return b"data: " + _json.encode(data) + b"\n\n"


def comment(text: str) -> bytes:
    """A comment in the stream, which clients skip and people see."""
    return f": {text}\n\n".encode()


class TextEvent:
    """An event in which only a text changes: everything around it is encoded once for each answer.

    make: the event's data for a text, which it holds exactly once.
    """

    def __init__(self, make: Callable[[str], dict[str, Any]]) -> None:
        self._before, self._after = event(make(_MARK)).split(_json.encode(_MARK))

    def __repr__(self) -> str:
        return f"<TextEvent of {len(self._before) + len(self._after)} bytes around a text>"

    def of(self, text: str) -> bytes:
        """The event that carries `text`."""
        encoded = _json.encode(text)
        if not text.isascii():
            for separator, escaped in _LINE_SEPARATORS:
                encoded = encoded.replace(separator, escaped)
        return self._before + encoded + self._after
