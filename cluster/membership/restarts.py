"""When a worker that died is started again. Pure; `now` is an argument."""

_FIRST_DELAY_S = 1.0
_LONGEST_DELAY_S = 60.0
_DEATHS = 5
_WITHIN_S = 300.0


class Restarts:
    """Deaths of the last five minutes by worker: each doubles the wait, the fifth is the last."""

    def __init__(self) -> None:
        self._deaths: dict[str, list[float]] = {}
        self._left_out: set[str] = set()

    def __repr__(self) -> str:
        return f"Restarts(left out: {sorted(self._left_out)})"

    def died(self, name: str, now: float) -> float | None:
        """Seconds until it shall be started again; None when it is left out from now on."""
        deaths = [at for at in self._deaths.get(name, ()) if now - at < _WITHIN_S]
        self._deaths[name] = [*deaths, now]
        if len(deaths) + 1 >= _DEATHS:
            self._left_out.add(name)
            return None
        return float(min(_FIRST_DELAY_S * 2 ** len(deaths), _LONGEST_DELAY_S))

    def recent(self, name: str, now: float) -> int:
        """How often it died in the last five minutes."""
        return sum(now - at < _WITHIN_S for at in self._deaths.get(name, ()))

    def is_left_out(self, name: str) -> bool:
        return name in self._left_out

    def forgive(self, name: str) -> None:
        """Somebody asked for it: its deaths no longer count."""
        self._deaths.pop(name, None)
        self._left_out.discard(name)
