"""Whether the coordinator still answers: one that was stopped, or is caught in a loop, neither serves nor dies.

Asks like a client, over HTTP, on a thread of its own. Any answer will do, also a refusal or a closed connection, which
somebody who lives has sent; only silence counts, several times in a row.
"""

import http.client
import logging
import threading
from collections.abc import Callable
from urllib.parse import urlsplit

log = logging.getLogger(__name__)

EVERY_S = 5.0
ANSWER_WITHIN_S = 5.0
MOST_MISSES = 4


def answers(api: str, within_s: float = ANSWER_WITHIN_S) -> bool:
    """Whether whoever listens at that base URL says anything within so many seconds; true also where nobody listens."""
    parts = urlsplit(api)
    connection = http.client.HTTPConnection(parts.hostname or "", parts.port, timeout=within_s)
    try:
        connection.request("GET", "/health")
        connection.getresponse()
    except TimeoutError:
        return False
    except (OSError, http.client.HTTPException):
        return True
    finally:
        connection.close()
    return True


class Pulse:
    """Asks again and again, and calls `silent` once, when nothing answered so often. ask: whether there was an answer."""

    def __init__(self, ask: Callable[[], bool], silent: Callable[[], object], *, every_s: float = EVERY_S):
        self._ask = ask
        self._silent = silent
        self._every_s = every_s
        self._is_over = threading.Event()
        threading.Thread(target=self._run, name="pulse", daemon=True).start()

    def __repr__(self) -> str:
        return f"Pulse(every {self._every_s:g} s{', over' if self._is_over.is_set() else ''})"

    def end(self) -> None:
        """Ask no more; returns at once."""
        self._is_over.set()

    def _run(self) -> None:
        num_misses = 0
        while num_misses < MOST_MISSES:
            if self._is_over.wait(self._every_s):
                return
            num_misses = 0 if self._ask() else num_misses + 1
        if not self._is_over.is_set():
            self._silent()
