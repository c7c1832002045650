"""When who was refused may come back: from how fast places were given lately.

A time that was named is a promise to that client: a request of it that comes from then on, for a while, is let in though
as many wait as may. So obeying always succeeds, and who comes at once again gains nothing. Nobody can tell a request that
comes again from an equal one of the same client that comes for the first time; so a promise is for what was asked, is due
only when a flood of requests should be over, and lets in two.
Promises are as far apart as places become free, so the queue stays about as long as it may be. `now` (seconds of one clock)
is an argument.
"""

import math
from collections import deque

# Of how many places given last the rate is taken, and how old they may be.
_NUM_GIVEN = 64
_LATELY_S = 120.0
# Before anything was measured.
_FIRST_RATE = 8.0
SHORTEST_S, _LONGEST_S = 10.0, 3600.0
# How long after its time a promise holds, how many requests it lets in, and how many of these there are at most.
GRACE_S = 120.0
LETS_IN = 2
MAX_PROMISED = 8192


class Drain:
    """See the module. client: who asks, and for what."""

    def __init__(self) -> None:
        self._given: deque[float] = deque(maxlen=_NUM_GIVEN)
        self._rate = _FIRST_RATE
        self._promised_until = 0.0
        self._promises: dict[str, deque[float]] = {}  # by client and what it asked, each in order
        self._num_promised = 0

    def __repr__(self) -> str:
        return f"Drain({self._rate:.2f} places a second, {self._num_promised} promised)"

    def gave(self, now: float) -> None:
        """A request that had waited was given a place."""
        self._given.append(now)

    def promise(self, client: str, now: float) -> int:
        """In how many whole seconds a request of this client that is refused now will be taken in."""
        self._forget(now)
        free_at = min(max(self._promised_until, now) + 1 / self._measured(now), now + _LONGEST_S)
        wait_s = math.ceil(max(free_at - now, SHORTEST_S))
        if self._num_promised < MAX_PROMISED:
            self._promised_until, at = free_at, now + wait_s
            self._promises.setdefault(client, deque()).extend([at] * LETS_IN)
            self._num_promised += LETS_IN
        return wait_s

    def redeem(self, client: str, now: float) -> bool:
        """Whether a promise to this client is due, which is kept by that once."""
        self._forget(now)
        promised = self._promises.get(client)
        if not promised or promised[0] > now:
            return False
        self._drop_first(client)
        return True

    def _measured(self, now: float) -> float:
        """Places a second; what was measured last where nothing was lately."""
        lately = [at for at in self._given if now - at <= _LATELY_S]
        if len(lately) > 1 and now > lately[0]:
            self._rate = len(lately) / (now - lately[0])
        return self._rate

    def _forget(self, now: float) -> None:
        for client in [name for name, promised in self._promises.items() if promised[0] + GRACE_S < now]:
            while client in self._promises and self._promises[client][0] + GRACE_S < now:
                self._drop_first(client)

    def _drop_first(self, client: str) -> None:
        self._promises[client].popleft()
        self._num_promised -= 1
        if not self._promises[client]:
            del self._promises[client]
