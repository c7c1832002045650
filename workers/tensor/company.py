"""The other ranks of the group that a worker is in, for the length of an epoch.

Owns the connections to them: they end with the epoch, however it ends. `abort` frees the compute thread from whatever rank it waits
for, when the coordinator or the end of the process wants something else of it.
"""

import logging
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import Protocol

from protocol.messages import GroupPlan, LoadStage
from protocol.values import Peer
from workers.model.shelf import Overtaken
from workers.tensor.group import NotMet, TensorGroup

log = logging.getLogger(__name__)


class Meet(Protocol):
    """Brings the ranks of a group together; `workers.tensor.meeting.RankDoor`."""

    def __call__(
        self,
        plan: GroupPlan,
        name: str,
        peers: Mapping[str, Peer],
        is_over: Callable[[], bool],
        waiting: Callable[[], object],
    ) -> TensorGroup:
        """name: of the rank here; peers: of all by name; is_over: whether something newer is wanted of this worker; waiting: called
        now and then while a rank waits for another. Raises NotMet, on all ranks.
        """


class Company:
    """See the module. `abort` may be called on any thread. meet: None where nobody is met; is_over: as of `Meet`; waits: called now and
    then while another rank is waited for. group: None where there is none here, or it did not meet, for the reason `unmet`, as of `NotMet`.
    """

    def __init__(self, meet: Meet | None, is_over: Callable[[], bool], waits: Callable[[], object] = lambda: None):
        self._meet = meet
        self._is_over = is_over
        self._waits_for_rank = waits
        self._waiting: Callable[[], object] | None = None
        self.group: TensorGroup | None = None
        self.unmet: str | None = None

    def __repr__(self) -> str:
        return f"Company({self.group})"

    def abort(self) -> None:
        """Nobody waits for another rank any more."""
        group = self.group
        if group is not None:
            group.abort()

    def renew(self, name: str, plan: LoadStage) -> GroupPlan | None:
        """Leave the ranks of the epoch before, and meet those of this plan where all of them are there; the group that this worker is
        in, if any, whether it met or not.

        Raises Overtaken where something newer is wanted of this worker.
        """
        self.unmet = None
        if self.group is not None:
            self.group.close()
            self.group = None
        own = next((group for group in plan.groups if name in group.route.workers), None)
        peers = {stage.worker: stage.peer for stage in plan.stages}
        if own is not None and self._meet is not None and peers.keys() >= set(own.route.workers):
            try:
                self.group = self._meet(own, name, peers, self._is_over, self._waits)
            except NotMet as error:
                self.unmet = str(error)
                log.warning("%s did not meet: %s", own.route, self.unmet or "another rank missed somebody")
            if self._is_over():  # when that came, there was nobody to free yet
                raise Overtaken("something newer is wanted of this worker")
        return own

    @contextmanager
    def awaiting(self, waiting: Callable[[], object]) -> Iterator[None]:
        """`waiting` is called now and then while the block waits for another rank."""
        self._waiting = waiting
        try:
            yield
        finally:
            self._waiting = None

    def _waits(self) -> None:
        self._waits_for_rank()
        if self._waiting is not None:
            self._waiting()
