"""The workers of a cluster as the coordinator knows them: one lifecycle each, who is lost when, and who starts again.

Events in, actions out; `now` (seconds of a monotonic clock) is an argument. An illegal event raises `IllegalEvent` and
changes nothing. Knows nothing of plans: a worker that is there can be used, what for is decided elsewhere.
"""

import hmac
from collections.abc import Collection, Iterable
from typing import Protocol

import msgspec

from cluster.membership.invitations import NotInvited
from cluster.membership.member import LOST_AFTER_S, Member, Whereabouts, WorkerEvent, WorkerState
from cluster.membership.restarts import Restarts
from protocol.codec import PROTOCOL
from protocol.errors import IllegalEvent
from protocol.exits import BEGINS_ANEW
from protocol.join_token import make_token
from protocol.messages import Beat, Heartbeat, Join
from protocol.values import Peer

# A worker whose connection closed may come back by itself, which takes it LOST_AFTER_S where no Beat tells it that it was
# given up; after that its process is ended.
RETURN_WITHIN_S = 2 * LOST_AFTER_S
# What was killed ends in a moment; what did not is killed again.
END_WITHIN_S = 5.0
# A process that was started joins at last; how long that takes depends on the machine, so this only ends what hangs.
JOIN_WITHIN_S = 300.0
# Workers that outlived their coordinator look for it twice a second.
REJOIN_WITHIN_S = 15.0
# A guest that is gone for longer is missed no more; it may come again whenever it likes.
MISSED_FOR_S = 120.0


class Admitted(msgspec.Struct, frozen=True):
    """A worker is there, perhaps again, with nothing of a plan under way."""

    name: str


class RefuseJoin(msgspec.Struct, frozen=True):
    """Somebody who may not join."""

    peer: Peer
    reason: str


class Lost(msgspec.Struct, frozen=True):
    """A worker is gone. died: not just its connection, so that whoever it worked for counts it; was_silent: that is all that is known
    of its death.
    """

    name: str
    sentence: str
    died: bool
    was_silent: bool = False

    @property
    def who_died(self) -> tuple[str, ...]:
        return (self.name,) if self.died else ()


class Kill(msgspec.Struct, frozen=True):
    """End the worker's process: it may still hold memory, or never come back."""

    name: str


class Start(msgspec.Struct, frozen=True):
    """Start the worker's process again."""

    name: str


class Gone(msgspec.Struct, frozen=True):
    """A guest, which is reached at `peer`, is no member any more. why: a sentence for it."""

    peer: Peer
    why: str


Action = Admitted | RefuseJoin | Lost | Kill | Start | Gone


class Guests(Protocol):
    """Who may come from elsewhere; `InvitationBook`."""

    @property
    def names(self) -> frozenset[str]:
        """Those who came and may stay."""

    def admit(self, join: Join) -> None:
        """Let a worker in. Raises NotInvited."""

    def left(self, name: str) -> None:
        """One is here no more, and may come again."""


class NoGuests:
    """Nobody comes from elsewhere."""

    names: frozenset[str] = frozenset()

    def admit(self, _: Join) -> None:
        """See Guests."""
        raise NotInvited("there is no worker of that name in the plan, and no token lets one in")

    def left(self, name: str) -> None:
        """See Guests."""


_NO_GUESTS = NoGuests()


class Roster:
    """The members by name. secret: what proves that a worker was given the cluster's own token; guests: who may come besides."""

    def __init__(
        self,
        members: Iterable[Member],
        *,
        secret: str,
        restarts: Restarts,
        guests: Guests = _NO_GUESTS,
    ):
        self.members = {member.name: member for member in members}
        self._secret = secret
        self._guests = guests
        self._restarts = restarts
        self._start_at: dict[str, float] = {}
        self._absences = Restarts(gives_up=False)

    def __repr__(self) -> str:
        return f"Roster({list(self.members.values())})"

    def expect(self, name: str, within_s: float, now: float) -> None:
        """The worker's process runs and will join."""
        self.members[name].due_at = now + within_s

    def joined(self, join: Join, now: float) -> list[Action]:
        """A worker asks to be admitted; one that is known already comes back, in whatever state it was.

        What a process asked before it ended may arrive afterwards, and means nothing.
        """
        try:
            member = self._admit(join)
        except NotInvited as error:
            return [RefuseJoin(join.peer, str(error))]
        earlier: list[Action] = []
        if member.is_there and member.join is not None:
            if member.join.pid != join.pid:
                if not member.is_guest:
                    return [RefuseJoin(join.peer, f"{join.name} is there already")]
                earlier = self._lose(member, f"worker {join.name} was started again", died=True)
            elif member.join.num_losses == join.num_losses:
                return []
        if join.name in self._start_at:
            return []
        try:
            member.apply(WorkerEvent.JOIN)
        except IllegalEvent as error:
            return [RefuseJoin(join.peer, str(error))]
        member.join, member.seen_at, member.due_at = join, now, None
        member.away(None)
        member.heartbeat = None
        return [*earlier, Admitted(join.name)]

    def _admit(self, join: Join) -> Member:
        """Whose Join this is; a guest that is new becomes a member. Raises NotInvited."""
        if join.protocol != PROTOCOL:
            raise NotInvited("another version of Tandem is running here; update both to the same")
        member = self.members.get(join.name)
        if member is None or member.is_guest:
            self._guests.admit(join)
            member = member or self.invite(join.name)
            member.memory_limit_bytes = join.memory_limit_bytes
        elif not hmac.compare_digest(join.secret.encode(), self._secret.encode()):
            raise NotInvited("a wrong token, or the name of another worker; give this one a name with --name")
        if member.is_hosted:
            member.memory_limit_bytes = join.memory_limit_bytes
        return member

    def invite(self, name: str) -> Member:
        """A guest that will come."""
        member = self.members[name] = Member(name, memory_limit_bytes=0, place=Whereabouts(is_guest=True))
        return member

    def dismiss(self, name: str, why: str) -> list[Action]:
        """A guest is no member any more; nothing happens for a worker of the configuration. why: a clause."""
        member = self.members[name]
        if not member.is_guest:
            return []
        del self.members[name]
        self._guests.left(name)
        sentence = f"worker {name} {why}"
        gone = [] if member.join is None else [Gone(member.join.peer, sentence)]
        return [*self._lose(member, sentence, died=True), *gone]

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
        sentence = f"worker {name} ended unexpectedly{how}; see ./launch.sh logs"
        if status == BEGINS_ANEW:
            sentence = f"worker {name} begins anew, as its group has to; see ./launch.sh logs {name}"
        actions = self._lose(member, sentence, died=True)
        member.due_at = None
        start_at = self._restarts.died(name, now)
        if start_at is not None:
            self._start_at[name] = start_at
        return actions

    def unavailable(self, name: str, why: str, now: float) -> list[Action]:
        """A worker cannot take part, for which its host is to blame; that is asked again, at last once a minute."""
        member = self.members[name]
        if member.state is WorkerState.STOPPED or name in self._start_at:
            return []
        member.due_at = None
        member.away(why)
        start_at = self._absences.died(name, now)
        assert start_at is not None
        self._start_at[name] = start_at
        return self._lose(member, why, died=True)

    def closed(self, name: str, now: float) -> list[Action]:
        """The connection to a worker closed; it may come back."""
        member = self.members.get(name)
        if member is None or not member.is_there:
            return []
        member.due_at = now + (MISSED_FOR_S if member.is_guest else RETURN_WITHIN_S)
        return self._lose(member, f"the connection to worker {name} closed", died=False)

    def tick(self, now: float) -> list[Action]:
        """Who is silent or stuck is lost, who is late is ended, and whose time has come is started."""
        actions: list[Action] = []
        for member in self.members.values():
            if why := member.why_lost(now):
                sentence, was_silent = f"worker {member.name} {why}; see ./launch.sh logs", member.is_silent(now)
                actions += self._lose(member, sentence, died=True, was_silent=was_silent)
                actions.append(self._kill(member, now))
            elif member.due_at is not None and now > member.due_at and not member.is_guest:
                actions.append(self._kill(member, now))
        for name in [name for name, at in self._start_at.items() if now >= at]:
            del self._start_at[name]
            self.members[name].apply(WorkerEvent.START)
            self.expect(name, JOIN_WITHIN_S, now)
            actions.append(Start(name))
        return [*actions, *self._dismiss_guests(now)]

    def _dismiss_guests(self, now: float) -> list[Action]:
        """Those whose token was taken back, and those who are gone for long."""
        actions: list[Action] = []
        for member in [member for member in self.members.values() if member.is_guest]:
            if member.name not in self._guests.names:
                actions += self.dismiss(member.name, "may not stay")
            elif not member.is_there and member.due_at is None:
                member.due_at = now + MISSED_FOR_S
            elif member.due_at is not None and now > member.due_at:
                actions += self.dismiss(member.name, "did not come back")
        return actions

    def _kill(self, member: Member, now: float) -> Action:
        """Its process is as good as gone; until it is, none starts under its name."""
        member.due_at = now + (MISSED_FOR_S if member.is_guest else END_WITHIN_S)
        return Kill(member.name)

    def excuse(self, seconds: float, now: float) -> None:
        """The last `seconds` do not count as silence, because nobody listened."""
        for member in self.members.values():
            member.seen_at = min(member.seen_at + seconds, now)

    def mend(self, now: float) -> list[str]:
        """Start everybody who is not there at once, also those left out; returns their names."""
        lost = [member for member in self.members.values() if member.state is WorkerState.LOST]
        missing = [member.name for member in lost if not member.is_guest]
        for name in missing:
            self._restarts.forgive(name)
            self._absences.forgive(name)
            if self.members[name].due_at is None:
                self._start_at[name] = now
        return missing

    @property
    def there(self) -> tuple[Member, ...]:
        """Workers that can be part of a plan, in the order of the configuration."""
        return tuple(member for member in self.members.values() if member.is_there)

    @property
    def awaited(self) -> tuple[str, ...]:
        """Who should be part of a plan, without those whose hosts are known to be away."""
        return tuple(name for name, member in self.members.items() if member.place.why_away is None)

    def missing(self, planned: Collection[str] | None = None) -> tuple[str, ...]:
        """Workers that should be there and are not, or are not `planned`, where that is given."""
        return tuple(
            member.name
            for member in self.members.values()
            if not member.is_there or (planned is not None and member.name not in planned)
        )

    def muster(self, *, watches_steps: bool = False) -> Beat:
        """Who the members are, for all of them to know, and whether somebody looks at their steps."""
        there = self.there
        keys = tuple(member.join.data.public_key for member in there if member.join is not None)
        return Beat(members=tuple(member.name for member in there), keys=keys, watches_steps=watches_steps)

    @property
    def sources(self) -> tuple[Peer, ...]:
        """Who may have the model: first who was started here, where it lies."""
        there = sorted(self.there, key=lambda member: member.is_guest)
        return tuple(member.join.data for member in there if member.join is not None and member.join.data.answer_port)

    def token(self, public_key: str) -> str:
        """What lets a worker in at the coordinator with this key."""
        return make_token(public_key, self._secret)

    def release(self) -> None:
        """No worker is part of a plan any more."""
        for member in self.there:
            if member.state is not WorkerState.JOINED:
                member.apply(WorkerEvent.RELEASE)

    def is_guest(self, name: str) -> bool:
        """Whether a worker came from elsewhere, also one that is no member any more."""
        return name not in self.members or self.members[name].is_guest

    def may_be_away(self, name: str) -> bool:
        """Whether a worker runs elsewhere, so that the cluster starts without it."""
        return self.is_guest(name) or self.members[name].is_hosted

    def deaths(self, name: str, now: float) -> int:
        """How often a worker died lately."""
        return self._restarts.recent(name, now)

    @property
    def left_out(self) -> frozenset[str]:
        """Workers that died too often to be started again."""
        return self._restarts.left_out

    def _lose(self, member: Member, sentence: str, *, died: bool, was_silent: bool = False) -> list[Action]:
        if member.state in (WorkerState.LOST, WorkerState.STOPPED):
            return []
        member.apply(WorkerEvent.LOSE)
        member.heartbeat = None
        return [Lost(member.name, sentence, died, was_silent)]
