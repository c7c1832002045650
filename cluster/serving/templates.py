"""Runs a model's chat template where it harms nobody: in a process of its own, which may be ended at any time.

See `template_process` for what it may use. Whoever asks waits here, one after the other; the coordinator asks on a thread.
"""

import contextlib
import logging
import subprocess
import sys
import threading
from collections.abc import Mapping, Sequence
from pathlib import Path
from types import MappingProxyType
from typing import Any

import msgspec

log = logging.getLogger(__name__)

# One rendering may take this long; see `template_process`.
LIMIT_S = 5.0
COMMAND = (sys.executable, "-m", "cluster.serving.template_process")
# Until the process has read its tokenizer, on whatever machine.
_BEGIN_WITHIN_S = 60.0


class TemplateFailed(Exception):
    """A chat template made nothing of some messages; it says why."""


class Rendered(msgspec.Struct, omit_defaults=True):
    """What the process answers. text: what the template makes of the messages; error: why it makes nothing."""

    text: str | None = None
    error: str | None = None


class Templates:
    """See the module. checkout: where the process finds Tandem's code."""

    def __init__(self, model_path: Path, checkout: Path, command: Sequence[str] = COMMAND):
        self._command = (*command, str(model_path))
        self._checkout = checkout
        self._lock = threading.Lock()
        self._process: subprocess.Popen[bytes] | None = None
        self._has_answered = False
        self._is_over = False

    def __repr__(self) -> str:
        return f"Templates({self._command[-1]})"

    def render(self, messages: Sequence[Mapping[str, Any]], variables: Mapping[str, Any] = MappingProxyType({})) -> str:
        """The text that the template makes of messages and further variables, with the beginning of an answer.

        Raises:
            TemplateFailed: it refuses them, or takes too long or too much memory for them.
        """
        with self._lock:
            answer = self._ask(msgspec.json.encode((messages, dict(variables))) + b"\n")
        if answer.text is None:
            raise TemplateFailed(answer.error or "")
        return answer.text

    def begin(self) -> None:
        """Start the process, so that nobody waits for it later."""
        with self._lock, contextlib.suppress(TemplateFailed):
            self._running()

    def close(self) -> None:
        """End the process; nothing is rendered any more."""
        self._is_over = True
        process = self._process
        if process is not None:
            process.kill()
            process.wait()

    def _running(self) -> "subprocess.Popen[bytes]":
        if self._is_over:
            raise TemplateFailed("the cluster is stopping")
        if self._process is not None and self._process.poll() is not None:
            self._end(self._process)
        if self._process is None:
            self._has_answered = False
            self._process = subprocess.Popen(
                self._command,
                cwd=self._checkout,
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=subprocess.DEVNULL,
            )
        return self._process

    def _ask(self, line: bytes) -> Rendered:
        process = self._running()
        try:
            return self._exchange(process, line)
        except (OSError, EOFError, ValueError) as error:
            log.warning("the chat template's process is ended: %s", type(error).__name__)
            self._end(process)
            raise TemplateFailed(f"it takes longer than {LIMIT_S:g} s, or ends its process") from error

    def _exchange(self, process: "subprocess.Popen[bytes]", line: bytes) -> Rendered:
        """Raises what comes of a process that is gone, which it is when its time is over."""
        assert process.stdin is not None
        assert process.stdout is not None
        limit = threading.Timer(2 * LIMIT_S if self._has_answered else _BEGIN_WITHIN_S, process.kill)
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
        return msgspec.json.decode(answer, type=Rendered)

    def _end(self, process: "subprocess.Popen[bytes]") -> None:
        process.kill()
        process.wait()
        for stream in (process.stdin, process.stdout):
            if stream is not None:
                with contextlib.suppress(OSError):  # what could not be written
                    stream.close()
        self._process = None
