"""Which requests run and which wait: in order of arrival, within counts, memory and what the plan in force can serve.

Owns the queue, the places and each worker's room for caches, which belong to an epoch: with a plan all its places end, and
whoever held one stands in the queue again where it stood, so in front of everybody who came later. A request that finds the
waiting places taken is refused at once, never queued silently. A later, smaller request does not overtake one that waits
for memory, so nobody starves; it does overtake one that this plan cannot serve at all.
"""

import asyncio
import bisect
import itertools
from collections import Counter
from collections.abc import Callable, Mapping
from operator import attrgetter

from protocol.errors import ApiError, QueueFull, Unavailable
from strategy.decision import Decision

RETRY_AFTER_S = 2


class NotNow(Exception):
    """The plan in force cannot serve a request, but another may."""


class Place:
    """Where one request stands. decision: how it runs, None while it waits; error: why it never will.

    decide: how the request would run on the plan in force; asked when its turn comes. has_run: it held a place before.
    lacks_plan_since: since when there has been no plan that can serve it. `changed` is set whenever any of these changes.
    """

    def __init__(self, number: int, decide: Callable[[], Decision]):
        self.number = number
        self.decide = decide
        self.decision: Decision | None = None
        self.error: ApiError | None = None
        self.has_run = False
        self.lacks_plan_since: float | None = None
        self.changed = asyncio.Event()

    def __repr__(self) -> str:
        return f"Place({self.number}, {self.decision.strategy if self.decision else 'waiting'})"


class Admission:
    """At most `max_running` requests hold a place; at most `max_waiting` that never held one wait."""

    def __init__(self, *, max_running: int, max_waiting: int):
        self._max_running = max_running
        self._max_waiting = max_waiting
        self._numbers = itertools.count(1)
        self._room: dict[str, int] | None = None  # None while no plan is in force
        self._queue: list[Place] = []  # by number
        self._holding: set[Place] = set()
        self._idle = asyncio.Event()
        self._idle.set()
        self.load: Counter[str] = Counter()  # requests by the head that they run on
        self.closed = False

    def __repr__(self) -> str:
        return f"Admission({len(self._holding)} running, {len(self._queue)} waiting)"

    # --- requests

    def enter(self, decide: Callable[[], Decision], now: float) -> Place:
        """A request arrived; its place has a decision at once where there is room.

        Raises:
            QueueFull: as many wait as may.
            Unavailable: the cluster is stopping.
            ApiError: what `decide` refuses.
        """
        if self.closed:
            raise _stopping()
        place = Place(next(self._numbers), decide)
        self._queue.append(place)
        self._admit(now)
        if place.decision is None and place.error is None:
            self._look(place, now)  # what can never run is refused now rather than when its turn comes
        if place.error is not None:
            raise place.error
        if place.decision is None and sum(not other.has_run for other in self._queue) > self._max_waiting:
            self._queue.remove(place)
            raise QueueFull(
                f"{len(self._holding)} requests run and {self._max_waiting} wait, as many as may; try again soon",
                retry_after_s=RETRY_AFTER_S,
            )
        return place

    def leave(self, place: Place, now: float) -> None:
        """A request ended, or its client went away."""
        if place in self._holding:
            self._holding.remove(place)
            self._give_back(place)
        elif place in self._queue:
            self._queue.remove(place)
        self._admit(now)  # also one that waited may have held up others
        self._note_idle()

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
        for place in self._holding:
            place.decision = None
            bisect.insort(self._queue, place, key=attrgetter("number"))
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
    def lacking_since(self) -> float | None:
        """Since when somebody has waited for a plan; None when nobody does."""
        return min(
            (place.lacks_plan_since for place in self._queue if place.lacks_plan_since is not None), default=None
        )

    # --- giving places

    def _admit(self, now: float) -> None:
        """Give places in order, as far as there is room."""
        for place in tuple(self._queue):
            if self._room is None or len(self._holding) >= self._max_running:
                return
            decision = self._look(place, now)
            if decision is not None and not self._take(place, decision):
                return

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
        assert self._room is not None
        if any(self._room[worker] < needed for worker, needed in decision.bytes_by_worker.items()):
            return False
        for worker, needed in decision.bytes_by_worker.items():
            self._room[worker] -= needed
        self.load[decision.route.head] += 1
        self._queue.remove(place)
        self._holding.add(place)
        self._idle.clear()
        place.decision, place.has_run = decision, True
        place.changed.set()
        return True

    def _give_back(self, place: Place) -> None:
        assert self._room is not None
        assert place.decision is not None
        for worker, needed in place.decision.bytes_by_worker.items():
            self._room[worker] += needed
        self.load[place.decision.route.head] -= 1

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
