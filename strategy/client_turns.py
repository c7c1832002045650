"""What is next among things of several clients: clients take turns, and the things of one take turns among themselves."""

from collections import deque
from collections.abc import Iterator
from itertools import chain, zip_longest
from typing import Generic, TypeVar

_Thing = TypeVar("_Thing")


class ClientTurns(Generic[_Thing]):
    """See the module. A newcomer's turn comes after one of each other client."""

    def __init__(self) -> None:
        self._of: dict[str, deque[_Thing]] = {}  # by client, in the order of their turns

    def __repr__(self) -> str:
        return f"ClientTurns({ {client: len(things) for client, things in self._of.items()} })"

    def __bool__(self) -> bool:
        return bool(self._of)

    def add(self, client: str, thing: _Thing) -> None:
        """Behind whatever else the client has."""
        self._of.setdefault(client, deque()).append(thing)

    @property
    def next_client(self) -> str:
        """Whose turn it is. Only where there is anything."""
        return next(iter(self._of))

    def pop(self) -> _Thing:
        """The next thing, taken out. Only where there is anything."""
        client = self.next_client
        things = self._of.pop(client)
        thing = things.popleft()
        if things:
            self._of[client] = things  # at the end
        return thing

    def in_turn(self) -> Iterator[tuple[str, _Thing]]:
        """Clients and things, in the order in which they would be popped."""
        rounds = zip_longest(*([(client, thing) for thing in things] for client, things in self._of.items()))
        return (each for each in chain.from_iterable(rounds) if each is not None)

    def take(self, client: str, thing: _Thing) -> None:
        """As `pop`, of a thing whose turn comes later."""
        self.remove(client, thing)
        if client in self._of:
            self._of[client] = self._of.pop(client)

    def remove(self, client: str, thing: _Thing) -> None:
        """Take a thing out, if it is there."""
        things = self._of.get(client, deque())
        if thing in things:
            things.remove(thing)
            if not things:
                del self._of[client]
