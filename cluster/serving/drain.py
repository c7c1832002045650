"""When who was refused may come back: from how fast places were given lately.

A time that was named is a promise to that client: a request of it that comes from then on, for a while, is let in though
as many wait as may. So obeying always succeeds, and who comes at once again gains nothing. Promises are as far apart as
places become free, so the queue stays about as long as it may be. `now` (seconds of one clock) is an argument.
"""

import math
from collections import deque

# Of how many places given last the rate is taken, and how old they may be.
_NUM_GIVEN = 64
_LATELY_S = 120.0
# Before anything was measured.
_FIRST_RATE = 8.0
_LONGEST_S = 3600.0
# How long after its time a promise holds, and how many there are at most.
GRACE_S = 120.0
MAX_PROMISES = 4096


class Drain:
    """See the module."""

    def __init__(self) -> None:
        self._given: deque[float] = deque(maxlen=_NUM_GIVEN)
        self._rate = _FIRST_RATE
        self._promised_until = 0.0
        self._promises: dict[str, deque[float]] = {}  # by client, each in order
        self._num_promises = 0

    def __repr__(self) -> str:
        return f"Drain({self._rate:.2f} places a second, {self._num_promises} promises)"

    def gave(self, now: float) -> None:
        """A request that had waited was given a place."""
        self._given.append(now)

    def promise(self, client: str, now: float) -> int:
        """In how many whole seconds a request of this client that is refused now will be taken in."""
        self._forget(now)
        at = min(max(self._promised_until, now) + 1 / self._measured(now), now + _LONGEST_S)
        if self._num_promises < MAX_PROMISES:
            self._promised_until = at
            self._promises.setdefault(client, deque()).append(at)
            self._num_promises += 1
        return max(1, math.ceil(at - now))

    def redeem(self, client: str, now: float) -> bool:
        """Whether a promise to this client is due, which is kept by that."""
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
        self._num_promises -= 1
        if not self._promises[client]:
            del self._promises[client]
