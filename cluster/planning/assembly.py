"""One plan on its way: what each worker is told to load, what they answer, and the frozen plan that comes of it.

Owns what is known of one epoch until it is in force. Sends nothing.
"""

from collections.abc import Mapping
from typing import NamedTuple

import msgspec

from cluster.planning.kept_prefixes import KeptPrefixes
from cluster.planning.plan import ModelFacts, Plan
from cluster.planning.route_costs import MeasuredSpeeds
from cluster.settings import Settings
from protocol.messages import KnownPrefix, Loaded, LoadProgress, LoadStage, StagePlan
from protocol.values import Buffer, LayerRange, Peer, Route
from strategy.chunking import MLX_LM_CHUNK_TOKENS
from strategy.memory import DEFAULT_DISK_BYTES, WorkerBudget, worker_budget
from strategy.partition import Node, Partition, Stage, full_model_shortage


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
        self.budgets = {stage.worker: self._budget(stage) for stage in found.stages}

    def __repr__(self) -> str:
        return f"Assembly(epoch {self.epoch}, {len(self._loaded_bytes)} workers)"

    @property
    def workers(self) -> tuple[str, ...]:
        return tuple(stage.worker for stage in self._partition.stages)

    @property
    def described(self) -> str:
        """Who holds what, for people."""
        held = [
            f"{stage.worker} layers {stage.layers.start}-{stage.layers.end - 1}" for stage in self._partition.stages
        ]
        return ", ".join(held)

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
            kv_copies=settings.recovery.kv_copies,
            profile=settings.strategy.policy == "measured",
            sources=sources,
        )
        return {
            worker: msgspec.structs.replace(common, prefix_memory_bytes=budget.prefix_bytes)
            for worker, budget in self.budgets.items()
        }

    def progress(self, message: LoadProgress) -> str:
        """A worker read or fetched so much; what to tell who waits."""
        if message.wanted_bytes and not message.loaded_bytes:
            fetched, wanted = message.fetched_bytes / 1e9, message.wanted_bytes / 1e9
            return f"{message.worker} fetches its part of the model: {fetched:.1f} of {wanted:.1f} GB"
        self._loaded_bytes[message.worker] = message.loaded_bytes
        total = sum(map(self._weights_bytes, self._partition.stages))
        loaded = min(sum(self._loaded_bytes.values()), total)
        return f"loading the model: {loaded / 1e9:.1f} of {total / 1e9:.1f} GB"

    def loaded(self, message: Loaded, buffers: tuple[Buffer, ...]) -> None:
        """A worker has its part."""
        self._loaded_bytes[message.worker] = message.weights_bytes
        self._vocabulary_sizes.append(message.vocabulary_size)
        self._kept.loaded(message, buffers)
        self._speeds.loaded(message)

    def held(self, worker: str) -> tuple[LayerRange, ...]:
        """The layers that a worker has in memory once it has its part."""
        stage = next(stage for stage in self._partition.stages if stage.worker == worker)
        return (LayerRange(0, len(self._model.sizes.layers)) if stage.holds_full_model else stage.layers,)

    def plan(self) -> Plan:
        """The plan, once every worker has its part."""
        nodes = [Node(name=name, memory_limit_bytes=part.memory_limit_bytes) for name, part in self._parts.items()]
        whole = any(stage.holds_full_model for stage in self._partition.stages)
        return Plan(
            epoch=self.epoch,
            model=self._model,
            stages=self._partition.stages,
            pipeline=self._partition.pipeline,
            why_not=self._partition.why_not,
            shortage=None if whole else full_model_shortage(self._model.sizes, nodes),
            vocabulary_size=min(self._vocabulary_sizes),
            budgets=self.budgets,
            needs=self._kept.needs,
            costs=self._speeds.costs(self._fixed_chunk_tokens),
            layer_speeds=self._speeds.layers,
        )

    def known_prefixes(self) -> dict[Route, tuple[KnownPrefix, tuple[bytes, bytes]]]:
        """For each route's head, what all of its stages still have of past sequences."""
        if not self._settings.cache.prefix:
            return {}
        return {
            route: self._kept.known(route, self.budgets, self._disk_bytes, kv_copies=self._settings.recovery.kv_copies)
            for route in self._kept.needs
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
        return self._model.sizes.total if stage.holds_full_model else stage.weights_bytes

    def _budget(self, stage: Stage) -> WorkerBudget:
        return worker_budget(
            limit_bytes=self._parts[stage.worker].memory_limit_bytes,
            weights_bytes=self._weights_bytes(stage),
            prefix_limit=self._settings.cache.memory_limit,
            prefix=self._settings.cache.prefix,
        )
