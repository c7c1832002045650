"""From workers that are there to a plan that serves, and from that to the next: what is wanted is compared with what is
seen, so that replanning after a loss is the same code as the start.

Events in, actions out; `now` (seconds of a monotonic clock) is an argument. Sends nothing and loads nothing. The rules:

1. The first plan needs every worker of the configuration; later ones take whoever is there. After a restart of the
   coordinator, workers that may still come back are waited for.
2. A plan ends at once when a worker of it is lost or begins anew, when a link of it breaks, or when a step is overdue.
   The next one is made from who is there then, and reads only what is missing.
3. A newcomer first reads its part of the plan to come while the plan in force goes on serving. The plan is replaced when
   nothing runs, `SETTLE_S` after the last newcomer, at the latest `PATIENCE_S` after that; who dies often settles longer.
4. Every plan has an epoch of its own, higher than all before.
5. Where it is measured how fast workers are, the split is by that. When one became slower or faster, another split takes the
   place of this one if it promises clearly more, when nothing runs.
6. Workers that cannot reach each other would break every plan at once: after a few that hardly lived, the next waits 1, 2, 4 and
   up to 60 s, unless somebody comes or goes.
7. A group whose ranks cannot reach each other is left out of plans for a while, and tried again when nothing runs.
"""

import math
from collections.abc import Mapping, Sequence
from enum import StrEnum

import msgspec

from cluster.planning.candidate import Candidate
from cluster.planning.patience import Patience
from cluster.planning.plan import Loss
from cluster.planning.unmet_groups import Unmet
from cluster.planning.upcoming import Upcoming
from protocol.errors import IllegalEvent
from protocol.messages import Inspected
from protocol.values import LayerRange
from strategy.copies import copy_holder
from strategy.grouping import beside_groups
from strategy.measured_partition import Pace, differ, is_worth_it, measured_partition
from strategy.partition import ModelSizes, Node, NoPlan, Partition, Stage, partition, partition_of_survivors
from strategy.vocabulary import NO_LAYERS

SETTLE_S = 2.0
PATIENCE_S = 30.0
_LONGEST_SETTLE_S = 60.0


class DeploymentState(StrEnum):
    """FORMING: waits for workers; INSPECTING: one of them looks at the model; LOADING: a plan is sent; SERVING: it is in force."""

    FORMING = "forming"
    INSPECTING = "inspecting"
    LOADING = "loading"
    SERVING = "serving"
    STOPPED = "stopped"


class DeploymentEvent(StrEnum):
    """What moves a deployment on. BREAK: the plan, or the worker that inspects, is lost."""

    INSPECT = "inspect"
    INSPECTED = "inspected"
    LOAD = "load"
    LOADED = "loaded"
    BREAK = "break"
    STOP = "stop"


_S, _E = DeploymentState, DeploymentEvent
TRANSITIONS: dict[tuple[DeploymentState, DeploymentEvent], DeploymentState] = {
    (_S.FORMING, _E.INSPECT): _S.INSPECTING,
    (_S.FORMING, _E.LOAD): _S.LOADING,
    (_S.FORMING, _E.STOP): _S.STOPPED,
    (_S.INSPECTING, _E.INSPECTED): _S.FORMING,
    (_S.INSPECTING, _E.BREAK): _S.FORMING,
    (_S.INSPECTING, _E.STOP): _S.STOPPED,
    (_S.LOADING, _E.LOADED): _S.SERVING,
    (_S.LOADING, _E.BREAK): _S.FORMING,
    (_S.LOADING, _E.STOP): _S.STOPPED,
    (_S.SERVING, _E.BREAK): _S.FORMING,
    (_S.SERVING, _E.STOP): _S.STOPPED,
}


class Inspect(msgspec.Struct, frozen=True):
    """Have a worker inspect the model."""

    worker: str


class SendPlan(msgspec.Struct, frozen=True):
    """Send every worker of the partition its part, in a new epoch; others are released."""

    partition: Partition


class Prepare(msgspec.Struct, frozen=True):
    """Have a worker that serves nothing read weights in advance."""

    worker: str
    layers: LayerRange


class BeginPlan(msgspec.Struct, frozen=True):
    """Every worker has its part: the plan is in force."""


class EndPlan(msgspec.Struct, frozen=True):
    """The plan that was in force is no more."""

    loss: Loss


class Refuse(msgspec.Struct, frozen=True):
    """No plan is possible with what is there; `settings_at_fault` as in NoPlan."""

    reason: str
    settings_at_fault: bool


Action = Inspect | SendPlan | Prepare | BeginPlan | EndPlan | Refuse


class Deployment:
    """The plans of one model, one after another. kv_copies: neighbours that have copies of each worker's KV."""

    def __init__(self, *, wanted: Sequence[str], kv_copies: int = 0, waits_until: float | None = None):
        """waits_until: None for a first start, which needs all of `wanted`; else until when to wait for them."""
        self._wanted = tuple(wanted)
        self._kv_copies = kv_copies
        self._patience = Patience(returns_until=waits_until)
        self._is_first = waits_until is None
        self.state = DeploymentState.FORMING
        self._there: Mapping[str, Candidate] = {}
        self._inspected: Inspected | None = None
        self._sizes: ModelSizes | None = None
        self._inspector: str | None = None
        self._current: Partition | None = None
        self._awaited: frozenset[str] = frozenset()
        self._next = Upcoming()

    def __repr__(self) -> str:
        return f"Deployment({self.state}, {len(self._there)} of {len(self._wanted)} workers)"

    def want(self, names: Sequence[str]) -> None:
        """These should take part from now on; `changed` tells which of them are there."""
        self._wanted = tuple(names)

    @property
    def has_served(self) -> bool:
        """Whether a plan was ever in force; until then whatever goes wrong ends the start."""
        return not self._is_first

    # --- events

    def changed(
        self, there: Mapping[str, Candidate], now: float, lost: Loss | None = None, gone: str = ""
    ) -> list[Action]:
        """Who is there now, in the order of the configuration. gone: who was lost or began anew since, as `lost` says."""
        self._there = there
        self._next.again = None
        self._patience.begin_anew(gone)
        if self.state is _S.STOPPED:
            return []
        if self.state is _S.INSPECTING and (gone == self._inspector or self._inspector not in there):
            self._apply(_E.BREAK)
        if lost is not None and self._holds(gone):
            return [*self._break(lost), *self.tick(now)]
        return self.tick(now)

    def _holds(self, worker: str) -> bool:
        """Whether the plan in force, or on its way, has a part on that worker."""
        if self._current is None or self.state not in (_S.LOADING, _S.SERVING):
            return False
        return any(stage.worker == worker for stage in self._current.stages)

    def inspected(self, found: Inspected, sizes: ModelSizes, now: float) -> list[Action]:
        """A worker inspected the model; late answers mean nothing."""
        if self.state is not _S.INSPECTING:
            return []
        self._inspected, self._sizes = found, sizes
        self._apply(_E.INSPECTED)
        return self.tick(now)

    def loaded(self, worker: str, held: tuple[LayerRange, ...], now: float, unmet: Unmet) -> list[Action]:
        """A worker has its part of the plan that was sent last, which is all that it holds now. unmet: of the plan's groups, so far."""
        self._awaited -= {worker}
        self._keep(worker, held)
        if self.state is not _S.LOADING or self._awaited:
            return []
        assert self._current is not None
        if self._patience.unmet.tried(self._current, unmet, now):
            self._apply(_E.BREAK)
            return self._form(now)
        self._apply(_E.LOADED)
        self._is_first = False
        self._patience.lives_since = now
        return [BeginPlan(), *self.tick(now)]

    def awaits(self, worker: str) -> bool:
        """Whether it does something for no plan that was sent: it looks at the model, or reads what it will need."""
        return worker in self._next.preparing or (self.state is _S.INSPECTING and worker == self._inspector)

    def prepared(
        self, worker: str, held: tuple[LayerRange, ...], now: float, *, is_idle: bool, is_awaited: bool = False
    ) -> list[Action]:
        """A newcomer read what it will need."""
        self._next.preparing -= {worker}
        self._keep(worker, held)
        return self.tick(now, is_idle=is_idle, is_awaited=is_awaited)

    def move(self, how: str, now: float) -> list[Action]:
        """Links chosen anew would be faster, as `LinksMeasured` says it: for that an epoch ends at once, or when nothing runs."""
        self._next.moves = how == "idle"
        return self.broken("a link became slow, and there is a better one", now) if how == "now" else []

    def paced(self, there: Mapping[str, Candidate]) -> None:
        """How fast everybody who is there is now; where that is clearly another than before, it is looked at when nothing runs."""
        is_known = there and all(worker.pace is not None for worker in there.values())
        if is_known and there.keys() == self._there.keys():
            self._there = there
            self._next.is_paced = differ(self._next.judged, self._paces)

    def broken(self, sentence: str, now: float) -> list[Action]:
        """A link of the plan lost something, or a step is overdue: the same workers begin a new epoch."""
        if self.state not in (_S.LOADING, _S.SERVING):
            return []
        self._patience.broke(now)
        self._next.again = None if self._patience.unmet.rest_of(self._current) else self._current
        return [*self._break(Loss(workers=(), sentence=sentence, cause="link")), *self.tick(now)]

    def stop(self) -> None:
        """Nothing more is planned."""
        if self.state is not _S.STOPPED:
            self._apply(_E.STOP)

    def tick(self, now: float, *, is_idle: bool = False, is_awaited: bool = False) -> list[Action]:
        """What is due by now. is_idle: no request runs; is_awaited: some wait for another plan than that in force."""
        self._patience.unmet.tick(now)
        if self.state is _S.FORMING:
            return self._form(now)
        if self.state is _S.SERVING:
            return self._improve(now, is_idle=is_idle, is_awaited=is_awaited)
        return []

    def _keep(self, worker: str, held: tuple[LayerRange, ...]) -> None:
        if worker in self._there:
            self._there = {**self._there, worker: msgspec.structs.replace(self._there[worker], held=held)}

    # --- decisions

    def _form(self, now: float) -> list[Action]:
        if not self._there:
            return []
        if self._inspected is None or self._sizes is None:
            self._inspector = next(iter(self._there))
            self._apply(_E.INSPECT)
            return [Inspect(self._inspector)]
        missing = [name for name in self._wanted if name not in self._there]
        if self._patience.rests(now) or (missing and (self._is_first or self._patience.awaits(now))):
            return []
        try:
            found = self._next.again or self._partition(balanced=self._is_first)
        except NoPlan as error:
            return [Refuse(self._patience.unmet.beside(str(error)), error.settings_at_fault)]
        return self._load(found)

    def _improve(self, now: float, *, is_idle: bool, is_awaited: bool) -> list[Action]:
        """Whether those who came since the plan was made are worth a new one, and when."""
        assert self._current is not None
        if self._next.moves and is_idle:
            return self.broken("there are better links", now)
        if is_idle and (better := self._better()):
            return [*self._break(Loss(workers=(), sentence=better[0], cause="plan")), *self._load(better[1])]
        members = {stage.worker for stage in self._current.stages}
        newcomers = [worker for worker in self._there.values() if worker.name not in members]
        if not newcomers:
            self._next = Upcoming(**self._next.kept)
            return []
        names = tuple(worker.name for worker in newcomers)
        if names != self._next.newcomers:
            return self._prepare(newcomers, names, now)
        settled = now >= self._next.settled_at + (0 if is_idle else PATIENCE_S)
        if self._next.partition is None or self._next.preparing or not (settled or is_awaited):
            return []
        found = self._next.partition
        ended = self._break(Loss(workers=(), sentence=f"{', '.join(names)} joined the plan", cause="plan"))
        return [*ended, *self._load(found)]

    def _prepare(self, newcomers: Sequence[Candidate], names: tuple[str, ...], now: float) -> list[Action]:
        settle_s = max(min(SETTLE_S * 2 ** max(worker.deaths - 1, 0), _LONGEST_SETTLE_S) for worker in newcomers)
        self._next = Upcoming(newcomers=names, settled_at=now + settle_s, **self._next.kept)
        try:
            found = self._partition(balanced=True)
        except NoPlan:  # the newcomers do not help; the plan in force stays
            return []
        if {stage.worker for stage in found.stages} == {stage.worker for stage in (self._current or found).stages}:
            return []
        self._next.partition = found
        actions: list[Action] = []
        for stage in found.stages:
            if stage.worker in names and stage.layers != NO_LAYERS:
                self._next.preparing |= {stage.worker}
                actions.append(Prepare(stage.worker, self._wanted_layers(stage)))
        return actions

    def _better(self) -> tuple[str, Partition] | None:
        """Of those who are there, and why."""
        if self._patience.unmet.are_due and not self._next.newcomers:  # who would not be ready
            return "ranks that did not meet try it again", self._partition(balanced=False)
        if self._next.is_paced and (faster := self._faster()):
            return "a split is faster", faster
        return None

    def _faster(self) -> Partition | None:
        """A split of those who are there that promises clearly more than the one in force."""
        assert self._current is not None
        assert self._sizes is not None
        nodes, paces = [self._node(worker) for worker in self._there.values()], self._paces
        self._next.is_paced, self._next.judged = False, paces
        found = self._by_pace(nodes)
        if found is None or not is_worth_it(self._sizes, nodes, paces, self._current, found):
            return None
        return found

    def _by_pace(self, nodes: Sequence[Node]) -> Partition | None:
        """By how fast workers are; None where that is not known of all, or the model cannot be cut."""
        assert self._inspected is not None
        assert self._sizes is not None
        if self._inspected.why_not is not None:
            return None
        sizes, paces, cuts = self._patience.unmet.without(self._sizes), self._paces, self._inspected.legal_cuts
        return beside_groups(sizes, nodes, lambda nodes: measured_partition(sizes, nodes, paces, cuts))

    @property
    def _paces(self) -> dict[str, Pace]:
        return {worker.name: worker.pace for worker in self._there.values() if worker.pace is not None}

    def _wanted_layers(self, stage: Stage) -> LayerRange:
        assert self._sizes is not None
        return LayerRange(0, len(self._sizes.layers)) if stage.holds_full_model else stage.layers

    def _partition(self, *, balanced: bool) -> Partition:
        """Raises NoPlan. Later than the first plan, workers that cannot all be given a part do without the smallest."""
        assert self._inspected is not None
        assert self._sizes is not None
        nodes = [self._node(worker) for worker in self._there.values()]
        is_complete = len(nodes) == len(self._wanted)
        if not is_complete:
            nodes = [msgspec.structs.replace(node, layers=None) for node in nodes]
        balanced = balanced or any(node.layers is not None for node in nodes)
        if balanced and (found := self._by_pace(nodes)):
            return found
        sizes, inspected = self._patience.unmet.without(self._sizes), self._inspected
        split = partition if balanced else partition_of_survivors
        while True:
            try:
                return beside_groups(
                    sizes, nodes, lambda nodes: split(sizes, nodes, inspected.legal_cuts, why_not=inspected.why_not)
                )
            except NoPlan:
                if self._is_first or len(nodes) == 1:
                    raise
                nodes.remove(min(nodes, key=lambda node: node.memory_limit_bytes))

    def _node(self, worker: Candidate) -> Node:
        return Node(
            name=worker.name,
            memory_limit_bytes=worker.memory_limit_bytes,
            layers=worker.layers,
            held=worker.held,
            copies=self._copies(worker.name),
        )

    def _copies(self, name: str) -> tuple[LayerRange, ...]:
        """Layers whose KV a worker has: its own, and those of whoever hands it copies."""
        if not self._kv_copies or self._current is None or self._current.pipeline is None:
            return ()
        pipeline = self._current.pipeline
        return tuple(
            stage.layers
            for stage in self._current.stages
            if name in (stage.worker, copy_holder(pipeline, stage.worker))
        )

    def _load(self, found: Partition) -> list[Action]:
        self._current = found = self._patience.unmet.explained(found)
        self._awaited = frozenset(stage.worker for stage in found.stages)
        self._next = Upcoming()
        self._patience.lives_since = math.inf
        self._apply(_E.LOAD)
        return [SendPlan(found)]

    def _break(self, loss: Loss) -> list[Action]:
        was_serving = self.state is _S.SERVING
        self._apply(_E.BREAK)
        return [EndPlan(loss)] if was_serving else []

    def _apply(self, event: DeploymentEvent) -> None:
        following = TRANSITIONS.get((self.state, event))
        if following is None:
            raise IllegalEvent(f"a deployment that is {self.state} cannot {event}")
        self.state = following
