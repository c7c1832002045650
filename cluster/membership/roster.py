"""The workers of a cluster as the coordinator knows them: one lifecycle each, who is lost when, and who starts again.

Events in, actions out; `now` (seconds of a monotonic clock) is an argument. An illegal event raises `IllegalEvent` and
changes nothing. Knows nothing of plans: a worker that is there can be used, what for is decided elsewhere.
"""

import hmac
from collections.abc import Iterable
from enum import StrEnum

import msgspec

from cluster.membership.restarts import Restarts
from protocol.codec import PROTOCOL
from protocol.errors import IllegalEvent
from protocol.join_token import make_token
from protocol.messages import Heartbeat, Join, Loaded
from protocol.values import LayerRange, Peer

LOST_AFTER_S = 3.0
# A worker whose connection closed may come back by itself, which takes it LOST_AFTER_S where no Beat tells it that it was
# given up; after that its process is ended.
RETURN_WITHIN_S = 2 * LOST_AFTER_S
# What was killed ends in a moment; what did not is killed again.
END_WITHIN_S = 5.0
# A process that was started joins at last; how long that takes depends on the machine, so this only ends what hangs.
JOIN_WITHIN_S = 300.0
# Workers that outlived their coordinator look for it twice a second.
REJOIN_WITHIN_S = 15.0


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


class Member:
    """One worker: its state, how to reach it, and what it said of itself last."""

    def __init__(self, name: str, *, memory_limit_bytes: int, manual_layers: LayerRange | None = None, now: float = 0):
        self.name = name
        self.memory_limit_bytes = memory_limit_bytes
        self.manual_layers = manual_layers
        self.state = WorkerState.JOINING
        self.join: Join | None = None
        self.heartbeat: Heartbeat | None = None
        self.load = WorkerLoad()
        self.held: tuple[LayerRange, ...] = ()
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

    def why_lost(self, now: float) -> str | None:
        """What of a worker that should be there says that it is not, as a clause; None when all is well."""
        if not self.is_there:
            return None
        if now - self.seen_at > LOST_AFTER_S:
            return "does not answer"
        beat = self.heartbeat
        if beat is not None and beat.oldest_step_s is not None and beat.overdue_s:
            stuck_s = beat.oldest_step_s + now - self.seen_at
            if stuck_s > beat.overdue_s:
                return f"has been stuck for {stuck_s:.1f} s"
        return None


class Admitted(msgspec.Struct, frozen=True):
    """A worker is there, perhaps again, with nothing of a plan under way."""

    name: str


class RefuseJoin(msgspec.Struct, frozen=True):
    """Somebody who may not join."""

    peer: Peer
    reason: str


class Lost(msgspec.Struct, frozen=True):
    """A worker is gone. died: not just its connection, so that whoever it worked for counts it."""

    name: str
    sentence: str
    died: bool


class Kill(msgspec.Struct, frozen=True):
    """End the worker's process: it may still hold memory, or never come back."""

    name: str


class Start(msgspec.Struct, frozen=True):
    """Start the worker's process again."""

    name: str


Action = Admitted | RefuseJoin | Lost | Kill | Start


class Roster:
    """The members by name. secret: what proves that a worker was given the cluster's token."""

    def __init__(self, members: Iterable[Member], *, secret: str, restarts: Restarts):
        self.members = {member.name: member for member in members}
        self._secret = secret
        self._restarts = restarts
        self._start_at: dict[str, float] = {}

    def __repr__(self) -> str:
        return f"Roster({list(self.members.values())})"

    def expect(self, name: str, within_s: float, now: float) -> None:
        """The worker's process runs and will join."""
        self.members[name].due_at = now + within_s

    def joined(self, join: Join, now: float) -> list[Action]:
        """A worker asks to be admitted; one that is known already comes back, in whatever state it was.

        What a process asked before it ended may arrive afterwards, and means nothing.
        """
        member = self.members.get(join.name)
        if (
            not hmac.compare_digest(join.secret.encode(), self._secret.encode())
            or join.protocol != PROTOCOL
            or member is None
        ):
            return [
                RefuseJoin(join.peer, "a wrong token, another version of Tandem, or a name that is not in the plan")
            ]
        if member.is_there and member.join is not None:
            if member.join.pid != join.pid:
                return [RefuseJoin(join.peer, f"{join.name} is there already")]
            if member.join.num_losses == join.num_losses:
                return []
        if join.name in self._start_at:
            return []
        try:
            member.apply(WorkerEvent.JOIN)
        except IllegalEvent as error:
            return [RefuseJoin(join.peer, str(error))]
        member.join, member.seen_at, member.due_at = join, now, None
        member.heartbeat = None
        return [Admitted(join.name)]

    def beat(self, heartbeat: Heartbeat, now: float) -> None:
        """A heartbeat of a stranger, or of who was given up, means nothing."""
        member = self.members.get(heartbeat.worker)
        if member is not None and member.is_there:
            member.beat(heartbeat, now)

    def process_ended(self, name: str, status: int | None, now: float) -> list[Action]:
        """A worker's process is gone; it is started again after a while, unless it died too often."""
        member = self.members[name]
        if member.state is WorkerState.STOPPED or name in self._start_at:
            return []
        how = "" if status is None else f" (status {status})"
        actions = self._lose(member, f"worker {name} ended unexpectedly{how}; see ./launch.sh logs", died=True)
        member.due_at = None
        start_at = self._restarts.died(name, now)
        if start_at is not None:
            self._start_at[name] = start_at
        return actions

    def closed(self, name: str, now: float) -> list[Action]:
        """The connection to a worker closed; it may come back."""
        member = self.members[name]
        if not member.is_there:
            return []
        member.due_at = now + RETURN_WITHIN_S
        return self._lose(member, f"the connection to worker {name} closed", died=False)

    def tick(self, now: float) -> list[Action]:
        """Who is silent or stuck is lost, who is late is ended, and whose time has come is started."""
        actions: list[Action] = []
        for member in self.members.values():
            if why := member.why_lost(now):
                actions += self._lose(member, f"worker {member.name} {why}; see ./launch.sh logs", died=True)
                actions.append(self._kill(member, now))
            elif member.due_at is not None and now > member.due_at:
                actions.append(self._kill(member, now))
        for name in [name for name, at in self._start_at.items() if now >= at]:
            del self._start_at[name]
            self.members[name].apply(WorkerEvent.START)
            self.expect(name, JOIN_WITHIN_S, now)
            actions.append(Start(name))
        return actions

    def _kill(self, member: Member, now: float) -> Action:
        """Its process is as good as gone; until it is, none starts under its name."""
        member.due_at = now + END_WITHIN_S
        return Kill(member.name)

    def excuse(self, seconds: float, now: float) -> None:
        """The last `seconds` do not count as silence, because nobody listened."""
        for member in self.members.values():
            member.seen_at = min(member.seen_at + seconds, now)

    def mend(self, now: float) -> list[str]:
        """Start everybody who is not there at once, also those left out; returns their names."""
        missing = [member.name for member in self.members.values() if member.state is WorkerState.LOST]
        for name in missing:
            self._restarts.forgive(name)
            if self.members[name].due_at is None:
                self._start_at[name] = now
        return missing

    @property
    def there(self) -> tuple[Member, ...]:
        """Workers that can be part of a plan, in the order of the configuration."""
        return tuple(member for member in self.members.values() if member.is_there)

    @property
    def missing(self) -> tuple[str, ...]:
        """Workers that should be there and are not."""
        return tuple(member.name for member in self.members.values() if not member.is_there)

    def token(self, public_key: str) -> str:
        """What lets a worker in at the coordinator with this key."""
        return make_token(public_key, self._secret)

    def deaths(self, name: str, now: float) -> int:
        """How often a worker died lately."""
        return self._restarts.recent(name, now)

    @property
    def left_out(self) -> frozenset[str]:
        """Workers that died too often to be started again."""
        return self._restarts.left_out

    def _lose(self, member: Member, sentence: str, *, died: bool) -> list[Action]:
        if member.state in (WorkerState.LOST, WorkerState.STOPPED):
            return []
        member.apply(WorkerEvent.LOSE)
        member.heartbeat = None
        return [Lost(member.name, sentence, died)]
