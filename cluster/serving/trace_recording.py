"""A running cluster's trace as it comes: lines of a JSON array of events, each of which makes an array when a bracket closes it.

For so many seconds, or until nobody wants more of it. What is not read is not kept without end: too much of it is left out, and said to
be.
"""

import asyncio
import logging
import os
import time
from collections import deque
from collections.abc import AsyncGenerator, Callable, Iterable
from contextlib import suppress
from pathlib import Path
from typing import BinaryIO

import msgspec

from cluster.planning.watched_steps import SaidSteps
from cluster.serving.requests import Service
from cluster.serving.trace_events import TraceEvent, TraceEvents
from protocol.errors import UsageError
from protocol.step_reports import decode_report

log = logging.getLogger(__name__)

EVERY_S = 0.5
# Workers begin with the next Beat that they hear, and what they did last is said a moment later.
LEAD_S, TAIL_S = 0.6, 0.6
MOST_SECONDS = 600
MOST_UNREAD_BYTES = 16 << 20
_encoder = msgspec.json.Encoder()


class _Unread:
    """Reports that nobody took yet."""

    def __init__(self) -> None:
        self._reports: deque[SaidSteps] = deque()
        self._num_bytes = 0
        self._num_missed = 0

    def __repr__(self) -> str:
        return f"_Unread({len(self._reports)} reports, {self._num_missed} missed)"

    def hear(self, said: SaidSteps) -> None:
        if self._num_bytes + len(said.report) > MOST_UNREAD_BYTES:
            self._num_missed += 1
            return
        self._reports.append(said)
        self._num_bytes += len(said.report)

    def take(self) -> tuple[list[SaidSteps], int]:
        """The reports, and how many are missing behind them."""
        reports, num_missed = list(self._reports), self._num_missed
        self._reports.clear()
        self._num_bytes = self._num_missed = 0
        return reports, num_missed


class _Recording:
    """What a service does, as events since the last look at it. is_over: the cluster is being stopped."""

    def __init__(self, service: Service, clock: Callable[[], float], since: float):
        self._service = service
        self._clock = clock
        self._events = TraceEvents(since)
        self._num_ended = service.ledger().num_ended
        self.unread = _Unread()
        self.is_over = False

    def __repr__(self) -> str:
        return f"_Recording({self._events})"

    def begin(self) -> list[TraceEvent]:
        return list(self._events.begin())

    def more(self) -> list[TraceEvent]:
        ledger = self._service.ledger()
        rows = [*ledger.ended_since(self._num_ended), *ledger.rows()]
        self._num_ended = ledger.num_ended
        status = self._service.status()
        self.is_over = status.state == "stopped"
        found = [*self._events.requests(rows), *self._events.happened(status.events)]
        reports, num_missed = self.unread.take()
        for said in reports:
            found += self._events.steps(decode_report(said.report), said.clock_ahead_s)
        if num_missed:
            found += self._events.missed(f"{num_missed} reports are missing: the trace was not read", self._clock())
        return found

    def end(self) -> list[TraceEvent]:
        return [*self.more(), *self._events.end(self._clock())]


async def record(
    service: Service, seconds: float, clock: Callable[[], float] = time.time
) -> AsyncGenerator[bytes, None]:
    """Lines of the trace, at least an empty one every EVERY_S; the last one closes it. It ends with the cluster. clock: Unix seconds."""
    recording = _Recording(service, clock, clock())
    loop = asyncio.get_running_loop()
    with service.watch_steps(recording.unread.hear):
        yield _first_lines(recording.begin())
        until = loop.time() + LEAD_S + seconds + TAIL_S
        while (left_s := until - loop.time()) > 0 and not recording.is_over:
            await asyncio.sleep(min(left_s, EVERY_S))
            yield _lines(recording.more()) or b"\n"
    yield _lines(recording.end()) + b"]\n"


def _first_lines(events: list[TraceEvent]) -> bytes:
    return b"[\n" + _lines(events).removeprefix(b",")


def _lines(events: Iterable[TraceEvent]) -> bytes:
    """With their commas in front, so that whatever was written is whole with a bracket behind it."""
    return b"".join(b"," + _encoder.encode(event) + b"\n" for event in events)


class TraceFile:
    """A trace of everything from now on, in a file. is_again: goes on behind what a coordinator that died has left there; clock: Unix
    seconds.
    """

    def __init__(self, path: Path, *, is_again: bool, clock: Callable[[], float] = time.time):
        """Raises UsageError where it cannot be written."""
        self._clock, self._since = clock, clock()
        try:
            self._file = os.fdopen(os.open(path, os.O_RDWR | os.O_CREAT, 0o600), "r+b", buffering=0)
            self._goes_on = is_again and _open_end(self._file)
            self._file.truncate()
        except OSError as error:
            raise UsageError(
                f"the trace {path} cannot be written ({error.strerror}); choose another file with TANDEM_TRACE"
            ) from None

    def __repr__(self) -> str:
        return f"TraceFile({self._file.name})"

    async def keep(self, service: Service) -> None:
        """Write until cancelled, which ends the file."""
        recording = _Recording(service, self._clock, self._since)
        first = recording.begin()
        try:
            self._file.write(_lines(first) if self._goes_on else _first_lines(first))
            with service.watch_steps(recording.unread.hear):
                while True:
                    await asyncio.sleep(EVERY_S)
                    self._file.write(_lines(recording.more()))
        except OSError as error:
            log.warning("the trace goes no further: %s", error)
            await asyncio.get_running_loop().create_future()  # its end would be taken for the coordinator's
        finally:
            with suppress(OSError):
                self._file.write(_lines(recording.end()) + b"]\n")
            self._file.close()


def _open_end(file: BinaryIO) -> bool:
    """Go to the end of a trace, in front of the bracket that closes it; whether there is one to go on with."""
    size = file.seek(0, os.SEEK_END)
    file.seek(max(size - 2, 0))
    file.seek(-2 if file.read() == b"]\n" else 0, os.SEEK_END)
    return size > 2
