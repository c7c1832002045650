"""Which workers a request goes through: all stages, or one of those that hold the full model.

Owns the memory of where conversations and shared beginnings of prompts went, so that they come back to the worker whose
cache knows them, unless that worker is clearly busier than another.
"""

import contextlib
from collections import OrderedDict
from collections.abc import Iterator, Sequence

from cluster.membership.roster import Member
from cluster.planning.control import ControlPlane
from protocol.values import Route
from strategy.prefix import BLOCK_TOKENS, block_keys
from strategy.selector import Strategy

_MAX_REMEMBERED = 4096
# How many more requests a worker may have than the least busy one and still be worth returning to.
_TOLERATED_LEAD = 2


class Routes:
    """See the module."""

    def __init__(self, control: ControlPlane):
        self._control = control
        self._visited: OrderedDict[str | bytes, str] = OrderedDict()

    def __repr__(self) -> str:
        return f"Routes({len(self._visited)} remembered)"

    def choose(self, strategy: Strategy, tokens: tuple[int, ...], conversation: str | None) -> Route:
        """The route of a request that will run by `strategy`."""
        if strategy is not Strategy.SINGLE_DEVICE_CACHED:
            return self._control.pipeline
        beginnings: list[str | bytes] = [key for key in (conversation, *block_keys(tokens[:BLOCK_TOKENS], "")) if key]
        worker = self._holder(beginnings).name
        for key in beginnings:
            self._visited[key] = worker
            self._visited.move_to_end(key)
        while len(self._visited) > _MAX_REMEMBERED:
            self._visited.popitem(last=False)
        return Route((worker,))

    def _holder(self, beginnings: Sequence[str | bytes]) -> Member:
        holders = self._control.full_model_holders
        least = min(holders, key=lambda member: member.num_assigned)
        for key in beginnings:
            for member in holders:
                if (
                    member.name == self._visited.get(key)
                    and member.num_assigned <= least.num_assigned + _TOLERATED_LEAD
                ):
                    return member
        return least

    @contextlib.contextmanager
    def assigned(self, route: Route) -> Iterator[None]:
        """Counts a request at the head of its route while it waits or runs."""
        head = self._control.members[route.head]
        head.num_assigned += 1
        try:
            yield
        finally:
            head.num_assigned -= 1

    def forget(self, conversation: str) -> None:
        """A conversation was deleted."""
        self._visited.pop(conversation, None)
