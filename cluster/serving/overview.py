"""What the cluster says of itself: its models, its status, its health. Reads everything and changes nothing.

Owns only what is known of the model, which stays known while one plan gives way to the next.
"""

import time
from collections.abc import Callable

import msgspec

from cluster.membership.member import LOCAL
from cluster.planning.interface import Cluster
from cluster.planning.plan import ModelFacts, Plan
from cluster.serving.counts import Counts
from cluster.serving.group_status import group_statuses
from cluster.serving.live_request import UNBOUNDED_CONTEXT_TOKENS
from cluster.serving.requests import ModelInfo
from cluster.serving.status import (
    CoordinatorStatus,
    HostModels,
    ModelStatus,
    Outlook,
    Status,
    WorkerFigures,
    host_statuses,
    link_statuses,
    worker_statuses,
)
from cluster.settings import StrategySettings
from protocol.errors import Unavailable, UsageError
from strategy.grouping import NO_GROUP, Groups
from strategy.wishes import Mode


class Identity(msgspec.Struct, frozen=True, kw_only=True):
    """Who serves. model_id: the model's name for people; api: the URL; pid: of the coordinator."""

    model_id: str
    api: str
    pid: int
    has_chat_template: bool


class Overview:
    """See the module."""

    def __init__(
        self,
        cluster: Cluster,
        identity: Identity,
        settings: StrategySettings,
        counts: Counts,
        now: Callable[[], float],
    ):
        self._cluster = cluster
        self._now = now
        self._identity = identity
        self._settings = settings
        self._counts = counts
        self._created = int(time.time())
        self._facts: ModelFacts | None = None

    def __repr__(self) -> str:
        return f"Overview({self._identity.model_id})"

    @property
    def mode(self) -> Mode:
        return Mode(self._settings.use_distributed_inference)

    def check_mode(self, plan: Plan) -> None:
        """Raises UsageError when the mode can never be served by that plan."""
        if self.mode is Mode.NEVER and plan.shortage is not None:
            raise UsageError(
                f"mode never needs one worker with the full model, but {plan.shortage}; "
                "use USE_DISTRIBUTED_INFERENCE=auto or raise a memory_limit"
            )
        if self.mode is Mode.ALWAYS and plan.pipeline is None and not plan.groups.routes:
            raise UsageError(f"mode always needs all stages, but {plan.why_not}; use USE_DISTRIBUTED_INFERENCE=auto")

    def learn(self, facts: ModelFacts) -> None:
        """The model was inspected."""
        self._facts = facts

    def model(self) -> ModelInfo:
        facts = self._facts
        return ModelInfo(
            id=self._identity.model_id,
            layers=len(facts.sizes.layers) if facts is not None else None,
            bytes=facts.sizes.total if facts is not None else None,
            context_tokens=(facts.inspected.context_tokens or UNBOUNDED_CONTEXT_TOKENS) if facts is not None else None,
            has_chat_template=self._identity.has_chat_template,
            created=self._created,
            architecture=facts.inspected.architecture if facts is not None else None,
        )

    def state(self, *, stopping: bool) -> str:
        """Starting while no plan is in force; degraded while desired workers are missing."""
        if stopping:
            return "stopped"
        if self._cluster.plan is None:
            return "starting"
        return "degraded" if self._cluster.missing else "ready"

    async def models_elsewhere(self) -> tuple[HostModels, ...]:
        """What lies on the disks of other hosts; one worker of each is asked."""
        members = [member for member in self._cluster.members.values() if member.host != LOCAL and member.is_there]
        asked = {member.host: member.name for member in members}
        found = await self._cluster.inquiries.models(asked.values())
        return tuple(HostModels(name=host, models=found.get(worker)) for host, worker in asked.items())

    async def figures(self) -> tuple[WorkerFigures, ...]:
        """What the layers of each worker of the plan in force compute. Raises Unavailable without one."""
        plan = self._cluster.plan
        if plan is None:
            raise Unavailable("no plan is in force now; try again once /health says ready")
        found = await self._cluster.inquiries.figures(plan.workers)
        return tuple(WorkerFigures(name=worker, stages=found.get(worker)) for worker in plan.workers)

    def status(self, *, stopping: bool, predicted: Outlook | None) -> Status:
        model, plan = self.model(), self._cluster.plan
        groups = Groups() if plan is None else plan.groups
        return Status(
            state=self.state(stopping=stopping),
            epoch=self._cluster.epoch,
            api=self._identity.api,
            model=ModelStatus(
                id=model.id,
                layers=model.layers,
                bytes=model.bytes,
                context_tokens=model.context_tokens,
                has_chat_template=model.has_chat_template,
            ),
            mode=self._settings.use_distributed_inference,
            policy=self._settings.policy,
            predicted=predicted,
            coordinator=CoordinatorStatus(pid=self._identity.pid),
            workers=worker_statuses(self._cluster.members.values(), plan),
            groups=group_statuses(plan),
            why_no_group=None if groups.why_none == NO_GROUP else groups.why_none,
            hosts=host_statuses(self._cluster.members.values(), self._now(), time.time()),
            links=link_statuses(self._cluster.members.values()),
            requests=self._counts.requests,
            cache=self._counts.reuse,
            guesses=self._counts.guesses(None if self._facts is None else self._facts.draft),
            events=self._cluster.events.latest,
        )
