"""The control plane's view of the workers: admits them, has the model inspected and loaded, notices who is gone.

Owns members, their processes, the plan and its epoch. Knows nothing of HTTP or of requests beyond handing their
messages on through `Listener`. Everything runs on one asyncio loop; only the inbox's thread is elsewhere.
"""

import asyncio
import logging
import os
import time
from collections.abc import Callable, Mapping
from pathlib import Path

from cluster.config import Settings
from cluster.membership.local import WorkerProcess, default_memory_limit
from cluster.membership.roster import IllegalEvent, Member, WorkerEvent, WorkerState
from cluster.planning.events import EventLog
from cluster.planning.interface import Listener
from cluster.planning.kept_prefixes import KeptPrefixes
from cluster.planning.model_files import read_sizes
from cluster.planning.plan import Loss, ModelFacts, Plan
from protocol.codec import PROTOCOL, Envelope
from protocol.errors import ModelError, TandemError, UsageError
from protocol.home import Home
from protocol.join_token import make_token
from protocol.messages import (
    Heartbeat,
    Inspected,
    InspectModel,
    Join,
    Loaded,
    LoadFailed,
    LoadProgress,
    LoadStage,
    Message,
    PrefillProgress,
    Rejected,
    Reused,
    SequenceFailed,
    Shutdown,
    StagePlan,
    Tokens,
    Welcome,
)
from protocol.model_digest import model_digest
from protocol.transport import ZmqInbox, ZmqOutbox
from protocol.values import Buffer, KvSettings, LayerRange, Route
from strategy.memory import DEFAULT_DISK_BYTES, WorkerBudget, worker_budget
from strategy.partition import ModelSizes, Node, NoPlan, Stage, fits, full_model_shortage, partition

log = logging.getLogger(__name__)

_JOIN_TIMEOUT_S = 60.0
_CHECK_EVERY_S = 0.25
# A check that comes later than this after its time finds heartbeats that nobody has read yet.
_HELD_UP_S = 0.5


def _chunk_tokens(environment: Mapping[str, str]) -> int | None:
    """TANDEM_PREFILL_CHUNK, or None to let each head choose by measured cost. Raises UsageError."""
    text = environment.get("TANDEM_PREFILL_CHUNK")
    if text is None:
        return None
    if not text.isdecimal() or int(text) < 1:
        raise UsageError(f"TANDEM_PREFILL_CHUNK must be a whole number of tokens of at least 1, not {text!r}")
    return int(text)


class ControlPlane:
    """See the module. After `start` every member is ready and `stages` covers the model."""

    def __init__(self, settings: Settings, model_path: Path, home: Home, checkout: Path):
        self._model_path = model_path
        self._home = home
        self._checkout = checkout
        num_workers = len(settings.workers)
        self.members = {
            worker.name: Member(
                worker.name,
                memory_limit_bytes=worker.memory_limit or default_memory_limit(num_workers),
                manual_layers=None if worker.layers is None else LayerRange(*worker.layers),
            )
            for worker in settings.workers
        }
        self.listener: Listener | None = None
        self.processes: dict[str, WorkerProcess] = {}
        self.stages: list[Stage] = []
        self.sizes: ModelSizes | None = None
        self.inspected: Inspected | None = None
        self.epoch = 0
        self.events = EventLog()
        self.plan: Plan | None = None
        self.kept = KeptPrefixes()
        self.budgets: dict[str, WorkerBudget] = {}
        self._cache_settings = settings.cache
        self._kv = KvSettings(
            kind=settings.kv_cache.kind,
            bits=settings.kv_cache.bits,
            key_bits=settings.kv_cache.key_bits,
            value_bits=settings.kv_cache.value_bits,
            group_size=settings.kv_cache.group_size,
            max_tokens=settings.kv_cache.max_tokens,
            keep=settings.kv_cache.keep,
        )
        self._outbox = ZmqOutbox()
        self._inbox: ZmqInbox | None = None
        self._secret = ""
        self._digest = ""
        self._changed = asyncio.Event()
        self._failure: TandemError | None = None
        self._progress: Callable[[str], None] = lambda _: None
        self._watchdog: asyncio.Task[None] | None = None
        self._stopping = False

    def __repr__(self) -> str:
        return f"ControlPlane(epoch {self.epoch}, {list(self.members.values())})"

    # --- starting

    async def spawn(self) -> None:
        """Start this machine's workers; they join by themselves. Raises OSError."""
        loop = asyncio.get_running_loop()
        self._inbox = ZmqInbox(lambda envelope: loop.call_soon_threadsafe(self._receive, envelope))
        self._inbox.start()
        token, self._secret = make_token(self._inbox.peer.public_key)
        for member in self.members.values():
            process = await WorkerProcess.start(
                member.name,
                home=self._home,
                checkout=self._checkout,
                coordinator=self._inbox.peer,
                token=token,
                memory_limit_bytes=member.memory_limit_bytes,
            )
            self.processes[member.name] = process
            process.watch(lambda status, name=member.name: self._process_ended(name, status))  # type: ignore[misc]
        self._watchdog = asyncio.create_task(self._watch_heartbeats())

    async def load(self, progress: Callable[[str], None]) -> None:
        """Wait for the workers, plan, and load the model onto them.

        Raises:
            TandemError: a worker ended, the model cannot be used, or no plan fits.
        """
        self._digest = model_digest(self._model_path)
        self._home.remember_model(self._digest, self._model_path)
        progress("waiting for the workers")
        await self._until(lambda: any(member.state is WorkerState.JOINED for member in self.members.values()))
        self.inspected = await self._inspect()
        self.sizes = read_sizes(self._model_path, self.inspected.num_layers)
        nodes = [
            Node(name=member.name, memory_limit_bytes=member.memory_limit_bytes, layers=member.manual_layers)
            for member in self.members.values()
        ]
        self.stages = self._partition(self.sizes, nodes, self.inspected)
        await self._until(lambda: all(member.state is WorkerState.JOINED for member in self.members.values()))
        self._send_plan()
        self._progress = progress
        progress(self._loading_text())
        await self._until(lambda: all(member.is_ready for member in self._planned()))
        self.plan = self._plan_of(tuple(self.stages), self.pipeline, None)
        if self._cache_settings.prefix:
            for route in self.kept.needs:
                message, buffers = self.kept.known(route, self.budgets, self._disk_bytes)
                self.send(route.head, message, buffers)

    @staticmethod
    def _partition(sizes: ModelSizes, nodes: list[Node], inspected: Inspected) -> list[Stage]:
        try:
            found = partition(sizes, nodes, inspected.legal_cuts, why_not=inspected.why_not)
        except NoPlan as error:
            raise (UsageError if error.settings_at_fault else ModelError)(str(error)) from None
        return list(found.stages) if found.pipeline else list(found.stages[:1])

    async def _inspect(self) -> Inspected:
        member = next(member for member in self.members.values() if member.state is WorkerState.JOINED)
        self.send(member.name, InspectModel(model=self._digest))
        await self._until(lambda: self.inspected is not None)
        assert self.inspected is not None
        return self.inspected

    @property
    def _disk_bytes(self) -> int:
        """What one worker may keep on disk."""
        limit = self._cache_settings.disk_limit
        if not self._cache_settings.prefix:
            return 0
        return DEFAULT_DISK_BYTES if limit is None else limit

    def _planned(self) -> list[Member]:
        return [self.members[stage.worker] for stage in self.stages]

    def _send_plan(self) -> None:
        assert self.inspected is not None
        self.epoch += 1
        stage_plans = []
        for stage in self.stages:
            member = self.members[stage.worker]
            member.layers = stage.layers
            member.holds_full_model = stage.holds_full_model
            assert member.join is not None
            stage_plans.append(
                StagePlan(
                    worker=member.name,
                    peer=member.join.data,
                    layers=member.layers,
                    holds_full_model=member.holds_full_model,
                )
            )
        for member in self._planned():
            member.apply(WorkerEvent.LOAD)
            self.budgets[member.name] = self._budget(member)
            self.send(
                member.name,
                LoadStage(
                    model=self._digest,
                    pipeline=self.pipeline,
                    kv=self._kv,
                    prefix_memory_bytes=self.budgets[member.name].prefix_bytes,
                    prefix_disk_bytes=self._disk_bytes,
                    stages=tuple(stage_plans),
                    last_position_only=self.inspected.last_position_only,
                    batches=self.inspected.batches,
                    prefill_chunk_tokens=_chunk_tokens(os.environ),
                ),
            )

    def _weights_bytes(self, stage: Stage) -> int:
        assert self.sizes is not None
        return self.sizes.total if stage.holds_full_model else stage.weights_bytes

    def _loading_text(self) -> str:
        total = sum(map(self._weights_bytes, self.stages))
        loaded = min(sum(member.loaded_bytes for member in self._planned()), total)
        return f"loading the model: {loaded / 1e9:.1f} of {total / 1e9:.1f} GB"

    def _budget(self, member: Member) -> WorkerBudget:
        stage = next(stage for stage in self.stages if stage.worker == member.name)
        return worker_budget(
            limit_bytes=member.memory_limit_bytes,
            weights_bytes=self._weights_bytes(stage),
            prefix_limit=self._cache_settings.memory_limit,
            prefix=self._cache_settings.prefix,
        )

    async def _until(self, condition: Callable[[], bool]) -> None:
        """Wait until `condition` holds. Raises what went wrong in the meantime.

        A worker that joined may take as long as it needs: its heartbeats tell whether it lives.
        """
        while not condition():
            if self._failure is not None:
                raise self._failure
            self._changed.clear()
            try:
                await asyncio.wait_for(self._changed.wait(), _JOIN_TIMEOUT_S)
            except TimeoutError:
                late = [member.name for member in self.members.values() if member.state is WorkerState.STARTING]
                if late:
                    raise TandemError(
                        f"{', '.join(late)} did not join within {_JOIN_TIMEOUT_S:.0f} s; see ./launch.sh logs"
                    ) from None
        if self._failure is not None:
            raise self._failure

    # --- what arrives

    def _receive(self, envelope: Envelope) -> None:
        message = envelope.message
        if isinstance(message, Join):
            self._admit(message)
        elif isinstance(message, Heartbeat):
            if member := self.members.get(message.worker):
                member.beat(message, time.monotonic())
        elif envelope.epoch == self.epoch:
            self._of_this_epoch(message, envelope.buffers)

    def _of_this_epoch(self, message: Message, buffers: tuple[Buffer, ...]) -> None:
        match message:
            case Tokens():
                self._listening.tokens(message)
            case PrefillProgress():
                self._listening.progress(message)
            case SequenceFailed():
                self._listening.failed(message)
            case Inspected():
                self.inspected = message
                self._changed.set()
            case LoadProgress(worker=name, loaded_bytes=loaded):
                self.members[name].loaded_bytes = loaded
                self._progress(self._loading_text())
            case Reused():
                self._listening.reused(message)
            case Loaded():
                self._loaded(message, buffers)
            case LoadFailed(message=text):
                self._fail(ModelError(text))
            case _:
                log.warning("dropped an unexpected %s", type(message).__name__)

    def _loaded(self, message: Loaded, buffers: tuple[Buffer, ...]) -> None:
        member = self.members[message.worker]
        member.apply(WorkerEvent.LOADED)
        member.loaded_bytes = message.weights_bytes
        self.kept.loaded(message, buffers)
        self._changed.set()

    @property
    def _listening(self) -> Listener:
        assert self.listener is not None
        return self.listener

    def _admit(self, join: Join) -> None:
        member = self.members.get(join.name)
        try:
            if join.secret != self._secret or join.protocol != PROTOCOL or member is None:
                raise IllegalEvent("a wrong token, another version of Tandem, or a name that is not in the plan")
            member.admit(join, time.monotonic())
        except IllegalEvent as error:
            log.warning("rejected worker %s: %s", join.name, error)
            self._outbox.send(join.peer, self.epoch, Rejected(reason=str(error)))
            return
        self.send(join.name, Welcome(coordinator=join.name))
        self._changed.set()

    # --- losing workers

    def _process_ended(self, name: str, status: int) -> None:
        if not self._stopping:
            log.error("worker %s ended with status %d", name, status)
            self._lose(name, f"worker {name} ended unexpectedly (status {status}); see ./launch.sh logs")

    async def _watch_heartbeats(self) -> None:
        checked_at = time.monotonic()
        while True:
            await asyncio.sleep(_CHECK_EVERY_S)
            now = time.monotonic()
            held_up_s = now - checked_at - _CHECK_EVERY_S
            checked_at = now
            self._check_heartbeats(now, held_up_s)

    def _check_heartbeats(self, now: float, held_up_s: float) -> None:
        """Lose who is silent. held_up_s: for how long this process did not run, and so did not hear anybody."""
        for member in self.members.values():
            if held_up_s > _HELD_UP_S:
                member.excuse(held_up_s, now)
            elif member.is_overdue(now):
                log.error("worker %s is silent", member.name)
                self._lose(member.name, f"worker {member.name} does not answer; see ./launch.sh logs")

    def _lose(self, name: str, message: str) -> None:
        member = self.members[name]
        if member.state in (WorkerState.LOST, WorkerState.STOPPED):
            return
        member.apply(WorkerEvent.LOSE)
        if member.join is not None:
            self._outbox.forget(member.join.peer)
        if process := self.processes.get(name):
            process.kill()  # a silent one may still hold its memory
        self._fail(TandemError(message))
        self.events.add(message)
        if self.plan is not None and name in self.plan.workers:
            self._go_on_without(name, Loss(workers=(name,), sentence=message))

    def _go_on_without(self, name: str, loss: Loss) -> None:
        """What is left of the plan in force, if anything can still serve."""
        assert self.plan is not None
        stages = tuple(stage for stage in self.plan.stages if stage.worker != name and stage.holds_full_model)
        self.plan = None
        if self.listener is not None:
            self.listener.plan_ended(loss)
        if stages:
            gone = f"worker {', '.join(self.missing)} is lost; restart the cluster with ./launch.sh stop and start"
            self.plan = self._plan_of(stages, None, gone)
            if self.listener is not None:
                self.listener.plan_began(self.plan)

    def _plan_of(self, stages: tuple[Stage, ...], pipeline: Route | None, why_not: str | None) -> Plan:
        assert self.sizes is not None
        assert self.inspected is not None
        return Plan(
            epoch=self.epoch,
            model=ModelFacts(id=self._model_path.name, digest=self._digest, sizes=self.sizes, inspected=self.inspected),
            stages=stages,
            pipeline=pipeline,
            why_not=why_not,
            shortage=self.shortage(),
            budgets={stage.worker: self.budgets[stage.worker] for stage in stages},
            needs=self.kept.needs,
        )

    @property
    def missing(self) -> tuple[str, ...]:
        """Desired workers that are gone."""
        return tuple(member.name for member in self._planned() if member.state is WorkerState.LOST)

    def _fail(self, error: TandemError) -> None:
        """Ends a start in progress; without meaning afterwards."""
        self._failure = self._failure or error
        self._changed.set()

    # --- using the workers

    def send(self, worker: str, message: Message, buffers: tuple[bytes, ...] = ()) -> None:
        """Queue a message to a joined worker; nothing happens when it is gone."""
        member = self.members[worker]
        if member.join is not None and member.state not in (WorkerState.LOST, WorkerState.STOPPED):
            self._outbox.send(member.join.peer, self.epoch, message, buffers)

    @property
    def pipeline(self) -> Route:
        """The workers in stage order."""
        return Route(tuple(stage.worker for stage in self.stages))

    def shortage(self) -> str | None:
        """Why no worker of the plan holds the full model, with figures; None when some does."""
        assert self.sizes is not None
        nodes = [Node(name=member.name, memory_limit_bytes=member.memory_limit_bytes) for member in self._planned()]
        return None if any(fits(self.sizes, node) for node in nodes) else full_model_shortage(self.sizes, nodes)

    # --- stopping

    async def stop(self) -> None:
        """End every worker; returns when their processes are gone."""
        self._stopping = True
        for name, member in self.members.items():
            self.send(name, Shutdown())
            if member.join is None and (process := self.processes.get(name)):
                process.kill()  # it is still starting and cannot be told
        await asyncio.gather(*(process.end() for process in self.processes.values()))
        for member in self.members.values():
            member.apply(WorkerEvent.STOP)
        if self._watchdog is not None:
            self._watchdog.cancel()
        self._outbox.close()
        if self._inbox is not None:
            await asyncio.to_thread(self._inbox.close)
