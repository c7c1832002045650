"""A process of our own for what comes from strangers: it answers a line with a line, and may be ended at any time.

Whoever asks waits, one after the other; the coordinator asks on a thread. One that is gone is replaced when it is asked again.
"""

import contextlib
import logging
import subprocess
import sys
import threading
from collections.abc import Sequence
from pathlib import Path

log = logging.getLogger(__name__)

# Until the process has read what it needs, on whatever machine.
_BEGIN_WITHIN_S = 60.0


def limit_memory(more_bytes: int) -> None:
    """On Linux, let this process have no more than that on top of what it has."""
    if sys.platform == "linux":
        import resource

        import psutil

        limit = psutil.Process().memory_info().vms + more_bytes
        resource.setrlimit(resource.RLIMIT_AS, (limit, limit))


class EndedApart(Exception):
    """The process was ended while it was asked, since it took too long, or by itself."""


class StoppedApart(Exception):
    """Nobody is to ask any more."""


class Apart:
    """See the module. command: what runs the process; checkout: where it finds Tandem's code."""

    def __init__(self, command: Sequence[str], checkout: Path):
        self._command = tuple(command)
        self._checkout = checkout
        self._lock = threading.Lock()
        self._has_answered = False
        self._is_over = False
        self.process: subprocess.Popen[bytes] | None = None

    def __repr__(self) -> str:
        return f"Apart({' '.join(self._command[1:])})"

    def ask(self, line: bytes, limit_s: float) -> bytes:
        """The answer to a line. limit_s: how long it may take, once the process has answered before. Raises EndedApart, and
        StoppedApart after `close`.
        """
        with self._lock:
            process = self._running()
            try:
                return self._exchange(process, line + b"\n", limit_s)
            except (OSError, EOFError, ValueError) as error:
                log.warning("%r is ended: %s", self, type(error).__name__)
                self._end(process)
                raise EndedApart from error

    def begin(self) -> None:
        """Start the process, so that nobody waits for it later."""
        with self._lock, contextlib.suppress(StoppedApart):
            self._running()

    def close(self) -> None:
        """End the process; it answers nothing any more."""
        self._is_over = True
        process = self.process
        if process is not None:
            process.kill()
            process.wait()

    def _running(self) -> "subprocess.Popen[bytes]":
        if self._is_over:
            raise StoppedApart
        if self.process is not None and self.process.poll() is not None:
            self._end(self.process)
        if self.process is None:
            self._has_answered = False
            self.process = subprocess.Popen(
                self._command,
                cwd=self._checkout,
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=subprocess.DEVNULL,
            )
        return self.process

    def _exchange(self, process: "subprocess.Popen[bytes]", line: bytes, limit_s: float) -> bytes:
        """Raises what comes of a process that is gone, which it is when its time is over."""
        assert process.stdin is not None
        assert process.stdout is not None
        limit = threading.Timer(limit_s if self._has_answered else _BEGIN_WITHIN_S, process.kill)
        limit.start()
        try:
            process.stdin.write(line)
            process.stdin.flush()
            answer = process.stdout.readline()
        finally:
            limit.cancel()
        if not answer:
            raise EOFError
        self._has_answered = True
        return answer

    def _end(self, process: "subprocess.Popen[bytes]") -> None:
        process.kill()
        process.wait()
        for stream in (process.stdin, process.stdout):
            if stream is not None:
                with contextlib.suppress(OSError):  # what could not be written
                    stream.close()
        self.process = None
