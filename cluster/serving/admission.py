"""Which requests run and which wait: fairly, within counts, memory and what the plan in force can serve.

Owns the queue, the places and each worker's room for caches, which belong to an epoch: with a plan all its places end, and
whoever held one stands in the queue again where it stood, so in front of everybody who came later. A request that finds the
waiting places taken is refused at once, with a time to come back, never queued silently. A later, smaller request does not
overtake one that waits for memory, so nobody starves; it does overtake one that this plan cannot serve at all.

Who runs has room for what it has and a step ahead, not for the longest answer. Where the next step does not fit, those that came
last give way and wait where they stood; the first of all never does, so somebody always comes to an end.

Clients take turns (see `turns`), and no client holds all places.
"""

import asyncio
import bisect
from collections import Counter
from collections.abc import Callable, Mapping
from operator import attrgetter

from cluster.serving.drain import Drain
from cluster.serving.turns import Turn, Turns
from protocol.errors import ApiError, QueueFull, Unavailable
from strategy.decision import Decision

# Of the places, how many one client leaves to others.
_FOR_OTHERS = 8


class NotNow(Exception):
    """The plan in force cannot serve a request, but another may."""


class Place:
    """Where one request stands. decision: how it runs, None while it waits; error: why it never will.

    reserved: bytes by worker that are its own while it runs; give_way: ends what runs there, None before anything does. turn: where
    it stands in the queue; client: whose request it is. decide: how the request would run on the plan in force; asked when its turn
    comes. has_run: it held a place before; has_left: it is of no use any more.
    entered_at: since when it waits; lacks_plan_since: since when there has been no plan that can serve it. `changed` is set whenever any of these changes.
    """

    def __init__(self, turn: Turn, client: str, decide: Callable[[], Decision], now: float, *, has_run: bool):
        self.turn = turn
        self.entered_at = now
        self.client = client
        self.decide = decide
        self.decision: Decision | None = None
        self.reserved: Mapping[str, int] = {}
        self.give_way: Callable[[], None] | None = None
        self.error: ApiError | None = None
        self.has_run = has_run
        self.has_left = False
        self.lacks_plan_since: float | None = None
        self.changed = asyncio.Event()

    def __repr__(self) -> str:
        return f"Place({self.turn}, {self.decision.strategy if self.decision else 'waiting'})"


class Admission:
    """At most `max_running` requests hold a place; at most `max_waiting` that never held one wait."""

    def __init__(self, *, max_running: int, max_waiting: int):
        self._max_running = max_running
        self._max_waiting = max_waiting
        self._turns = Turns()
        self._drain = Drain()
        self._room: dict[str, int] | None = None  # None while no plan is in force
        self._queue: list[Place] = []  # by turn
        self._holding: set[Place] = set()
        self._idle = asyncio.Event()
        self._idle.set()
        self.load: Counter[str] = Counter()  # requests by the head that they run on
        self._held: Counter[str] = Counter()  # places by client
        self.closed = False
        self._is_growing = False

    def __repr__(self) -> str:
        return f"Admission({len(self._holding)} running, {len(self._queue)} waiting)"

    @property
    def coming(self) -> list[Decision]:
        """Of those that have a place, and nothing runs of them yet."""
        return [place.decision for place in self._holding if place.decision is not None and place.give_way is None]

    # --- requests

    def enter(
        self, decide: Callable[[], Decision], now: float, client: str = "", content: int = 0, *, has_run: bool = False
    ) -> Place:
        """A request arrived; its place has a decision at once where there is room. content: a number that differs where
        what is asked does; has_run: it comes back, and is let in.

        Raises:
            QueueFull: as many wait as may.
            Unavailable: the cluster is stopping.
            ApiError: what `decide` refuses.
        """
        if self.closed:
            raise _stopping()
        place = Place(self._turns.next(client, num_waiting=len(self._queue)), client, decide, now, has_run=has_run)
        self._stand(place)
        self._admit(now, newcomer=place)
        if place.decision is None and place.error is None:
            self._look(place, now)  # what can never run is refused now rather than when its turn comes
        if place.error is not None:
            raise place.error
        asked = f"{client} {content}"
        if place.decision is None and not has_run and self._is_full() and not self._drain.redeem(asked, now):
            self._queue.remove(place)
            retry_after_s = self._drain.promise(asked, now)
            raise QueueFull(
                f"{len(self._holding)} requests run and {self._max_waiting} wait, as many as may; "
                f"try again in {retry_after_s} s",
                retry_after_s=retry_after_s,
            )
        return place

    def _is_full(self) -> bool:
        return sum(not place.has_run for place in self._queue) > self._max_waiting

    def _stand(self, place: Place) -> None:
        bisect.insort(self._queue, place, key=attrgetter("turn"))

    def leave(self, place: Place, now: float) -> None:
        """A request ended, or its client went away, or it will come back to another place."""
        place.has_left = True
        if place in self._holding:
            self._holding.remove(place)
            self._give_back(place)
        elif place in self._queue:
            self._queue.remove(place)
        self._admit(now)  # also one that waited may have held up others
        self._note_idle()

    def grow(self, place: Place, needed: Mapping[str, int], now: float) -> None:
        """A request that runs needs so many bytes by now; where there are not as many, those that came last give way, it too."""
        self._is_growing = True  # what is given back is not for who waits
        while place in self._holding and not self._reserve(place, needed):
            short = {worker for worker, wanted in needed.items() if self._lacks(place, worker, wanted)}
            holders = [held for held in self._holding if short & held.reserved.keys()]
            self._give_way(max(holders, key=attrgetter("turn.number")))
        self._is_growing = False
        self._admit(now)

    def _give_way(self, place: Place) -> None:
        """It stands in the queue again, where it stood, unless it had nothing more to compute and leaves."""
        if place.give_way is not None:
            place.give_way()
        if place in self._holding:
            self._holding.remove(place)
            self._give_back(place)
            place.decision = place.give_way = None
            self._stand(place)

    def refuse(self, place: Place, error: ApiError) -> None:
        """A request that waits does so in vain; nothing happens to one that runs or has left."""
        if place in self._queue:
            self._refuse(place, error)

    # --- plans

    def begin(self, room: Mapping[str, int], now: float) -> int:
        """A plan is in force, with `room` bytes for caches by worker. Returns how many go on that ran before."""
        self._room = dict(room)
        ran_before = [place for place in self._queue if place.has_run]
        for place in self._queue:
            self._lacks_plan(place, None)
        self._admit(now)
        return sum(place.decision is not None for place in ran_before)

    def suspend(self, now: float) -> None:
        """The plan ended, and with it every place; room that was taken of it is nobody's."""
        self._room = None
        self.load.clear()
        self._held.clear()
        for place in self._holding:
            place.decision, place.reserved, place.give_way = None, {}, None
            self._stand(place)
        self._holding.clear()
        for place in self._queue:
            self._lacks_plan(place, now)

    # --- the end

    def close(self) -> None:
        """Refuse newcomers and everybody who waits for a first place; those who run go on, also over a new plan."""
        self.closed = True
        for place in [place for place in self._queue if not place.has_run]:
            self._refuse(place, _stopping())

    def fail(self, message: str) -> None:
        """Refuse everybody who waits."""
        for place in tuple(self._queue):
            self._refuse(place, Unavailable(message))

    async def drained(self) -> None:
        """Returns when nothing runs, and nothing waits to go on."""
        await self._idle.wait()

    @property
    def is_idle(self) -> bool:
        """Whether nobody holds a place; who waits for another plan does not count."""
        return not self._holding

    @property
    def num_waiting(self) -> int:
        """How many have no place."""
        return len(self._queue)

    @property
    def lacking_since(self) -> float | None:
        """Since when somebody has waited for a plan; None when nobody does."""
        return min(
            (place.lacks_plan_since for place in self._queue if place.lacks_plan_since is not None), default=None
        )

    # --- giving places

    def _admit(self, now: float, newcomer: Place | None = None) -> None:
        """Give places in order, as far as there is room. newcomer: who has not waited."""
        for place in tuple(self._queue):
            if self._is_growing or self._room is None or len(self._holding) >= self._max_running:
                return
            if self._held[place.client] >= self._max_running - self._max_running // _FOR_OTHERS:
                continue
            decision = self._look(place, now)
            if decision is None:
                continue
            if not self._take(place, decision):
                return
            self._turns.served(place.turn)
            if place is not newcomer:
                self._drain.gave(now)

    def _look(self, place: Place, now: float) -> Decision | None:
        """How the request would run now; None when it cannot on this plan, or never."""
        if self._room is None or place.lacks_plan_since is not None:
            self._lacks_plan(place, now)
            return None
        try:
            return place.decide()
        except NotNow:
            self._lacks_plan(place, now)
        except ApiError as error:
            self._refuse(place, error)
        return None

    def _take(self, place: Place, decision: Decision) -> bool:
        """Whether there was room."""
        if not self._reserve(place, decision.bytes_of(decision.room_for(decision.num_tokens))):
            return False
        self.load[decision.route.head] += 1
        self._held[place.client] += 1
        self._queue.remove(place)
        self._holding.add(place)
        self._idle.clear()
        place.decision, place.has_run = decision, True
        place.changed.set()
        return True

    def _reserve(self, place: Place, needed: Mapping[str, int]) -> bool:
        """Whether there was room for that in place of what it has."""
        assert self._room is not None
        if any(self._lacks(place, worker, wanted) for worker, wanted in needed.items()):
            return False
        for worker, wanted in needed.items():
            self._room[worker] -= wanted - place.reserved.get(worker, 0)
        place.reserved = needed
        return True

    def _lacks(self, place: Place, worker: str, wanted: int) -> bool:
        assert self._room is not None
        return self._room[worker] < wanted - place.reserved.get(worker, 0)

    def _give_back(self, place: Place) -> None:
        assert self._room is not None
        assert place.decision is not None
        for worker, held in place.reserved.items():
            self._room[worker] += held
        place.reserved = {}
        self.load[place.decision.route.head] -= 1
        self._held[place.client] -= 1
        if not self._held[place.client]:
            del self._held[place.client]

    def _lacks_plan(self, place: Place, now: float | None) -> None:
        """From `now` on, unless it did before; None: no longer."""
        if now is None or place.lacks_plan_since is None:
            place.lacks_plan_since = now
            place.changed.set()

    def _refuse(self, place: Place, error: ApiError) -> None:
        self._queue.remove(place)
        place.error = error
        place.changed.set()
        self._note_idle()

    def _note_idle(self) -> None:
        if not self._holding and not any(place.has_run for place in self._queue):
            self._idle.set()


def _stopping() -> Unavailable:
    return Unavailable("the cluster is stopping; start it again with ./launch.sh start")
