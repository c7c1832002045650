"""Whether this worker belongs to the cluster: the lifecycle of its membership as the worker sees it.

Pure: `handle(event, now)` gives what is to be done, `next_timer()` when the next Tick is due. One table says what each state
makes of each event; an event that a state does not have raises `IllegalEvent` and changes nothing.

A worker is *adrift* when the coordinator was silent for BEAT_LIMIT_S, does not name it any more, or may have missed something: nobody waits for what it
computes, but its weights are worth much. So it keeps those, drops all else, and asks to be taken back until a Beat names it.
"""

import enum
from collections.abc import Callable
from dataclasses import dataclass
from typing import ClassVar

from protocol.errors import IllegalEvent
from protocol.values import Peer

JOIN_EVERY_S = 0.5
BEAT_LIMIT_S = 3.0


class State(enum.Enum):
    """attached: the coordinator names this worker in its Beats. joining: it never did yet; adrift: no longer."""

    NEW = "new"
    JOINING = "joining"
    ATTACHED = "attached"
    ADRIFT = "adrift"
    ENDED = "ended"


@dataclass(frozen=True)
class Reachable:
    """The worker can be reached."""


@dataclass(frozen=True)
class Welcomed:
    """The coordinator admitted the worker, and hears it at `inbox` from now on; it is found again at `door`."""

    inbox: Peer
    door: Peer


@dataclass(frozen=True)
class Refused:
    """The coordinator did not admit the worker."""

    reason: str


@dataclass(frozen=True)
class BeatArrived:
    """The coordinator lives, in `epoch`, and names its members."""

    epoch: int
    members: tuple[str, ...]


@dataclass(frozen=True)
class Cut:
    """What was sent to the coordinator may be lost."""


@dataclass(frozen=True)
class Tick:
    """The time of `next_timer` has come."""


Event = Reachable | Welcomed | Refused | BeatArrived | Cut | Tick


@dataclass(frozen=True)
class SendJoin:
    """Ask to be admitted."""


@dataclass(frozen=True)
class DropLinks:
    """End what runs and the links to other workers; keep the weights."""


@dataclass(frozen=True)
class EndProcess:
    """End the process."""

    reason: str


Action = SendJoin | DropLinks | EndProcess


class Attachment:
    """See the module. orphan_s: how long to live without any Beat."""

    def __init__(self, name: str, *, orphan_s: float):
        self._name = name
        self._orphan_s = orphan_s
        self._beat_at = 0.0
        self._join_at = 0.0
        self._epoch = 0
        self.state = State.NEW
        self.num_losses = 0

    def __repr__(self) -> str:
        return f"Attachment({self._name}, {self.state.value})"

    def handle(self, event: Event, now: float) -> list[Action]:
        """What is to be done about an event. Raises IllegalEvent."""
        handler = self._table.get((self.state, type(event)))
        if handler is None:
            raise IllegalEvent(f"a worker that is {self.state.value} has no {type(event).__name__}")
        return handler(self, event, now)

    def next_timer(self) -> float | None:
        """When the next Tick is due; None for never."""
        if self.state in {State.NEW, State.ENDED}:
            return None
        due = self._beat_at + BEAT_LIMIT_S if self.state is State.ATTACHED else self._join_at
        return min(due, self._beat_at + self._orphan_s)

    # --- what the table's entries do

    def _start(self, _: Event, now: float) -> list[Action]:
        self.state = State.JOINING
        self._beat_at = now
        return self._join(now)

    def _join(self, now: float) -> list[Action]:
        self._join_at = now + JOIN_EVERY_S
        return [SendJoin()]

    def _await_beat(self, _: Event, now: float) -> list[Action]:
        """Admitted: the Beat that says so has the usual time to come before the worker asks again."""
        self._join_at = now + BEAT_LIMIT_S
        return []

    def _give_up(self, event: Event, _: float) -> list[Action]:
        assert isinstance(event, Refused)
        self.state = State.ENDED
        return [EndProcess(event.reason)]

    def _ignore(self, _: Event, __: float) -> list[Action]:
        return []

    def _beat(self, event: Event, now: float) -> list[Action]:
        """A Beat of an older epoch than one before it comes from a coordinator that another has replaced."""
        assert isinstance(event, BeatArrived)
        if event.epoch < self._epoch:
            return []
        self._epoch, self._beat_at = event.epoch, now
        if self._name in event.members:
            self.state = State.ATTACHED
            return []
        return self._drift(now) if self.state is State.ATTACHED else []

    def _drift(self, now: float) -> list[Action]:
        self.state = State.ADRIFT
        self.num_losses += 1
        return [DropLinks(), *self._join(now)]

    def _cut(self, _: Event, now: float) -> list[Action]:
        return self._drift(now)

    def _tick(self, _: Event, now: float) -> list[Action]:
        silence_s = now - self._beat_at
        if silence_s >= self._orphan_s:
            self.state = State.ENDED
            return [EndProcess(f"the coordinator was not heard of for {self._orphan_s:g} s")]
        if self.state is State.ATTACHED:
            return self._drift(now) if silence_s >= BEAT_LIMIT_S else []
        return self._join(now) if now >= self._join_at else []

    _table: ClassVar[dict[tuple[State, type[Event]], Callable[["Attachment", Event, float], list[Action]]]] = {
        (State.NEW, Reachable): _start,
        (State.JOINING, Welcomed): _await_beat,
        (State.JOINING, Refused): _give_up,
        (State.JOINING, BeatArrived): _beat,
        (State.JOINING, Cut): _ignore,
        (State.JOINING, Tick): _tick,
        (State.ATTACHED, Welcomed): _ignore,
        (State.ATTACHED, Refused): _ignore,
        (State.ATTACHED, BeatArrived): _beat,
        (State.ATTACHED, Cut): _cut,
        (State.ATTACHED, Tick): _tick,
        (State.ADRIFT, Welcomed): _await_beat,
        (State.ADRIFT, Refused): _ignore,
        (State.ADRIFT, BeatArrived): _beat,
        (State.ADRIFT, Cut): _ignore,
        (State.ADRIFT, Tick): _tick,
    }
