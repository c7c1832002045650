"""What the stages of each route keep of past sequences and what running ones need there, as they said after loading.

Decides which parts a route's head may count on: those that every stage of the route still has. Sends nothing.
"""

from collections.abc import Mapping

from protocol.messages import KnownPrefix, Loaded
from protocol.values import Buffer, Route, pack_ids, pack_keys, unpack_ids, unpack_keys
from strategy.copies import share
from strategy.memory import KvNeeds, WorkerBudget, prefix_capacity, together
from strategy.prefix import Key


class KeptPrefixes:
    """needs: by route, then worker; drafts: what a draft model takes, too, on the workers that have one."""

    def __init__(self) -> None:
        self.needs: dict[Route, dict[str, KvNeeds]] = {}
        self.drafts: dict[str, KvNeeds] = {}
        self._keys: dict[Route, dict[str, list[tuple[Key, int]]]] = {}

    def __repr__(self) -> str:
        return f"KeptPrefixes({len(self.needs)} routes)"

    def loaded(self, message: Loaded, buffers: tuple[Buffer, ...]) -> None:
        """A worker loaded its stages; `buffers` as `Loaded` says."""
        if message.draft is not None:
            self.drafts[message.worker] = message.draft
        for index, prefix in enumerate(message.prefixes):
            keys, lengths = unpack_keys(buffers[2 * index]), unpack_ids(buffers[2 * index + 1])
            self.needs.setdefault(prefix.route, {})[message.worker] = prefix.needs
            self._keys.setdefault(prefix.route, {})[message.worker] = list(zip(keys, lengths, strict=True))

    @property
    def needs_with_drafts(self) -> dict[Route, dict[str, KvNeeds]]:
        """What running sequences need: the head of a route guesses for them."""
        return {
            route: {
                worker: together(needs, self.drafts[worker])
                if worker == route.head and worker in self.drafts
                else needs
                for worker, needs in of_route.items()
            }
            for route, of_route in self.needs.items()
        }

    def known(
        self, route: Route, budgets: Mapping[str, WorkerBudget], disk_bytes: int, *, kv_copies: int
    ) -> tuple[KnownPrefix, tuple[bytes, bytes]]:
        """For a route's head: how many parts may be kept, and which of an earlier life every stage still has.

        disk_bytes: what one worker may keep on disk. A worker shares its room among its routes, at least two, and with copies of
        what others keep.
        """
        needs, keys = self.needs[route], self._keys[route]
        most_routes = max(2, *(sum(name in others for others in self.needs.values()) for name in needs))
        rooms = {name: budgets[name].prefix_bytes // most_routes for name in needs}
        if kv_copies and not route.is_shared:
            rooms = {name: share(room, route, name) for name, room in rooms.items()}
        in_memory = prefix_capacity((need, rooms[name]) for name, need in needs.items())
        on_disk = prefix_capacity((need, disk_bytes // most_routes) for need in needs.values())
        everywhere = set.intersection(*({key for key, _ in of_worker} for of_worker in keys.values()))
        kept = [(key, length) for key, length in keys[route.head] if key in everywhere]
        message = KnownPrefix(
            route=route,
            capacity=max(in_memory, on_disk),
            snapshots=any(need.snapshots for need in needs.values()),
        )
        return message, (pack_keys([key for key, _ in kept]), pack_ids(length for _, length in kept))
