"""An asyncio loop whose clock stands still while anything can run, and jumps to the next timer when nothing can.

So a test that waits for a minute takes none, and what happens at one moment happens in the order in which it was asked for.
Nothing may wait for another thread or a socket.
"""

import asyncio
import selectors
from collections.abc import Coroutine
from typing import Any


class _Clock:
    def __init__(self):
        self.now = 1000.0


class _Jumping(selectors.DefaultSelector):
    """Where a loop would sleep, the clock moves on instead."""

    def __init__(self, clock):
        super().__init__()
        self._clock = clock

    def select(self, timeout=None):
        ready = super().select(0)
        if ready or timeout == 0:
            return ready
        assert timeout is not None, "everything waits and nothing will ever happen"
        self._clock.now += timeout
        return []


class VirtualTimeLoop(asyncio.SelectorEventLoop):
    def __init__(self):
        self._clock = _Clock()
        super().__init__(_Jumping(self._clock))

    def time(self):
        return self._clock.now


def run_in_virtual_time(scenario: Coroutine[Any, Any, Any]) -> Any:
    """As `asyncio.run`, on such a loop."""
    with asyncio.Runner(loop_factory=VirtualTimeLoop) as runner:
        return runner.run(scenario)
