"""What one key of the API takes: requests that run, and tokens over the minute that slides.

Deciders: `now` (seconds of one clock) is an argument. Tokens are those that were read and generated, also of answers that still
grow or that nobody waited for; so a request is let in while the minute has room for one token, whatever it will come to.
"""

import math
from collections import deque
from typing import NamedTuple

from cluster.serving.tally import Tally
from cluster.settings import KeySettings
from protocol.errors import RateLimited

WINDOW_S = 60.0
# Tokens that came this close to each other are remembered together.
_TOGETHER_S = 1.0
# The longest that somebody is asked to wait for a place, and how much the last request counts for how long one takes.
_LONGEST_S = 60
_LAST_SHARE = 0.3


class Took(NamedTuple):
    """Tokens that came evenly from `since` to `until`."""

    since: float
    until: float
    tokens: int


class TokenWindow:
    """Tokens of the last minute."""

    def __init__(self) -> None:
        self._took: deque[Took] = deque()

    def __repr__(self) -> str:
        return f"TokenWindow({list(self._took)})"

    def add(self, tokens: int, since: float, now: float) -> None:
        """So many came since then."""
        if self._took and now - self._took[-1].since < _TOGETHER_S:
            since, tokens = self._took[-1].since, self._took[-1].tokens + tokens
            self._took.pop()
        if tokens:
            self._took.append(Took(since, now, tokens))
        while self._took and self._took[0].until <= now - WINDOW_S:
            self._took.popleft()

    def within(self, now: float) -> float:
        """How many lie in the minute before `now`."""
        return sum(_share(took, now - WINDOW_S) * took.tokens for took in self._took)

    def free_in_s(self, limit: int, now: float) -> int:
        """In how many whole seconds there will be fewer than `limit`, if no further ones come."""
        return next((wait_s for wait_s in range(int(WINDOW_S)) if self.within(now + wait_s) < limit), int(WINDOW_S))


def _share(took: Took, begin: float) -> float:
    """How much of it came after `begin`."""
    if took.since >= begin or took.until <= took.since:
        return float(took.until > begin)
    return max(took.until - begin, 0.0) / (took.until - took.since)


class KeyUse:
    """See the module."""

    def __init__(self, settings: KeySettings) -> None:
        self._settings = settings
        self._running: dict[Tally, tuple[float, int]] = {}  # since when, and the tokens that the window has of it
        self._window = TokenWindow()
        self._looked_at = 0.0
        self._lasting_s = 1.0  # a request, by those that ended last

    def __repr__(self) -> str:
        return f"KeyUse({self._settings.name}, {len(self._running)} running, {self._window})"

    def enter(self, tally: Tally, now: float) -> None:
        """A request came. Raises RateLimited, which says when to come back."""
        self._look(now)
        name, most, tokens = self._settings.name, self._settings.max_running, self._settings.tokens_per_minute
        if most is not None and len(self._running) >= most:
            raise _limited(f"{most} requests of the key {name} run, as many as may", self._place_in_s(most))
        if tokens is not None and self._window.within(now) >= tokens:
            wait_s = self._window.free_in_s(tokens, now)
            raise _limited(f"the key {name} has used its {tokens} tokens of this minute", wait_s)
        self._running[tally] = (now, 0)

    def leave(self, tally: Tally, now: float) -> None:
        """A request ended, in whatever way."""
        self._look(now)
        began_at, _ = self._running.pop(tally)
        self._lasting_s += _LAST_SHARE * (now - began_at - self._lasting_s)

    def _look(self, now: float) -> None:
        """Take what came since this was last done, which was when something began or later."""
        came = 0
        for tally, (began_at, known) in self._running.items():
            tokens = tally.prompt_tokens + tally.completion_tokens
            came += tokens - known
            self._running[tally] = (began_at, tokens)
        self._window.add(came, self._looked_at, now)
        self._looked_at = now

    def _place_in_s(self, most: int) -> int:
        return min(max(math.ceil(self._lasting_s / most), 1), _LONGEST_S)


def _limited(why: str, wait_s: int) -> RateLimited:
    wait_s = max(wait_s, 1)
    return RateLimited(f"{why}; try again in {wait_s} s", retry_after_s=wait_s)
