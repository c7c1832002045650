"""Groups whose ranks could not reach each other, as where a firewall is between their hosts: plans do without them for a while.

A plan that tries one keeps everybody waiting for some seconds, so the rests between become longer. A worker of it that begins anew ends
them. Decides nothing else; `now` as of the deployment.
"""

from collections.abc import Mapping

import msgspec

from protocol.values import Route
from strategy.partition import ModelSizes, Partition
from strategy.vocabulary import NO_LAYERS

Unmet = Mapping[Route, str]
"""Why they did not meet, as a clause."""

FIRST_REST_S = 10.0
_LONGEST_REST_S = 600.0


class _Rest(msgspec.Struct):
    """num_tries: in vain; is_due: the next plan tries it again."""

    why: str
    until: float
    num_tries: int = 1
    is_due: bool = False


class UnmetGroups:
    """See the module."""

    def __init__(self) -> None:
        self._rests: dict[Route, _Rest] = {}

    def __repr__(self) -> str:
        return f"UnmetGroups({self._rests})"

    def tried(self, plan: Partition, unmet: Unmet, now: float) -> bool:
        """A plan is loaded, of whose groups some did not meet; whether their workers have nothing else to do in it. A group that it could not
        try rests as long again.
        """
        there = {stage.worker for stage in plan.stages}
        for group in plan.groups:
            if group.route not in unmet and there.issuperset(group.route):
                self._rests.pop(group.route, None)
        for route, why in unmet.items():
            before = self._rests.get(route)
            num_tries = 1 if before is None else before.num_tries + 1
            self._rests[route] = _Rest(why=why, until=now + _rest_s(num_tries), num_tries=num_tries)
        for rest in self._rests.values():
            if rest.is_due:
                rest.until, rest.is_due = now + _rest_s(rest.num_tries), False
        idle = {stage.worker for stage in plan.stages if stage.layers == NO_LAYERS}
        return any(not idle.isdisjoint(route) for route in unmet)

    def began_anew(self, worker: str) -> None:
        """It may be reached now."""
        self._rests = {route: rest for route, rest in self._rests.items() if worker not in route.workers}

    def tick(self, now: float) -> None:
        """Rests end."""
        for rest in self._rests.values():
            rest.is_due = rest.is_due or now >= rest.until

    @property
    def are_due(self) -> bool:
        """Whether one is to be tried again."""
        return any(rest.is_due for rest in self._rests.values())

    def rest_of(self, plan: Partition | None) -> bool:
        """Whether a plan has a group that rests."""
        return plan is not None and any(self._rests_now(group.route) for group in plan.groups)

    def without(self, sizes: ModelSizes) -> ModelSizes:
        """For a plan that does without those that rest."""
        return msgspec.structs.replace(
            sizes, groups=tuple(group for group in sizes.groups if not self._rests_now(group.route))
        )

    def explained(self, plan: Partition) -> Partition:
        """With the reason why it has no group, where that is this one."""
        resting = [rest.why for route, rest in self._rests.items() if self._rests_now(route)]
        return plan if plan.groups or not resting else msgspec.structs.replace(plan, why_no_group=resting[0])

    def beside(self, why_no_plan: str) -> str:
        """With the reason why there is no group either, where that is this one."""
        return "; ".join([why_no_plan, *(rest.why for route, rest in self._rests.items() if self._rests_now(route))])

    def _rests_now(self, route: Route) -> bool:
        return route in self._rests and not self._rests[route].is_due


def _rest_s(num_tries: int) -> float:
    return min(FIRST_REST_S * 2.0 ** min(num_tries - 1, 16), _LONGEST_REST_S)
