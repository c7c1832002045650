"""What is new since the last look, for everybody who looks: of the cluster and of its requests. And what of it somebody without a key
may not see: who asks, and where machines can be reached.
"""

from collections.abc import Sequence
from typing import Any

import msgspec

from cluster.serving.ledger import Ledger, RequestRow
from cluster.serving.requests import Service
from cluster.serving.status import Status

# Of the requests that ended, how many a page begins with.
FIRST_ENDED = 50


class ClusterNews:
    """The status, when something happened to the cluster since the last one. latest: that was told; one of now where there is none."""

    def __init__(self, service: Service) -> None:
        self._service = service
        self._latest: Status | None = None

    def __repr__(self) -> str:
        return f"ClusterNews({self._latest and self._latest.state})"

    @property
    def latest(self) -> Status:
        return self.now() if self._latest is None else self._latest

    def now(self) -> Status:
        """As it is, whatever was told before."""
        self._latest = self._service.status()
        return self._latest

    def changed(self) -> Status | None:
        """None where nothing happened that cannot wait."""
        status = self._service.status()
        if self._latest is not None and _what_matters(status) == _what_matters(self._latest):
            return None
        self._latest = status
        return status


def _what_matters(status: Status) -> tuple[Any, ...]:
    workers = tuple((worker.name, worker.state) for worker in status.workers)
    return status.state, status.epoch, status.events[-1:], workers


class RequestNews:
    """The requests, when anything about them changed."""

    def __init__(self, ledger: Ledger) -> None:
        self._ledger = ledger
        self._told: list[RequestRow] = []
        self._num_ended = ledger.num_ended

    def __repr__(self) -> str:
        return f"RequestNews({len(self._told)} requests)"

    @property
    def latest(self) -> dict[str, Sequence[RequestRow]]:
        """What was told, for somebody who knows nothing yet: with some that had ended before."""
        return {"requests": self._told, "ended": self._ledger.ended_since(max(self._num_ended - FIRST_ENDED, 0))}

    def changed(self) -> dict[str, Sequence[RequestRow]] | None:
        """Those that are there, and those that ended since; None where all is as it was."""
        rows, ended = self._ledger.rows(), self._ledger.ended_since(self._num_ended)
        if not ended and rows == self._told:
            return None
        self._told, self._num_ended = rows, self._ledger.num_ended
        return {"requests": rows, "ended": ended}


def status_without_key(status: Status) -> Status:
    """What happened without its causes, which may name addresses and folders."""
    replace = msgspec.structs.replace
    return replace(
        status,
        api="",
        workers=tuple(
            replace(worker, why_away=worker.why_away and "its host cannot take part") for worker in status.workers
        ),
        hosts=tuple(replace(host, address="") for host in status.hosts),
        links=tuple(replace(link, address="") for link in status.links),
        events=tuple(replace(event, what=event.what.partition(": ")[0]) for event in status.events),
    )


def requests_without_key(news: dict[str, Sequence[RequestRow]]) -> dict[str, Sequence[RequestRow]]:
    """Whose they are is nobody's business."""
    return {name: [msgspec.structs.replace(row, key=None) for row in rows] for name, rows in news.items()}
