"""Until when a request must have its whole answer, waiting included."""

import math

from protocol.errors import RequestTimeout


class Deadline:
    """arrival: when the request came; timeout_s: how long it may take, None for as long as it needs."""

    def __init__(self, arrival: float, timeout_s: float | None):
        self.at = math.inf if timeout_s is None else arrival + timeout_s
        self._timeout_s = timeout_s

    def __repr__(self) -> str:
        return f"Deadline({self._timeout_s} s)"

    def left_s(self, now: float) -> float | None:
        """Seconds until it is past; None where there is none."""
        return None if self.at == math.inf else self.at - now

    def check(self, now: float) -> None:
        """Raises RequestTimeout once it is past."""
        if now >= self.at:
            raise self.error()

    def error(self) -> RequestTimeout:
        """What its request ends with."""
        return RequestTimeout(f"the answer was not complete within {self._timeout_s:g} s, the limit of this request")
