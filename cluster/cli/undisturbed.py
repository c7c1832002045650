"""Writing over what stands on a terminal, with nobody in between: what is typed is not echoed there, and Ctrl-C waits for its turn."""

import contextlib
import os
import signal
import termios
import threading
from collections.abc import Callable, Iterator

_LOCAL_MODES = 3  # which of the terminal's attributes they are


@contextlib.contextmanager
def uninterrupted() -> Iterator[None]:
    """Ctrl-C is heard at the end. A place of its own on the screen is lost for who is interrupted while it is written."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    heard: list[int] = []
    before = signal.signal(signal.SIGINT, lambda number, _: heard.append(number))
    try:
        yield
    finally:
        signal.signal(signal.SIGINT, before)
    if heard:
        raise KeyboardInterrupt


def without_echo(descriptor: int) -> Callable[[], None]:
    """What is typed does not show on this terminal from now on; returns what ends that. Of a terminal that is another's now, nothing."""
    try:
        if os.tcgetpgrp(descriptor) != os.getpgrp():
            return lambda: None
        before = termios.tcgetattr(descriptor)
    except (OSError, termios.error):
        return lambda: None
    quiet = list(before)
    quiet[_LOCAL_MODES] &= ~termios.ECHO
    termios.tcsetattr(descriptor, termios.TCSANOW, quiet)
    return lambda: termios.tcsetattr(descriptor, termios.TCSANOW, before)
