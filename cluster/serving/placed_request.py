"""A request that runs and the place that it holds: how its room grows with its answer, and how it is taken from it.

Knows the request, its run and its place; which of those that run give way is `admission`'s to say.
"""

import math
from collections.abc import Callable

from cluster.serving.admission import Admission, Place
from cluster.serving.lifecycle import RequestEvent
from cluster.serving.live_request import LiveRequest
from cluster.serving.runs import Run, Runs
from strategy.decision import Decision
from strategy.memory import AHEAD_TOKENS


class PlacedRequest:
    """Implements `runs.RunOwner`. now: seconds of one clock."""

    def __init__(
        self, live: LiveRequest, place: Place, decision: Decision, admission: Admission, now: Callable[[], float]
    ) -> None:
        self._live = live
        self._place = place
        self._decision = decision
        self._admission = admission
        self._now = now

    def __repr__(self) -> str:
        return f"PlacedRequest({self._live}, {self._place})"

    def begun(self, run: Run, runs: Runs) -> None:
        """The run has begun, in the room that its place has; with more tokens than were known when that was given it needs more."""
        self._place.give_way = lambda: self._give_way(run, runs)
        run.foreseen = self.grown(run) if run.num_prompt > self._decision.num_tokens else self._foreseen(run)

    def paused(self, run: Run) -> None:
        """Its reader is too far behind: others take its place until that has caught up."""
        if not run.is_done:
            self._live.apply(RequestEvent.PAUSE)
        self._admission.leave(self._place, self._now())

    def grown(self, run: Run) -> float:
        """See `RunOwner`."""
        room = self._decision.room_for(run.num_prompt + run.num_given)
        self._admission.grow(self._place, self._decision.bytes_of(room), self._now())
        return self._foreseen(run)

    def _foreseen(self, run: Run) -> float:
        room = self._decision.room_for(run.num_prompt + run.num_given)
        return math.inf if room == self._decision.most_tokens else room - AHEAD_TOKENS - run.num_prompt

    def _give_way(self, run: Run, runs: Runs) -> None:
        if run.is_done:
            self._admission.leave(self._place, self._now())
            return
        runs.pause(run)
        self._live.num_given = run.num_prompt + run.num_given - len(self._live.tokens)
        self._live.apply(RequestEvent.PAUSE)
