"""What a cluster did when, as events of the Chrome trace format, which Perfetto opens.

A process for the coordinator, in which each request is a slice, and one for each worker, whose slices are steps; all on the
coordinator's clock. What belongs together is joined: a request's slice and its steps by a flow through all stages, and a step on
one worker with the same on the next by the transfer between them. Pure: what happened is told, events come back.
"""

import itertools
from collections import OrderedDict
from collections.abc import Iterator
from typing import Any

from cluster.planning.events import ClusterEvent
from cluster.serving.ledger import RequestRow
from protocol.step_reports import StepRecord, StepReport

TraceEvent = dict[str, Any]

_COORDINATOR = 0
_STEPS = 0
# Of a transfer one end may be told long before the other; with more than so many open ones the oldest miss their ends.
_MOST_OPEN = 1 << 14
_FLOW = {"name": "request", "cat": "request"}

# A step on its way to a worker: epoch, route, number, and that worker.
_Way = tuple[int, str, int, str]


class TraceEvents:
    """See the module. since: Unix seconds when the trace begins; what began before begins then."""

    def __init__(self, since: float):
        self._since = since
        self._processes: dict[str, int] = {}
        self._transfers = _Transfers()
        self._requests = _Requests(since)
        self._happened_at, self._told = since, frozenset[ClusterEvent]()

    def __repr__(self) -> str:
        return f"TraceEvents({len(self._processes)} workers, {self._requests})"

    def begin(self) -> Iterator[TraceEvent]:
        """What stands in front of all others."""
        yield from _process(_COORDINATOR, "coordinator")

    def steps(self, report: StepReport, clock_ahead_s: float) -> Iterator[TraceEvent]:
        """A worker said what it did. clock_ahead_s: how far its clock is ahead."""
        process = self._processes.get(report.worker)
        if process is None:
            process = self._processes[report.worker] = len(self._processes) + 1
            yield from _process(process, report.worker)
            yield _named("thread_name", process, _STEPS, "steps")
        for step in report.steps:
            began_at, ended_at = step.at - clock_ahead_s, step.at - clock_ahead_s + step.s
            yield from self._transfers.step(report.worker, process, step, began_at, ended_at)
            yield _slice(process, step, began_at)
            for request_id in filter(str.isdecimal, step.requests):
                yield _flow("t", request_id, process, _STEPS, began_at)

    def requests(self, rows: list[RequestRow]) -> Iterator[TraceEvent]:
        """How far requests are, those that are there and those that ended since the last time."""
        yield from self._requests.rows(rows)

    def happened(self, events: tuple[ClusterEvent, ...]) -> Iterator[TraceEvent]:
        """What happened to the cluster; what was told before is passed over."""
        for event in events:
            if event.at >= self._happened_at and event not in self._told:
                yield _instant(event.what, _COORDINATOR, _STEPS, event.at, scope="g")
        if events and events[-1].at >= self._happened_at:
            self._happened_at = events[-1].at
            self._told = frozenset(event for event in events if event.at == self._happened_at)

    def missed(self, what: str, at: float) -> Iterator[TraceEvent]:
        """Something is not in the trace. what: a clause."""
        yield _instant(what, _COORDINATOR, _STEPS, at, scope="g")

    def end(self, at: float) -> Iterator[TraceEvent]:
        """The trace ends: so do, in it, the requests that still run."""
        yield from self._requests.end(at)


class _Transfers:
    """The ends of transfers between workers that were told, until both are."""

    def __init__(self) -> None:
        self._numbers = itertools.count(1)
        self._sent: OrderedDict[_Way, tuple[int, float, int]] = OrderedDict()  # process, when, bytes
        self._taken: OrderedDict[_Way, float] = OrderedDict()

    def __repr__(self) -> str:
        return f"_Transfers({len(self._sent)} sent, {len(self._taken)} taken)"

    def step(
        self, worker: str, process: int, step: StepRecord, began_at: float, ended_at: float
    ) -> Iterator[TraceEvent]:
        """A step of a worker: it took what the one before had sent, and sent something itself."""
        workers = step.route.split(">")
        place = workers.index(worker) if worker in workers else 0
        if place > 0:
            yield from self._took((step.epoch, step.route, step.n, worker), began_at)
        if step.bytes is not None and place + 1 < len(workers):
            sent = (process, ended_at, step.bytes)
            yield from self._send((step.epoch, step.route, step.n, workers[place + 1]), sent)

    def _took(self, way: _Way, at: float) -> Iterator[TraceEvent]:
        sent = self._sent.pop(way, None)
        if sent is not None:
            yield from self._both(way, sent, at)
            return
        self._taken[way] = at
        _forget_oldest(self._taken)

    def _send(self, way: _Way, sent: tuple[int, float, int]) -> Iterator[TraceEvent]:
        taken_at = self._taken.pop(way, None)
        if taken_at is not None:
            yield from self._both(way, sent, taken_at)
            return
        self._sent[way] = sent
        _forget_oldest(self._sent)

    def _both(self, way: _Way, sent: tuple[int, float, int], taken_at: float) -> Iterator[TraceEvent]:
        """Where clocks of two hosts disagree by more than it took, it took no time."""
        (process, sent_at, num_bytes), (_, route, number, to) = sent, way
        both = {"name": f"to {to}", "cat": "link", "id": next(self._numbers), "pid": process, "tid": _STEPS}
        arguments = {"bytes": num_bytes, "route": route, "step": number}
        yield both | {"ph": "b", "ts": _us(sent_at), "args": arguments}
        yield both | {"ph": "e", "ts": _us(max(sent_at, taken_at))}


def _forget_oldest(ends: OrderedDict[_Way, Any]) -> None:
    if len(ends) > _MOST_OPEN:
        ends.popitem(last=False)


class _Requests:
    """Requests as slices of the coordinator's process, in as many lanes as run at once."""

    def __init__(self, since: float):
        self._since = since
        self._lanes: list[float] = []  # when each is free
        self._open: dict[str, tuple[int, float]] = {}  # lane, and when it began here
        self._answered: set[str] = set()  # those open whose first token was told

    def __repr__(self) -> str:
        return f"_Requests({len(self._open)} open)"

    def rows(self, rows: list[RequestRow]) -> Iterator[TraceEvent]:
        for row in sorted(rows, key=lambda row: row.arrived_at):
            ended_at = None if row.total_s is None else row.arrived_at + row.total_s
            if ended_at is not None and ended_at < self._since:
                continue
            if row.id not in self._open:
                yield from self._begin(row)
            if row.ttft_s is not None and row.id not in self._answered:
                yield from self._first_token(row, row.arrived_at + row.ttft_s)
            if ended_at is not None:
                self._answered.discard(row.id)
                about = {"state": row.state, "finish_reason": row.finish_reason, "resumed": row.resumed}
                yield from self._end(row.id, ended_at, about | {"completion_tokens": row.completion_tokens})

    def _begin(self, row: RequestRow) -> Iterator[TraceEvent]:
        at = max(row.arrived_at, self._since)
        lane = next((number for number, free_at in enumerate(self._lanes) if free_at <= at), len(self._lanes))
        if lane == len(self._lanes):
            self._lanes.append(0.0)
            yield _named("thread_name", _COORDINATOR, lane + 1, "requests")
        self._lanes[lane] = float("inf")
        self._open[row.id] = (lane, at)
        about = {"strategy": row.strategy, "workers": list(row.workers), "reason": row.reason}
        yield {
            "name": f"request {row.id}",
            "cat": "request",
            "ph": "B",
            "pid": _COORDINATOR,
            "tid": lane + 1,
            "ts": _us(at),
            "args": about | {"prompt_tokens": row.prompt_tokens, "cached_tokens": row.cached_tokens},
        }
        yield _flow("s", row.id, _COORDINATOR, lane + 1, at)

    def _first_token(self, row: RequestRow, at: float) -> Iterator[TraceEvent]:
        self._answered.add(row.id)
        lane, _ = self._open[row.id]
        if at >= self._since:
            yield _instant("first token", _COORDINATOR, lane + 1, at, scope="t")

    def _end(self, request_id: str, at: float, about: dict[str, Any]) -> Iterator[TraceEvent]:
        lane, began_at = self._open.pop(request_id)
        self._lanes[lane] = at = max(at, began_at)
        # A flow ends in the slice around it, and behind its last moment there is none.
        flow = _flow("f", request_id, _COORDINATOR, lane + 1, at)
        yield flow | {"bp": "e", "ts": max(_us(began_at), flow["ts"] - 1)}
        yield {"ph": "E", "pid": _COORDINATOR, "tid": lane + 1, "ts": _us(at), "args": about}

    def end(self, at: float) -> Iterator[TraceEvent]:
        for request_id in list(self._open):
            yield from self._end(request_id, at, {"state": "running"})


def _us(seconds: float) -> int:
    return round(seconds * 1e6)


def _process(process: int, name: str) -> Iterator[TraceEvent]:
    yield _named("process_name", process, 0, name)
    yield {"name": "process_sort_index", "ph": "M", "pid": process, "tid": 0, "args": {"sort_index": process}}


def _named(what: str, process: int, thread: int, name: str) -> TraceEvent:
    return {"name": what, "ph": "M", "pid": process, "tid": thread, "args": {"name": name}}


def _instant(name: str, process: int, thread: int, at: float, *, scope: str) -> TraceEvent:
    return {"name": name, "ph": "i", "s": scope, "pid": process, "tid": thread, "ts": _us(at)}


def _slice(process: int, step: StepRecord, began_at: float) -> TraceEvent:
    about = {"step": step.n, "route": step.route, "tokens": step.tokens, "requests": list(step.requests)}
    if step.bytes is not None:
        about["bytes"] = step.bytes
    ts = _us(began_at)
    return {
        "name": step.kind,
        "cat": "step",
        "ph": "X",
        "pid": process,
        "tid": _STEPS,
        "ts": ts,
        "dur": _us(began_at + step.s) - ts,
        "args": about,
    }


def _flow(phase: str, request_id: str, process: int, thread: int, at: float) -> TraceEvent:
    return {**_FLOW, "ph": phase, "id": int(request_id), "pid": process, "tid": thread, "ts": _us(at)}
