"""What is being done, for how long already, and how long it will go on: words for whoever waits. Knows no terminal and no clock."""

from collections import deque

# Speeds are of the last so many seconds, and none is told before the first has passed.
_WINDOW_S = 30.0
_LEAST_S = 2.0
# From when on it is said how long something takes of which nothing can be counted.
_LONG_S = 5.0


class TimeLeft:
    """Told how far something is, which begins with `text`; says it, with the time that is left where bytes are counted, else with the time that it has taken."""

    def __init__(self, text: str, now: float) -> None:
        self._text = text
        self._since = now
        self._total: int | None = None
        self._seen: deque[tuple[float, int]] = deque()

    def __repr__(self) -> str:
        return f"TimeLeft({self._text!r}, {len(self._seen)} seen)"

    def tell(self, text: str, done: int | None, total: int | None, now: float) -> None:
        """It is at `done` of `total`, or at something else that nobody can count, at `now` seconds of a monotonic clock."""
        if total != self._total:
            self._total = total
            self._seen.clear()
        if text != self._text:
            self._text, self._since = text, now
        if done is not None:
            self._seen.append((now, done))
        while self._seen and self._seen[0][0] < now - _WINDOW_S:
            self._seen.popleft()

    def said(self, now: float) -> str:
        """All of it in one line."""
        left_s = self._left_s(now)
        if left_s is not None:
            return f"{self._text}, about {duration(left_s)} left"
        return f"{self._text} ({duration(now - self._since)})" if now - self._since >= _LONG_S else self._text

    def _left_s(self, now: float) -> float | None:
        if len(self._seen) < 2 or self._total is None:
            return None
        (began, first), last = self._seen[0], self._seen[-1][1]
        if now - began < _LEAST_S or last <= first:
            return None
        return max(self._total - last, 0) * (now - began) / (last - first)


def duration(seconds: float) -> str:
    """As people say it: "8 s", "3 min", "2.5 h"."""
    if seconds < 100:
        return f"{seconds:.0f} s"
    return f"{seconds / 60:.0f} min" if seconds < 6000 else f"{seconds / 3600:.1f} h"
