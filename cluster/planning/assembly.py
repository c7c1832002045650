"""One plan on its way: what each worker is told to load, what they answer, and the frozen plan that comes of it.

Owns what is known of one epoch until it is in force. Sends nothing.
"""

import secrets
from collections.abc import Mapping
from typing import NamedTuple, TypeVar

import msgspec

from cluster.planning.kept_prefixes import KeptPrefixes
from cluster.planning.plan import ModelFacts, Plan
from cluster.planning.progress import StartProgress, amount, amounts
from cluster.planning.route_costs import MeasuredSpeeds
from cluster.settings import Settings
from protocol.messages import GroupPlan, KnownPrefix, Loaded, LoadProgress, LoadStage, StagePlan
from protocol.values import Buffer, LayerRange, Peer, Route
from strategy.chunking import MLX_LM_CHUNK_TOKENS
from strategy.grouping import groups_of
from strategy.memory import DEFAULT_DISK_BYTES, WorkerBudget, worker_budget
from strategy.partition import Node, Partition, Stage, full_model_shortage
from strategy.vocabulary import NO_LAYERS

_SECRET_BYTES = 32
_OfRoute = TypeVar("_OfRoute")


class Part(NamedTuple):
    """A worker's memory and where other workers reach it."""

    memory_limit_bytes: int
    data: Peer


class Assembly:
    """See the module. parts: by worker, everyone that the partition names."""

    def __init__(self, epoch: int, model: ModelFacts, found: Partition, parts: Mapping[str, Part], settings: Settings):
        self.epoch = epoch
        self._model = model
        self._partition = found
        self._parts = parts
        self._settings = settings
        self._kept = KeptPrefixes()
        self._speeds = MeasuredSpeeds()
        self._vocabulary_sizes: list[int] = []
        self._loaded_bytes = dict.fromkeys(self.workers, 0)
        self._unmet: dict[str, str] = {}  # what workers said of their groups
        self.budgets = {stage.worker: self._budget(stage) for stage in found.stages}

    def __repr__(self) -> str:
        return f"Assembly(epoch {self.epoch}, {len(self._loaded_bytes)} workers)"

    @property
    def workers(self) -> tuple[str, ...]:
        return tuple(stage.worker for stage in self._partition.stages)

    @property
    def described(self) -> str:
        """Who holds what, for people."""
        return ", ".join(map(self._described, self._partition.stages))

    def _described(self, stage: Stage) -> str:
        if stage.layers != NO_LAYERS:
            return f"{stage.worker} layers {stage.layers.start}-{stage.layers.end - 1}"
        is_grouped = any(stage.worker in group.route.workers for group in self._partition.groups)
        return f"{stage.worker} its part of a group's layers" if is_grouped else f"{stage.worker} nothing"

    def messages(self, reply_to: Peer, sources: tuple[Peer, ...] = ()) -> dict[str, LoadStage]:
        """What to tell each worker. reply_to: where they answer; sources: who may have the model."""
        settings, inspected = self._settings, self._model.inspected
        stages = tuple(
            StagePlan(
                worker=stage.worker,
                peer=self._parts[stage.worker].data,
                layers=stage.layers,
                holds_full_model=stage.holds_full_model,
            )
            for stage in self._partition.stages
        )
        common = LoadStage(
            model=self._model.digest,
            reply_to=reply_to,
            kv=settings.kv_cache.kv,
            prefix_memory_bytes=0,
            prefix_disk_bytes=self._disk_bytes,
            stages=stages,
            pipeline=self._partition.pipeline,
            last_position_only=inspected.last_position_only,
            batches=inspected.batches,
            prefill_chunk_tokens=settings.engine.prefill_chunk,
            uncached_in_caches=inspected.uncached_in_caches,
            whole_prompts=inspected.whole_prompts,
            reads_together=inspected.reads_together,
            streams_wait=settings.strategy.streams_wait,
            kv_copies=settings.recovery.kv_copies,
            profile=settings.strategy.policy == "measured",
            sources=sources,
            groups=self._groups,
            guessing=self._model.guessing,
        )
        return {
            worker: msgspec.structs.replace(common, prefix_memory_bytes=budget.prefix_bytes)
            for worker, budget in self.budgets.items()
        }

    @property
    def _groups(self) -> tuple[GroupPlan, ...]:
        """With a new secret each time."""
        cuts = {cut.ranks: cut.plan for cut in self._model.inspected.rank_cuts}
        transports = {group.workers: group.transport for group in self._settings.groups}
        return tuple(
            GroupPlan(
                route=group.route,
                layers=group.layers,
                cut=cuts[group.route.ranks],
                secret=secrets.token_hex(_SECRET_BYTES),
                transport=transports[group.route.workers],
            )
            for group in self._partition.groups
        )

    def progress(self, message: LoadProgress) -> StartProgress:
        """A worker read or fetched so much; what to tell who waits."""
        fetched, wanted = message.fetched_bytes, message.wanted_bytes
        if wanted and not message.loaded_bytes:
            text = f"{message.worker} fetches its part of the model: {amounts(fetched, wanted)}"
            return StartProgress(text=text, done=fetched, total=wanted)
        self._loaded_bytes[message.worker] = message.loaded_bytes
        total = sum(map(self._weights_bytes, self._partition.stages))
        loaded = min(sum(self._loaded_bytes.values()), total)
        if total - loaded < min(self._model.sizes.layers) // 2:  # no layer is missing anywhere
            return StartProgress(text=f"all weights are loaded ({amount(total)}); measuring what steps cost")
        return StartProgress(text=f"loading the model: {amounts(loaded, total)}", done=loaded, total=total)

    def loaded(self, message: Loaded, buffers: tuple[Buffer, ...]) -> None:
        """A worker has its part."""
        self._loaded_bytes[message.worker] = message.weights_bytes
        self._vocabulary_sizes.append(message.vocabulary_size)
        self._kept.loaded(message, buffers)
        self._speeds.loaded(message)
        if message.unmet is not None:
            self._unmet[message.worker] = message.unmet

    @property
    def unmet(self) -> dict[Route, str]:
        """Groups that the plan is without, since their ranks did not meet, as far as they have said so; why, as a clause."""
        return {
            group.route: f"{group.route} did not meet: {self._who_missed(group.route)}"
            for group in self._partition.groups
            if not self._unmet.keys().isdisjoint(group.route)
        }

    def _who_missed(self, route: Route) -> str:
        """In the words of the highest rank that knows, which is who comes to the others."""
        said = (self._unmet.get(worker) for worker in reversed(route.workers))
        return next(filter(None, said), "a rank went away")

    def _of_the_plan(self, found: Mapping[Route, _OfRoute]) -> dict[Route, _OfRoute]:
        """Without what those ranks said of a group who have met only each other."""
        return {route: of_route for route, of_route in found.items() if route not in self.unmet}

    def held(self, worker: str) -> tuple[LayerRange, ...]:
        """The layers that a worker has in memory once it has its part."""
        stage = next(stage for stage in self._partition.stages if stage.worker == worker)
        if stage.layers == NO_LAYERS:
            return ()
        return (LayerRange(0, len(self._model.sizes.layers)) if stage.holds_full_model else stage.layers,)

    def plan(self) -> Plan:
        """The plan, once every worker has its part."""
        nodes = [Node(name=name, memory_limit_bytes=self._limit_bytes(name)) for name in self._parts]
        whole = any(stage.holds_full_model for stage in self._partition.stages)
        return Plan(
            epoch=self.epoch,
            model=self._model,
            stages=self._partition.stages,
            pipeline=self._partition.pipeline,
            why_not=self._partition.why_not,
            shortage=None if whole else full_model_shortage(self._model.sizes, nodes),
            groups=groups_of(self._partition, self._model.sizes, self.unmet),
            vocabulary_size=min(self._vocabulary_sizes),
            budgets=self.budgets,
            needs=self._of_the_plan(self._kept.needs_with_drafts),
            drafts=self._kept.drafts,
            costs=self._of_the_plan(
                self._speeds.costs(self._fixed_chunk_tokens, streams_wait=self._settings.strategy.streams_wait)
            ),
            layer_speeds=self._speeds.layers,
            sums=self._of_the_plan(self._speeds.sums),
        )

    def known_prefixes(self) -> dict[Route, tuple[KnownPrefix, tuple[bytes, bytes]]]:
        """For each route's head, what all of its stages still have of past sequences."""
        if not self._settings.cache.prefix:
            return {}
        return {
            route: self._kept.known(route, self.budgets, self._disk_bytes, kv_copies=self._settings.recovery.kv_copies)
            for route in self._of_the_plan(self._kept.needs)
        }

    @property
    def _fixed_chunk_tokens(self) -> int | None:
        """Tokens in a chunk of a prompt where heads do not choose."""
        return MLX_LM_CHUNK_TOKENS if self._model.inspected.whole_prompts else self._settings.engine.prefill_chunk

    @property
    def _disk_bytes(self) -> int:
        """What one worker may keep on disk."""
        cache = self._settings.cache
        if not cache.prefix:
            return 0
        return DEFAULT_DISK_BYTES if cache.disk_limit is None else cache.disk_limit

    def _weights_bytes(self, stage: Stage) -> int:
        return self._partition.weights_bytes(self._model.sizes, stage)

    def _limit_bytes(self, worker: str) -> int:
        """For the model and its caches."""
        return max(self._parts[worker].memory_limit_bytes - self._model.draft_bytes, 0)

    def _budget(self, stage: Stage) -> WorkerBudget:
        return worker_budget(
            limit_bytes=self._limit_bytes(stage.worker),
            weights_bytes=self._weights_bytes(stage),
            prefix_limit=self._settings.cache.memory_limit,
            prefix=self._settings.cache.prefix,
        )
