"""The cluster as it is shown: one typed value for /status, the command line and whatever else renders it.

INTERFACE's `status --json` key by key. Built from the plan in force, the members and the counts; asks nobody.
"""

from collections.abc import Iterable
from urllib.parse import urlsplit

import msgspec

from cluster.membership.member import Member, WorkerLoad
from cluster.planning.events import ClusterEvent
from cluster.planning.plan import Plan
from cluster.serving.counts import GuessCounts, RequestCounts, ReuseCounts
from cluster.serving.group_status import GroupStatus
from cluster.serving.health import Stall
from cluster.serving.rates import StageRates
from protocol.interfaces.values import LinkKind
from protocol.messages import HeldModel, Join, LinkFigures, StageFigures
from protocol.transport.addressing import endpoint_for
from protocol.values import LayerRange, Route
from strategy.memory import WorkerBudget
from strategy.partition import Stage
from strategy.vocabulary import NO_LAYERS

SERVING_STATES = ("ready", "degraded")


class ModelStatus(msgspec.Struct, frozen=True, kw_only=True):
    """None stands for what is not known before the first plan."""

    id: str
    layers: int | None
    bytes: int | None
    context_tokens: int | None
    has_chat_template: bool


class CoordinatorStatus(msgspec.Struct, frozen=True, kw_only=True):
    """The process that answers."""

    pid: int


class MemoryStatus(msgspec.Struct, frozen=True, kw_only=True):
    """One worker's memory in bytes; what a lost worker had is gone with it. read_bytes: weights read since its process began."""

    limit_bytes: int
    weights_bytes: int = 0
    read_bytes: int = 0
    kv_bytes: int = 0


class CacheStatus(msgspec.Struct, frozen=True, kw_only=True):
    """One worker's caches. Budgets are the plan's; shared_bytes: of what is kept, what running requests began with."""

    kv_budget_bytes: int = 0
    prefix_budget_bytes: int = 0
    prefix_bytes: int = 0
    shared_bytes: int = 0
    disk_bytes: int = 0


class SpeedStatus(msgspec.Struct, frozen=True, kw_only=True):
    """Of one worker's stage of the pipeline, and of the full model where it holds that; None where it was not measured."""

    stage: StageRates | None = None
    full_model: StageRates | None = None


class WorkerStatus(msgspec.Struct, frozen=True, kw_only=True):
    """One worker. layers: of the plan in force, half open; oldest_step_s: for how long it has been at what it does now;
    why_away: a clause where its host cannot take part; speed: None where nothing was measured; sent_bytes: to other workers and
    the coordinator, by name, since its process began.
    """

    name: str
    host: str
    pid: int | None
    state: str
    why_away: str | None
    layers: LayerRange | None
    holds_full_model: bool
    memory: MemoryStatus
    cache: CacheStatus
    load: WorkerLoad
    oldest_step_s: float | None
    link: None = None
    sent_bytes: dict[str, int]
    speed: SpeedStatus | None


class StrategyOutlook(msgspec.Struct, frozen=True, kw_only=True):
    """What one strategy would take. workers: in the order of their stages."""

    strategy: str
    workers: tuple[str, ...]
    ttft_s: float
    decode_tokens_per_s: float


class RouteOutlook(msgspec.Struct, frozen=True, kw_only=True):
    """What one route would give one stream with a KV cache: tokens of the prompt by the time to the first token, and tokens a second
    after it. strategy: that which generates there.
    """

    strategy: str
    workers: tuple[str, ...]
    prefill_tokens_per_s: float
    decode_tokens_per_s: float


class Outlook(msgspec.Struct, frozen=True, kw_only=True):
    """What a request of so many tokens would take on the plan in force if nothing else ran: by the strategies that can run it, the best
    one first, and by every route of the plan, the fastest to generate first.
    """

    prompt_tokens: int
    max_tokens: int
    strategies: tuple[StrategyOutlook, ...]
    routes: tuple[RouteOutlook, ...] = ()


class HostStatus(msgspec.Struct, frozen=True, kw_only=True):
    """One machine, as its workers described it; local: the coordinator's. address: where the coordinator reaches it;
    clock_ahead_s: of the coordinator's clock, None where it has not said its time yet.
    """

    name: str
    address: str
    chip: str
    os: str
    versions: dict[str, str]
    memory_bytes: int
    clock_ahead_s: float | None
    workers: tuple[str, ...]


class LinkStatus(msgspec.Struct, frozen=True, kw_only=True, rename={"sender": "from", "receiver": "to"}):
    """One way from a worker to another on another host, as it was measured last; None where it does not answer."""

    sender: str
    receiver: str
    interface: str
    kind: str
    address: str
    round_trip_us: int | None
    bytes_per_s: int | None
    in_use: bool
    warning: str | None


class Status(msgspec.Struct, frozen=True, kw_only=True):
    """Everything at one moment. state: starting, ready, degraded or stopped; predicted: None where nothing was measured; why_no_group:
    where the configuration names groups and there are none.
    """

    state: str
    epoch: int
    api: str
    model: ModelStatus
    mode: str
    policy: str
    predicted: Outlook | None
    coordinator: CoordinatorStatus
    workers: tuple[WorkerStatus, ...]
    groups: tuple[GroupStatus, ...] = ()
    why_no_group: str | None = None
    hosts: tuple[HostStatus, ...]
    links: tuple[LinkStatus, ...]
    requests: RequestCounts
    cache: ReuseCounts
    guesses: GuessCounts = GuessCounts()
    events: tuple[ClusterEvent, ...]


class HostModels(msgspec.Struct, frozen=True, kw_only=True):
    """What another host than the coordinator's has on its disk; None where it does not say."""

    name: str
    models: tuple[HeldModel, ...] | None


class WorkerFigures(msgspec.Struct, frozen=True, kw_only=True):
    """What a worker's layers make of a fixed input; None where it does not say."""

    name: str
    stages: tuple[StageFigures, ...] | None


class HealthReport(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """Whether requests are answered. state: as in Status, or stalled, and then what is known of why."""

    state: str
    silent_s: float | None = None
    worker: str | None = None
    oldest_step_s: float | None = None

    @property
    def serves(self) -> bool:
        return self.state in SERVING_STATES


def health_report(state: str, stall: Stall | None) -> HealthReport:
    """A cluster that was told to stop owes nothing any more."""
    if stall is None or state == "stopped":
        return HealthReport(state=state)
    return HealthReport(
        state="stalled", silent_s=stall.silent_s, worker=stall.worker, oldest_step_s=stall.oldest_step_s
    )


def worker_statuses(members: Iterable[Member], plan: Plan | None) -> tuple[WorkerStatus, ...]:
    """Every desired worker, with its part in the plan in force."""
    stages = {stage.worker: stage for stage in plan.stages} if plan is not None else {}
    budgets = plan.budgets if plan is not None else {}
    total = plan.model.sizes.total if plan is not None else 0
    return tuple(
        _worker(
            member,
            stages.get(member.name),
            budgets.get(member.name),
            total,
            None if plan is None else _speed(member.name, plan),
        )
        for member in members
    )


def _speed(worker: str, plan: Plan) -> SpeedStatus | None:
    rates = {
        route: StageRates.of(found.stages[route.workers.index(worker)])
        for route, found in plan.costs.items()
        if worker in route.workers and not route.is_shared
    }
    alone = rates.pop(Route((worker,)), None)
    return SpeedStatus(stage=next(iter(rates.values()), None), full_model=alone) if rates or alone else None


def host_statuses(members: Iterable[Member], now: float, clock: float) -> tuple[HostStatus, ...]:
    """Every machine of which a worker joined. now, clock: the coordinator's, as members are seen and as people tell the time."""
    found: dict[str, tuple[Join, list[str]]] = {}
    ahead: dict[str, float | None] = {}
    for member in members:
        if member.join is not None:
            found.setdefault(member.host, (member.join, []))[1].append(member.name)
            ahead[member.host] = _clock_ahead_s(member, now, clock)
    return tuple(
        HostStatus(
            name=name,
            address=urlsplit(endpoint_for(join.peer)).hostname or "",
            chip=join.about.chip,
            os=join.about.os,
            versions=join.about.versions,
            memory_bytes=join.about.memory_bytes,
            clock_ahead_s=ahead[name],
            workers=tuple(workers),
        )
        for name, (join, workers) in found.items()
    )


def _clock_ahead_s(member: Member, now: float, clock: float) -> float | None:
    """What its heartbeat took to arrive counts as behind."""
    if member.heartbeat is None or not member.heartbeat.clock:
        return None
    return round(member.heartbeat.clock - (clock - (now - member.seen_at)), 1)


def link_statuses(members: Iterable[Member]) -> tuple[LinkStatus, ...]:
    """Every way between workers on different hosts."""
    return tuple(
        LinkStatus(
            sender=member.name,
            receiver=found.to,
            interface=found.interface,
            kind=found.kind,
            address=found.address,
            round_trip_us=found.round_trip_us,
            bytes_per_s=found.bytes_per_s,
            in_use=found.in_use,
            warning=_warning(found),
        )
        for member in members
        if member.is_there
        for found in member.links
    )


def _warning(found: LinkFigures) -> str | None:
    if found.in_use and found.round_trip_us is None:
        return "this link does not answer any more"
    if found.in_use and found.kind == LinkKind.WIFI:
        return "Wi-Fi is in use; a cable between the two would be faster"
    return None


def _worker(
    member: Member,
    stage: Stage | None,
    budget: WorkerBudget | None,
    model_bytes: int,
    speed: SpeedStatus | None,
) -> WorkerStatus:
    beat = member.heartbeat if member.state in ("joined", "loading", "ready") else None
    return WorkerStatus(
        name=member.name,
        host=member.host,
        pid=member.join.pid if member.join is not None else None,
        state=member.state,
        why_away=member.place.why_away,
        layers=stage.layers if stage is not None and stage.layers != NO_LAYERS else None,
        holds_full_model=stage is not None and stage.holds_full_model,
        memory=MemoryStatus(
            limit_bytes=member.memory_limit_bytes,
            # A plan is in force once all of it is loaded, which the last heartbeat may not know yet.
            weights_bytes=max(beat.weights_bytes if beat is not None else 0, _planned_bytes(stage, model_bytes)),
            read_bytes=beat.read_bytes if beat is not None else 0,
            kv_bytes=beat.kv_bytes if beat is not None else 0,
        ),
        cache=CacheStatus(
            kv_budget_bytes=budget.sequence_bytes if budget is not None else 0,
            prefix_budget_bytes=budget.prefix_bytes if budget is not None else 0,
            prefix_bytes=beat.prefix_bytes if beat is not None else 0,
            shared_bytes=beat.shared_bytes if beat is not None else 0,
            disk_bytes=beat.disk_bytes if beat is not None else 0,
        ),
        load=member.load,
        oldest_step_s=beat.oldest_step_s if beat is not None else None,
        sent_bytes={to or "coordinator": size for to, size in beat.sent_bytes.items()} if beat is not None else {},
        speed=speed,
    )


def _planned_bytes(stage: Stage | None, model_bytes: int) -> int:
    if stage is None:
        return 0
    return model_bytes if stage.holds_full_model else stage.weights_bytes
