"""What planning offers to serving: the plan in force, a way to its workers, and word of what happens to both.

The one door between the two, so that a test can play everything behind it by hand.
"""

from collections.abc import Mapping
from typing import Protocol

from cluster.membership.member import Member
from cluster.planning.events import EventLog
from cluster.planning.inquiries import Inquiries
from cluster.planning.plan import Loss, Plan
from protocol.messages import Embedded, Message, PrefillProgress, PromptLogprobs, Reused, SequenceFailed, Tokens
from protocol.values import Buffer


class Listener(Protocol):
    """Who learns of the fate of sequences and plans. All calls come on the event loop.

    Between `plan_ended` and the next `plan_began` no plan is in force; every sequence of the plan that ended is gone.
    is_idle: nothing runs, so that a better plan may take the place of this one unnoticed; is_awaited: some requests wait
    for a better one.
    """

    @property
    def is_idle(self) -> bool: ...

    @property
    def is_awaited(self) -> bool: ...

    def tokens(self, message: Tokens) -> None: ...

    def embedded(self, message: Embedded, vector: Buffer) -> None: ...

    def progress(self, message: PrefillProgress | PromptLogprobs) -> None: ...

    def reused(self, message: Reused) -> None: ...

    def failed(self, message: SequenceFailed) -> None: ...

    def plan_ended(self, loss: Loss) -> None: ...

    def plan_began(self, plan: Plan) -> None: ...


class Cluster(Protocol):
    """The workers as planning offers them.

    plan: in force, None while none can serve. missing: desired workers that are not there now. members: every desired
    worker by name. events: what happened lately; serving adds what it does about it. inquiries: questions to workers.
    """

    listener: Listener | None

    @property
    def plan(self) -> Plan | None: ...

    @property
    def missing(self) -> tuple[str, ...]: ...

    @property
    def members(self) -> Mapping[str, Member]: ...

    @property
    def events(self) -> EventLog: ...

    @property
    def inquiries(self) -> Inquiries: ...

    @property
    def epoch(self) -> int: ...

    def mend(self) -> list[str]:
        """Start every worker that is not there, also those left out; gives their names."""
        ...

    def send(self, worker: str, message: Message, buffers: tuple[bytes, ...] = ()) -> None:
        """Queue a message in the epoch in force; nothing happens for a worker that is gone."""
        ...
