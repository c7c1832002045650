"""An inbox on a real socket and what came into it."""

import queue
import time
from collections.abc import Callable
from typing import Any

from protocol.codec import Envelope
from protocol.transport import KeyPair, ZmqInbox

DEADLINE_S = 60.0  # against hanging for ever on a busy machine


class Received:
    """`next` waits for an envelope; `port` and `keys` are those of an inbox before, if it is to come back; other settings
    as of `ZmqInbox`.
    """

    def __init__(self, port: int | None = None, keys: KeyPair | None = None, **settings: Any):
        self._envelopes: queue.Queue[Envelope] = queue.Queue()
        self.inbox = ZmqInbox(self._envelopes.put, port=port, keys=keys, **settings)
        self.inbox.start()
        self.peer = self.inbox.peer

    @property
    def port(self) -> int:
        return int(self.peer.endpoint.rpartition(":")[2])

    def next(self) -> Envelope:
        return self._envelopes.get(timeout=DEADLINE_S)

    def stays_empty(self, seconds: float) -> bool:
        try:
            self._envelopes.get(timeout=seconds)
        except queue.Empty:
            return True
        return False

    def is_empty(self) -> bool:
        return self._envelopes.empty()

    def close(self) -> None:
        self.inbox.close()


def wait_until(holds: Callable[[], bool], what: str) -> None:
    """Returns when `holds()` is true; fails after DEADLINE_S."""
    deadline = time.monotonic() + DEADLINE_S
    while not holds():
        assert time.monotonic() < deadline, f"not within {DEADLINE_S} s: {what}"
        time.sleep(0.005)
