"""What all open pages are sent, each event encoded once for all of them; while none is open nothing is looked at.

A page that opens is told what there is; from then on all are told the same.
"""

import asyncio
import itertools
import logging
from collections.abc import Callable
from contextlib import ExitStack
from typing import Any, Protocol

from cluster.api.dashboard.aside import Aside
from cluster.api.dashboard.news import ClusterNews, RequestNews, requests_without_key, status_without_key
from cluster.api.dashboard.outbox import Outbox
from cluster.api.events import event
from cluster.serving.history import STEP_S, History
from cluster.serving.requests import Service
from protocol.errors import Unavailable
from protocol.version import tandem_version

log = logging.getLogger(__name__)

LOOK_S = 0.25
# In looks: how often requests are told at most, and the status at least.
_REQUESTS_EACH, _STATUS_EACH = 2, 4
# How often logs are looked at, and in such looks how often what doctor finds.
ASIDE_S = 1.0
_FINDINGS_EACH = 5
MOST_FEEDS = 32
# Of these, how many are left to those with a key.
_FOR_KEYS = 8


class _StepsSaid(Protocol):
    """What a worker did. report: one line of JSON."""

    @property
    def report(self) -> bytes: ...


class Broadcast:
    """See the module. aside: what is looked at in a thread; clock: Unix seconds."""

    def __init__(self, service: Service, history: History, aside: Aside, clock: Callable[[], float]) -> None:
        self._history = history
        self._aside = aside
        self._clock = clock
        self._service = service
        self._cluster = ClusterNews(service)
        self._requests = RequestNews(service.ledger())
        self._outboxes: set[Outbox] = set()
        self._num_looks = 0
        self._looking: ExitStack | None = None
        self._has_ended = False

    def __repr__(self) -> str:
        return f"Broadcast({len(self._outboxes)} open)"

    # --- pages

    def open(self, *, sees_all: bool, asks_for_key: bool) -> Outbox:
        """Of a page, with what there is now. Raises Unavailable where too many are open, or the server stops."""
        most = MOST_FEEDS if sees_all else MOST_FEEDS - _FOR_KEYS
        if len(self._outboxes) >= most:
            raise Unavailable(f"{len(self._outboxes)} dashboards are open, as many as may be; close one")
        if self._has_ended:
            raise Unavailable("the cluster is stopping; start it again with ./launch.sh start")
        self._tell_news()  # so that this one is told nothing twice, and the others nothing late
        outbox = Outbox(sees_all=sees_all)
        outbox.put(event(self._hello(outbox, asks_for_key=asks_for_key), "hello"))
        status, requests = self._cluster.latest, self._requests.latest
        outbox.put(event(status if sees_all else status_without_key(status), "status"))
        outbox.put(event(requests if sees_all else requests_without_key(requests), "requests"))
        if findings := self._aside.findings[sees_all]:
            outbox.put(event({"findings": findings}, "findings"))
        if sees_all and (lines := self._aside.lines):
            outbox.put(event({"lines": lines}, "logs"))
        self._outboxes.add(outbox)
        if self._looking is None:
            self._looking = self._begin_to_look()
        return outbox

    def close(self, outbox: Outbox) -> None:
        """A page is gone; with the last one all looking ends."""
        self._outboxes.discard(outbox)
        if not self._outboxes and self._looking is not None:
            self._looking.close()
            self._looking = None

    def end(self) -> None:
        """The server stops: nothing more will be told."""
        self._has_ended = True
        for outbox in self._outboxes:
            outbox.end()

    def _begin_to_look(self) -> ExitStack:
        """Ends with what it gives."""
        looking = ExitStack()
        looking.enter_context(self._service.watch_steps(self._tell_steps))
        for look in (self._look_on(), self._look_aside()):
            looking.callback(asyncio.create_task(look).cancel)
        return looking

    def _hello(self, outbox: Outbox, *, asks_for_key: bool) -> dict[str, Any]:
        return {
            "may_act": outbox.sees_all,
            "asks_for_key": asks_for_key,
            "now": round(self._clock(), 3),
            "version": tandem_version(),
            "step_s": STEP_S,
            "history": self._history.points,
        }

    # --- telling

    def tell(self, name: str, data: Any, without_key: Callable[[Any], Any] | None = None) -> None:
        """An event for all. without_key: what those without one see of it; all of it where None."""
        if not self._outboxes:
            return
        whole = event(data, name)
        some = whole
        if without_key is not None and any(not outbox.sees_all for outbox in self._outboxes):
            some = event(without_key(data), name)
        for outbox in self._outboxes:
            outbox.put(whole if outbox.sees_all else some)

    def _tell_steps(self, said: _StepsSaid) -> None:
        """What a worker did, as it said it; who is behind has gaps there rather than everywhere."""
        data = b"event: steps\ndata: %b\n\n" % said.report
        for outbox in self._outboxes:
            outbox.offer(data)

    def _tell_news(self) -> None:
        if (status := self._cluster.changed()) is not None:
            self.tell("status", status, status_without_key)
        if (requests := self._requests.changed()) is not None:
            self.tell("requests", requests, requests_without_key)

    # --- looking

    def look(self) -> None:
        """Tell what is new, at most so often."""
        self._num_looks += 1
        if self._num_looks % _STATUS_EACH == 0:
            self.tell("status", self._cluster.now(), status_without_key)
        if self._num_looks % _REQUESTS_EACH == 0:
            self._tell_news()
        elif (status := self._cluster.changed()) is not None:
            self.tell("status", status, status_without_key)

    async def look_aside(self, num_looks: int) -> None:
        """Tell what logs say, which nobody without a key sees, and now and then what doctor finds."""
        if any(outbox.sees_all for outbox in self._outboxes) and (lines := await self._aside.new_lines()):
            data = event({"lines": lines}, "logs")
            for outbox in self._outboxes:
                if outbox.sees_all:
                    outbox.put(data)
        if num_looks % _FINDINGS_EACH == 0 and await self._aside.examine(self._cluster.latest):
            for outbox in self._outboxes:
                outbox.put(event({"findings": self._aside.findings[outbox.sees_all]}, "findings"))

    async def _look_on(self) -> None:
        while True:
            await asyncio.sleep(LOOK_S)
            try:
                self.look()
            except Exception:
                log.exception("the dashboard could not be told what is new")

    async def _look_aside(self) -> None:
        for num_looks in itertools.count():
            try:
                await self.look_aside(num_looks)
            except Exception:
                log.exception("the dashboard could not be told what logs say and doctor finds")
            await asyncio.sleep(ASIDE_S)
