"""A command on a terminal of its own, and what a person sees there."""

import fcntl
import os
import pty
import select
import signal
import struct
import subprocess
import termios
import time

import pyte

_LIMIT_S = 60.0


class Screen:
    """A terminal of so many columns and lines, on which a command runs."""

    def __init__(self, command, *, environment, columns=80, lines=24):
        self._screen = pyte.HistoryScreen(columns, lines, history=1000)
        self._stream = pyte.ByteStream(self._screen)
        self._terminal, inside = pty.openpty()
        fcntl.ioctl(inside, termios.TIOCSWINSZ, struct.pack("HHHH", lines, columns, 0, 0))
        self.seen = b""
        self.process = subprocess.Popen(
            command,
            stdin=inside,
            stdout=inside,
            stderr=inside,
            env={**environment, "TERM": "xterm-256color"},
            start_new_session=True,
            preexec_fn=lambda: fcntl.ioctl(0, termios.TIOCSCTTY, 0),  # so that Ctrl-C is a signal  # noqa: PLW1509
        )
        os.close(inside)

    @property
    def text(self):
        """Everything that is to be seen, scrolled away or not."""
        history = ["".join(line[at].data for at in range(self._screen.columns)) for line in self._screen.history.top]
        return "\n".join(line.rstrip() for line in [*history, *self._screen.display]).rstrip("\n")

    def type(self, text):
        os.write(self._terminal, text.encode())

    def paste(self, text):
        """As terminals do it that say which text was pasted."""
        self.type(f"\x1b[200~{text}\x1b[201~")

    def await_text(self, wanted, times=1):
        """Returns once `wanted` is to be seen so often."""
        self.until(lambda: self.text.count(wanted) >= times, wanted)

    def await_prompt(self):
        """Returns once the last line is an empty prompt."""
        self.until(lambda: self.text.splitlines()[-1:] == [">"], "a prompt")

    def end(self):
        """The exit code, once the command has ended."""
        self.until(lambda: self.process.poll() is not None, "its end")
        return self.process.returncode

    def close(self):
        if self.process.poll() is None:
            os.killpg(self.process.pid, signal.SIGKILL)
            self.process.wait()
        os.close(self._terminal)

    def until(self, is_there, wanted):
        """Returns once something is so."""
        deadline = time.monotonic() + _LIMIT_S
        while not is_there():
            assert time.monotonic() < deadline, f"waited for {wanted!r} and saw:\n{self.text}"
            self._read()

    def _read(self):
        if not select.select([self._terminal], [], [], 0.05)[0]:
            return
        try:
            new = os.read(self._terminal, 1 << 16)
        except OSError:  # nobody has the other end any more
            return
        self.seen += new
        self._stream.feed(new)
        if b"\x1b[6n" in new:  # asked where the cursor is, a terminal says it
            self.type(f"\x1b[{self._screen.cursor.y + 1};{self._screen.cursor.x + 1}R")
