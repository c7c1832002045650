"""The life of a request as one table: what can happen to it, and where that leads. Pure.

A request whose client leaves simply ends where it is; that is nothing that happens to it here.
"""

from enum import StrEnum

from protocol.errors import IllegalEvent


class RequestState(StrEnum):
    """WAITING: for a plan or a place; REASSIGNED: it ran, lost its route, and waits to go on; PAUSED: it ran until its
    reader was too far behind, or others needed its room, and goes on when that has caught up, or there is room again.
    """

    WAITING = "waiting"
    RUNNING = "running"
    REASSIGNED = "reassigned"
    PAUSED = "paused"
    FINISHED = "finished"
    FAILED = "failed"


class RequestEvent(StrEnum):
    """ADMIT: it has a place and runs; LOSE_ROUTE: the plan that it ran on ended; PAUSE: see PAUSED."""

    ADMIT = "admit"
    LOSE_ROUTE = "lose route"
    PAUSE = "pause"
    FINISH = "finish"
    FAIL = "fail"


_S, _E = RequestState, RequestEvent
TRANSITIONS: dict[tuple[RequestState, RequestEvent], RequestState] = {
    (_S.WAITING, _E.ADMIT): _S.RUNNING,
    (_S.WAITING, _E.FAIL): _S.FAILED,
    (_S.RUNNING, _E.LOSE_ROUTE): _S.REASSIGNED,
    (_S.RUNNING, _E.PAUSE): _S.PAUSED,
    (_S.RUNNING, _E.FINISH): _S.FINISHED,
    (_S.RUNNING, _E.FAIL): _S.FAILED,
    (_S.REASSIGNED, _E.ADMIT): _S.RUNNING,
    (_S.REASSIGNED, _E.FAIL): _S.FAILED,
    (_S.PAUSED, _E.ADMIT): _S.RUNNING,
    (_S.PAUSED, _E.FINISH): _S.FINISHED,
    (_S.PAUSED, _E.FAIL): _S.FAILED,
}


def following(state: RequestState, event: RequestEvent) -> RequestState:
    """Where `event` leads. Raises IllegalEvent."""
    after = TRANSITIONS.get((state, event))
    if after is None:
        raise IllegalEvent(f"a request that is {state} cannot {event}")
    return after
