"""The groups of the plan in force as they are shown: who computes together, what that costs them, and what it gives."""

import msgspec

from cluster.planning.plan import Plan
from cluster.serving.rates import StageRates
from protocol.values import Route
from strategy.cost import RouteCosts
from strategy.group_sums import GroupSums


class SumStatus(msgspec.Struct, frozen=True, kw_only=True):
    """What the ranks exchange, as they timed it when they met. per_token: exchanges; bytes: what each rank adds to one of them; us:
    microseconds that it takes; chunk_bytes, chunk_us: the same for a chunk of a prompt; transport: by which; warning: a clause where that
    is another than the configuration names.
    """

    per_token: int
    bytes: int
    us: float
    chunk_bytes: int
    chunk_us: float
    transport: str
    warning: str | None

    @classmethod
    def of(cls, sums: GroupSums) -> "SumStatus":
        return cls(
            per_token=sums.num_sums,
            bytes=sums.row_bytes,
            us=round(sums.row_s * 1e6, 1),
            chunk_bytes=sums.chunk_bytes,
            chunk_us=round(sums.chunk_s * 1e6, 1),
            transport=sums.transport,
            warning=sums.why_not_wanted,
        )


class GroupStatus(msgspec.Struct, frozen=True, kw_only=True):
    """Workers that compute the whole model together. ranks: how many compute each layer, those behind them the next ones; sums: None where nothing is exchanged; speed: of the group; alone: of its first worker
    without the others; None where it was not measured.
    """

    workers: tuple[str, ...]
    ranks: int
    sums: SumStatus | None = None
    speed: StageRates | None = None
    alone: StageRates | None = None


def group_statuses(plan: Plan | None) -> tuple[GroupStatus, ...]:
    """Of the plan in force."""
    if plan is None:
        return ()
    return tuple(
        GroupStatus(
            workers=route.workers,
            ranks=route.ranks,
            sums=None if (sums := plan.sums.get(route)) is None else SumStatus.of(sums),
            speed=_rates(plan.costs.get(route)),
            alone=_rates(plan.costs.get(Route((route.head,)))),
        )
        for route in plan.groups.routes
    )


def _rates(costs: RouteCosts | None) -> StageRates | None:
    return None if costs is None else StageRates.of(costs.total)
