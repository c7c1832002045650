"""A timeline of what a worker did when, in the Chrome trace event format, which Perfetto opens.

Every process of a machine appends to the same file, an event a line, each written whole; the format's closing bracket
is optional. Times are the machine's clock, so the timelines of its workers line up. Events hold counts and numbers of
sequences, never text.
"""

import json
import os
import time
from pathlib import Path


class Tracer:
    """Appends complete events ("X") of one worker to a trace file."""

    def __init__(self, path: Path, name: str):
        self._pid = os.getpid()
        self._file = os.open(path, os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o600)
        self._write({"name": "process_name", "ph": "M", "pid": self._pid, "args": {"name": name}})

    def __repr__(self) -> str:
        return f"Tracer({self._pid})"

    def ended(self, name: str, seconds: float, **arguments: object) -> None:
        """What took so long ends now."""
        duration_us = seconds * 1e6
        self._write(
            {
                "name": name,
                "ph": "X",
                "pid": self._pid,
                "tid": 0,
                "ts": time.time_ns() / 1000 - duration_us,
                "dur": duration_us,
                "args": arguments,
            }
        )

    def _write(self, event: dict[str, object]) -> None:
        os.write(self._file, json.dumps(event, separators=(",", ":")).encode() + b",\n")
