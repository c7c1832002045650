"""How a request waits for its place, and for how long while no plan can serve it."""

import asyncio
import math
from collections.abc import AsyncGenerator, Callable
from typing import NamedTuple

from cluster.serving.admission import Place
from cluster.serving.deadline import Deadline
from cluster.serving.requests import Waiting
from protocol.errors import Unavailable

SAY_EVERY_S = 5.0


class Waits(NamedTuple):
    """How long a request waits: for a plan that can serve it, and for its answer where it does not say; None: without a limit."""

    plan_s: float
    answer_s: float | None


async def until_placed(
    place: Place,
    *,
    missing: Callable[[], tuple[str, ...]],
    wait_s: float,
    deadline: Deadline,
    now: Callable[[], float],
) -> AsyncGenerator[Waiting, None]:
    """Ends once `place` has a decision; says every few seconds for whom it waits while there is no plan for it.

    missing: the workers that are not there now. wait_s: for a plan; for a place among others there is no limit but the
    request's deadline.

    Raises:
        ApiError: what the place was refused with; Unavailable where no plan came in time; RequestTimeout.
    """
    said_at = 0.0
    while place.decision is None:
        if place.error is not None:
            raise place.error
        place.changed.clear()
        since = place.lacks_plan_since
        until = deadline.at
        if since is not None:
            said_at = max(said_at, since)
            if now() - since >= wait_s:
                raise Unavailable(_too_late(missing(), wait_s))
            until = min(said_at + SAY_EVERY_S, since + wait_s, until)
        try:
            async with asyncio.timeout(None if until == math.inf else until - now()):
                await place.changed.wait()
        except TimeoutError:
            deadline.check(now())
            if since is not None and since + wait_s > said_at + SAY_EVERY_S:
                said_at += SAY_EVERY_S
                yield Waiting(workers=missing())


def _too_late(missing: tuple[str, ...], wait_s: float) -> str:
    if not missing:
        return f"no plan that can serve this request came within {wait_s:g} s; ./launch.sh status says why"
    return (
        f"{', '.join(missing)} did not come back within {wait_s:g} s, and the others cannot serve this request alone; "
        "./launch.sh status says why"
    )
