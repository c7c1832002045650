"""Which requests there are, and which ended last: what each asks for, how it runs and how far it is, for whoever shows them.

Knows no text, neither of prompts nor of answers. Nothing is written down for a token: what a request has so far is looked up when
somebody asks.
"""

import time
from collections import deque
from collections.abc import Callable
from itertools import islice

import msgspec

from cluster.serving.admission import Place
from cluster.serving.counts import Counts
from cluster.serving.lifecycle import RequestState
from cluster.serving.live_request import LiveRequest
from cluster.serving.requests import Predicted
from cluster.serving.runs import Run
from protocol.errors import ApiError, NotFound, RequestCancelled

# Of those that ended.
_KEPT = 256
# Of those that are there, how many are shown.
_MOST_SHOWN = 512
_CANCELLED = (
    "this request was cancelled by somebody who looks after the cluster; ask again if its answer is still wanted"
)
_WAITS = frozenset({RequestState.WAITING, RequestState.REASSIGNED, RequestState.PAUSED})


class RequestRow(msgspec.Struct, frozen=True, kw_only=True):
    """One request at one moment. id: as in its answer and in traces; state: waiting, running, reassigned, finished, failed or cancelled;
    strategy, reason, workers: how it runs, or what it asked for while it waits; key: the name of its client's key, where that has one;
    arrived_at: Unix seconds; ttft_s, total_s: from there to its first token and to its end; max_tokens: where it names a limit; resumed:
    how often it went on after a loss; finish_reason: of what failed the code of its error; waits_for: whom or what.
    """

    id: str
    state: str
    strategy: str | None
    reason: str | None
    workers: tuple[str, ...]
    key: str | None
    arrived_at: float
    prompt_tokens: int
    cached_tokens: int
    completion_tokens: int
    max_tokens: int | None
    ttft_s: float | None
    tokens_per_s: float | None
    predicted: Predicted | None
    total_s: float | None
    resumed: int
    finish_reason: str | None
    waits_for: str | None


class Entry:
    """One request that is there. place: where it stands now; run: on the workers, the last one where it waits again; error: what it
    ended with.
    """

    def __init__(self, live: LiveRequest, place: Place, arrived_at: float):
        self.live = live
        self.place = place
        self.arrived_at = arrived_at
        self.run: Run | None = None
        self.error: ApiError | None = None

    def __repr__(self) -> str:
        return f"Entry({self.live.number}, {self.live})"

    def cancel(self) -> RequestCancelled:
        """Nobody wants it any more: what it ends with."""
        self.error = error = RequestCancelled(_CANCELLED)
        return error

    def require_wanted(self) -> None:
        """Raises RequestCancelled once it was cancelled."""
        if isinstance(self.error, RequestCancelled):
            raise self.error

    def fail(self, error: ApiError) -> None:
        """It ends with an error."""
        self.error = error
        self.live.fail(error)


class Ledger:
    """counts: how many there are and were; missing: the workers that are not there now; now, clock: seconds of the clock of all
    times of requests, and Unix seconds.

    num_ended: since the beginning; read_tokens: of the prompts of all requests that have a token of their answer.
    """

    def __init__(
        self,
        counts: Counts,
        missing: Callable[[], tuple[str, ...]],
        now: Callable[[], float],
        clock: Callable[[], float] = time.time,
    ):
        self.counts = counts
        self.num_ended = 0
        self._missing = missing
        self._now = now
        self._clock = clock
        self._entries: dict[str, Entry] = {}
        self._ended: deque[RequestRow] = deque(maxlen=_KEPT)
        self._read_tokens = 0  # of those that ended

    def __repr__(self) -> str:
        return f"Ledger({len(self._entries)} requests, {self.num_ended} ended)"

    # --- what happens to requests

    def enter(self, live: LiveRequest, place: Place) -> Entry:
        """A request arrived, and has a number from now on."""
        live.number = self.counts.arrived()
        arrived_at = self._clock() - (self._now() - live.answer.arrival)
        entry = self._entries[f"{live.number}"] = Entry(live, place, arrived_at)
        return entry

    def leave(self, entry: Entry) -> None:
        """It ended, well or not."""
        live = entry.live
        del self._entries[f"{live.number}"]
        self.counts.measures.ended(live.strategy, live.outcome, len(live.tokens))
        self.counts.left(live.state)
        self.num_ended += 1
        self._read_tokens += _read_tokens(live)
        self._ended.append(self._row(entry, has_ended=True))

    def find(self, request_id: str) -> Entry:
        """A request that is there. Raises NotFound."""
        entry = self._entries.get(request_id)
        if entry is None:
            raise NotFound(f"there is no request {request_id[:100]} that runs or waits; it may have ended")
        return entry

    # --- what there is to see

    @property
    def read_tokens(self) -> int:
        return self._read_tokens + sum(_read_tokens(entry.live) for entry in self._entries.values())

    def rows(self) -> list[RequestRow]:
        """Of those that are there, in the order in which they came; of very many the first."""
        return [self._row(entry) for entry in islice(self._entries.values(), _MOST_SHOWN)]

    def ended_since(self, num_ended: int) -> tuple[RequestRow, ...]:
        """Those that ended after so many had, the oldest first; of very many the last."""
        num_new = min(self.num_ended - num_ended, len(self._ended))
        return tuple(islice(self._ended, len(self._ended) - num_new, None))

    def _row(self, entry: Entry, *, has_ended: bool = False) -> RequestRow:
        live, answer = entry.live, entry.live.answer
        request, decision = live.request, entry.place.decision or live.first
        return RequestRow(
            id=f"{live.number}",
            state=_ended_as(live) if has_ended else _shown(live.state),
            strategy=request.strategy if decision is None else decision.strategy,
            reason=None if decision is None else decision.reason,
            workers=() if decision is None else decision.workers,
            key=request.key or None,
            arrived_at=round(entry.arrived_at, 3),
            prompt_tokens=len(live.tokens),
            cached_tokens=answer.cached_tokens,
            completion_tokens=answer.num_generated,
            max_tokens=None if request.max_tokens is None else live.most_tokens,
            ttft_s=_rounded(answer.ttft_s),
            tokens_per_s=_rounded(answer.decode_tokens_per_s, 2),
            predicted=live.predicted,
            total_s=self._total_s(live) if has_ended else None,
            resumed=answer.resumed,
            finish_reason=_reason(entry) if has_ended else None,
            waits_for=None if has_ended else self._waits_for(entry),
        )

    def _total_s(self, live: LiveRequest) -> float:
        """To its last token, or to when it ended without one."""
        is_finished = live.state is RequestState.FINISHED and live.answer.ttft_s is not None
        return round((live.answer.last_at if is_finished else self._now()) - live.answer.arrival, 6)

    def _waits_for(self, entry: Entry) -> str | None:
        state, place = entry.live.state, entry.place
        if state not in _WAITS:
            return None
        if place.has_left:  # it asks for another one when somebody reads again what it has given
            return "its reader"
        if place.decision is not None:
            return None
        if place.lacks_plan_since is not None:
            return ", ".join(self._missing()) or "a plan"
        return "memory" if state is RequestState.PAUSED else "its turn"


def _read_tokens(live: LiveRequest) -> int:
    return 0 if live.answer.ttft_s is None else len(live.tokens)


def _shown(state: RequestState) -> str:
    return RequestState.WAITING if state is RequestState.PAUSED else state


def _ended_as(live: LiveRequest) -> str:
    return live.state if live.state in (RequestState.FINISHED, RequestState.FAILED) else "cancelled"


def _reason(entry: Entry) -> str | None:
    """A finish reason, the code of an error, or that nobody waited for more."""
    if entry.live.state is RequestState.FINISHED:
        return entry.live.outcome
    return "left" if entry.error is None else entry.error.code


def _rounded(value: float | None, digits: int = 6) -> float | None:
    return None if value is None else round(value, digits)
