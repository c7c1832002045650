"""Whose turn it is among clients that wait: each client's requests have turns one behind the other.

Start-time fair queueing (Goyal, Vin and Cheng 1996), every request at the same weight: of one client's requests that wait
each has the turn after the one before, and a client that comes has the turn that is being served. So one with a single
request waits for one of each other client at most, however many these have; and nobody saves up turns while away.
"""

from typing import NamedTuple

# Clients that are remembered for nothing.
_FEW = 64


class Turn(NamedTuple):
    """Lower ones go first. number: of the request, among those of one turn."""

    turn: int
    number: int


class Turns:
    """See the module."""

    def __init__(self) -> None:
        self._served = 0  # the turn of who was served last
        self._last: dict[str, int] = {}  # by client
        self._num_requests = 0

    def __repr__(self) -> str:
        return f"Turns({self._served}, {len(self._last)} clients)"

    def next(self, client: str, *, num_waiting: int) -> Turn:
        """The turn of a request that a client sends now. num_waiting: requests in the queue."""
        if len(self._last) > 2 * num_waiting + _FEW:  # who waits for nothing is like a newcomer
            self._last = {name: turn for name, turn in self._last.items() if turn >= self._served}
        self._last[client] = max(self._served, self._last.get(client, -1) + 1)
        self._num_requests += 1
        return Turn(self._last[client], self._num_requests)

    def served(self, turn: Turn) -> None:
        """A request of this turn was given its place."""
        self._served = max(self._served, turn.turn)
