"""When a process that died is started again. Pure: `now` (seconds of a monotonic clock) is an argument.

The rule: the first death of a while is answered after a second, each further one after twice the time of the one
before, up to a minute; five deaths within five minutes, and it is left out until somebody forgives it. Hosts that are away
are never left out.
"""

FIRST_DELAY_S = 1.0
LONGEST_DELAY_S = 60.0
MANY_DEATHS = 5
WINDOW_S = 300.0


class Restarts:
    """The deaths of each process, by its name. gives_up: whether one that dies often is left out."""

    def __init__(self, *, gives_up: bool = True) -> None:
        self._gives_up = gives_up
        self._deaths: dict[str, list[float]] = {}
        self._left_out: set[str] = set()

    def __repr__(self) -> str:
        return f"Restarts(left out: {', '.join(sorted(self._left_out)) or 'none'})"

    def died(self, name: str, now: float) -> float | None:
        """It died. When to start it again (a time as `now`), or None: it is left out."""
        deaths = self._deaths.setdefault(name, [])
        if deaths and now - deaths[-1] > WINDOW_S:
            deaths.clear()  # it lived long enough to begin anew
        deaths.append(now)
        if self._gives_up and sum(now - death <= WINDOW_S for death in deaths) >= MANY_DEATHS:
            self._left_out.add(name)
        if name in self._left_out:
            return None
        return now + min(FIRST_DELAY_S * 2 ** min(len(deaths) - 1, 16), LONGEST_DELAY_S)

    def recent(self, name: str, now: float) -> int:
        """How often it died within the last five minutes."""
        return sum(now - death <= WINDOW_S for death in self._deaths.get(name, ()))

    def forgive(self, name: str) -> None:
        """Forget its deaths: it may be started again."""
        self._deaths.pop(name, None)
        self._left_out.discard(name)

    @property
    def left_out(self) -> frozenset[str]:
        """Who is not started again by itself."""
        return frozenset(self._left_out)
