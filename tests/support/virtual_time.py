"""An event loop whose clock jumps to the next timer as soon as nothing else is left to do: waits of a minute take no time."""

import asyncio
import selectors


class _Jumping(selectors.SelectSelector):
    """Instead of waiting for `timeout`, lets that much time pass on the loop's clock."""

    def __init__(self):
        super().__init__()
        self.now = 0.0

    def select(self, timeout=None):
        if timeout is None:
            raise RuntimeError("everybody waits and no timer is set")
        self.now += max(timeout, 0.0)
        return super().select(0)


class VirtualTimeLoop(asyncio.SelectorEventLoop):
    """Nothing in it may wait for another thread or for a socket."""

    def __init__(self):
        self._jumping = _Jumping()
        super().__init__(self._jumping)

    def time(self):
        return self._jumping.now


def run(scenario):
    """asyncio.run on a clock of its own."""
    with asyncio.Runner(loop_factory=VirtualTimeLoop) as runner:
        return runner.run(scenario)
