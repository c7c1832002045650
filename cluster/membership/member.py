"""One worker of a cluster as the coordinator knows it: its lifecycle, and what it said of itself last.

An illegal event raises `IllegalEvent` and changes nothing; `now` (seconds of a monotonic clock) is an argument.
"""

from enum import StrEnum

import msgspec

from protocol.errors import IllegalEvent
from protocol.messages import Heartbeat, Join, LinkFigures, Loaded
from protocol.values import LayerRange

LOST_AFTER_S = 3.0
LOCAL = "local"


class WorkerState(StrEnum):
    """Where a worker is in its life."""

    JOINING = "joining"
    JOINED = "joined"
    LOADING = "loading"
    READY = "ready"
    LOST = "lost"
    STOPPED = "stopped"


class WorkerEvent(StrEnum):
    """What can happen to a worker. RELEASE: it is no longer part of a plan."""

    START = "start"
    JOIN = "join"
    LOAD = "load"
    LOADED = "loaded"
    RELEASE = "release"
    LOSE = "lose"
    STOP = "stop"


_S, _E = WorkerState, WorkerEvent
TRANSITIONS: dict[tuple[WorkerState, WorkerEvent], WorkerState] = {
    (_S.JOINING, _E.JOIN): _S.JOINED,
    (_S.JOINING, _E.LOSE): _S.LOST,
    (_S.JOINING, _E.STOP): _S.STOPPED,
    (_S.JOINED, _E.JOIN): _S.JOINED,
    (_S.JOINED, _E.LOAD): _S.LOADING,
    (_S.JOINED, _E.LOSE): _S.LOST,
    (_S.JOINED, _E.STOP): _S.STOPPED,
    (_S.LOADING, _E.JOIN): _S.JOINED,
    (_S.LOADING, _E.LOAD): _S.LOADING,
    (_S.LOADING, _E.LOADED): _S.READY,
    (_S.LOADING, _E.RELEASE): _S.JOINED,
    (_S.LOADING, _E.LOSE): _S.LOST,
    (_S.LOADING, _E.STOP): _S.STOPPED,
    (_S.READY, _E.JOIN): _S.JOINED,
    (_S.READY, _E.LOAD): _S.LOADING,
    (_S.READY, _E.RELEASE): _S.JOINED,
    (_S.READY, _E.LOSE): _S.LOST,
    (_S.READY, _E.STOP): _S.STOPPED,
    (_S.LOST, _E.START): _S.JOINING,
    (_S.LOST, _E.JOIN): _S.JOINED,
    (_S.LOST, _E.STOP): _S.STOPPED,
}
THERE = frozenset({_S.JOINED, _S.LOADING, _S.READY})


class WorkerLoad(msgspec.Struct, frozen=True, kw_only=True):
    """How busy a worker was between two heartbeats. batch_size: sequences in a step on average."""

    busy_share: float = 0.0
    steps_per_s: float = 0.0
    batch_size: float = 0.0
    queue: int = 0

    @classmethod
    def between(cls, earlier: Heartbeat, later: Heartbeat, seconds: float) -> "WorkerLoad":
        """From the counts of two heartbeats `seconds` apart; nothing where a new process counts anew."""
        steps = later.steps - earlier.steps
        if steps < 0:
            return cls(queue=later.queued)
        return cls(
            busy_share=round(min((later.busy_s - earlier.busy_s) / seconds, 1.0), 3),
            steps_per_s=round(steps / seconds, 1),
            batch_size=round((later.rows - earlier.rows) / steps, 2) if steps else 0.0,
            queue=later.queued,
        )


class Whereabouts(msgspec.Struct, frozen=True):
    """Where a worker runs: on this host, on one that the configuration names, or wherever a guest came from. why_away: a
    clause, while that host cannot take part.
    """

    host: str = LOCAL
    is_guest: bool = False
    why_away: str | None = None


class Member:
    """One worker: its state, how to reach it, and what it said of itself last."""

    def __init__(
        self,
        name: str,
        *,
        memory_limit_bytes: int,
        manual_layers: LayerRange | None = None,
        place: Whereabouts = Whereabouts(),  # noqa: B008 - frozen
        now: float = 0,
    ):
        self.name = name
        self.memory_limit_bytes = memory_limit_bytes
        self.place = place
        self.manual_layers = manual_layers
        self.state = WorkerState.JOINING
        self.join: Join | None = None
        self.heartbeat: Heartbeat | None = None
        self.load = WorkerLoad()
        self.held: tuple[LayerRange, ...] = ()
        self.links: tuple[LinkFigures, ...] = ()
        self.seen_at = now
        self.due_at: float | None = None  # when it is expected at the latest

    def __repr__(self) -> str:
        return f"Member({self.name}, {self.state})"

    def apply(self, event: WorkerEvent) -> None:
        """Move on. Raises IllegalEvent."""
        following = TRANSITIONS.get((self.state, event))
        if following is None:
            raise IllegalEvent(f"{self.name} is {self.state} and cannot {event}")
        self.state = following

    @property
    def is_guest(self) -> bool:
        """It joined from elsewhere, so that its process is neither started nor ended by this cluster."""
        return self.place.is_guest

    @property
    def is_hosted(self) -> bool:
        """Its process is started on another host, which may be away."""
        return not self.is_guest and self.place.host != LOCAL

    @property
    def host(self) -> str:
        """Where it runs, for people; a guest says it itself."""
        return self.join.about.name if self.is_guest and self.join is not None else self.place.host

    def away(self, why: str | None) -> None:
        """Its host cannot take part, for which `why` is to blame; None: it can again."""
        self.place = msgspec.structs.replace(self.place, why_away=why)

    @property
    def is_there(self) -> bool:
        return self.state in THERE

    @property
    def is_ready(self) -> bool:
        return self.state is WorkerState.READY

    def beat(self, heartbeat: Heartbeat, now: float) -> None:
        """A heartbeat arrived; one that was sent before what the worker has loaded since, which came by another way, is
        believed in all but that.
        """
        known = self.heartbeat
        if known is not None and heartbeat.read_bytes < known.read_bytes:
            heartbeat = msgspec.structs.replace(
                heartbeat, weights_bytes=known.weights_bytes, read_bytes=known.read_bytes
            )
        if self.heartbeat is not None and now > self.seen_at:
            self.load = WorkerLoad.between(self.heartbeat, heartbeat, now - self.seen_at)
        self.heartbeat = heartbeat
        self.seen_at = now

    def loaded(self, message: Loaded) -> None:
        """It has loaded what the plan wants. Its figures are known now, before its next heartbeat. Raises IllegalEvent."""
        self.apply(WorkerEvent.LOADED)
        self.heartbeat = msgspec.structs.replace(
            self.heartbeat or Heartbeat(worker=self.name),
            weights_bytes=message.weights_bytes,
            read_bytes=message.read_bytes,
            oldest_step_s=None,  # what it said while it read
            overdue_s=0.0,
        )

    def is_silent(self, now: float) -> bool:
        """Whether nothing was heard of it for long."""
        return now - self.seen_at > LOST_AFTER_S

    def why_lost(self, now: float) -> str | None:
        """What of a worker that should be there says that it is not, as a clause; None when all is well."""
        if not self.is_there:
            return None
        if self.is_silent(now):
            return "does not answer"
        beat = self.heartbeat
        if beat is not None and beat.oldest_step_s is not None and beat.overdue_s:
            stuck_s = beat.oldest_step_s + now - self.seen_at
            if stuck_s > beat.overdue_s:
                return f"has been stuck for {stuck_s:.1f} s"
        return None
