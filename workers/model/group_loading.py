"""The part of a model that this worker computes together with others, beside what it holds by itself.

Owns a second module tree of the open model, whose weights are this rank's parts. It stays while its group is in the plans, also one of
which somebody is missing; with each plan the ranks meet anew (`workers.tensor.company`). No more is read at once than one whole layer.
On the MLX thread.
"""

import math
from collections.abc import Mapping
from dataclasses import dataclass, replace

import mlx.core as mx
import msgspec

from protocol.messages import GroupPlan, KeptPrefix
from protocol.values import KvSettings, LayerRange, Route
from strategy.group_sums import GroupSums
from strategy.memory import KvNeeds
from strategy.stage_speed import StageSpeed
from workers.cache.disk_tier import DiskTiers
from workers.cache.kv_memory import kv_needs
from workers.cache.prefix_store import PrefixStore
from workers.engine.rank_executor import RankExecutor
from workers.model import loading
from workers.model.group_timing import GroupTimer
from workers.model.needed_exchanges import exchanges_for_caches
from workers.model.open_model import OpenModel
from workers.model.shelf import LoadProgressed
from workers.model.split_model import SplitModel
from workers.model.step_timing import ExecutorPlace, StepTimer
from workers.model.sum_timing import NotedGroup
from workers.model.warming import warmed_up
from workers.tensor.company import Company
from workers.tensor.cuts import apply
from workers.tensor.exchange import Exchange, silent
from workers.tensor.rank_cuts import cut_of


@dataclass(frozen=True)
class GroupPart:
    """What a worker has for its group. needs: of a sequence, for this rank's part of its caches; sums: None where nothing is exchanged."""

    route: Route
    rank: int
    kv: KvSettings | None
    model: SplitModel
    executor: RankExecutor
    needs: KvNeeds
    sums: GroupSums | None = None

    def speed(self, known: Mapping[ExecutorPlace, StageSpeed], *, batches: bool, most_tokens: int) -> StageSpeed:
        """Measured with all ranks of its stage, which have to do this at the same time. known: what runs on this worker alone; batches:
        sequences share steps; most_tokens: as of GroupTimer. Raises GroupBroken.
        """
        layers, timer = self.executor.prefixes.layers, StepTimer(self.model)
        widest = max(known.items(), key=lambda place: _width(place[0].layers), default=None)
        share = 1.0 if widest is None else _width(layers) / _width(widest[0].layers) / self.route.ranks
        found = GroupTimer(
            self.route,
            self.executor,
            lambda tokens: timer.received(layers, tokens),
            batches=batches,
            vocabulary_size=self.model.vocabulary_size,
            most_tokens=most_tokens,
        ).speed(None if widest is None else widest[1], share)
        with silent(self.model.model):
            return msgspec.structs.replace(found, payload_bytes=timer.payload_bytes(layers))

    def kept(self, speed: StageSpeed | None) -> KeptPrefix:
        """What the coordinator is told of it."""
        return KeptPrefix(route=self.route, needs=self.needs, speed=speed, sums=self.sums)

    def attach(self, tiers: DiskTiers, limit_bytes: int) -> None:
        """What is kept of past sequences goes to a disk, apart from what other ranks keep of them."""
        prefixes, rank = self.executor.prefixes, (self.rank, self.route.ranks)
        disk = tiers.open(limit_bytes=limit_bytes, layers=prefixes.layers, kv=self.kv, needs=self.needs, rank=rank)
        prefixes.attach(disk)


@dataclass(frozen=True)
class _Key:
    """What a part is made for; while it is equal, the part stays."""

    digest: str
    route: Route
    rank: int
    cut: str
    place: ExecutorPlace


class GroupLoader:
    """See the module. company: where the other ranks are met."""

    def __init__(self, company: Company):
        self.company = company
        self._key: _Key | None = None
        self._model: tuple[SplitModel, Exchange] | None = None
        self._part: GroupPart | None = None

    def __repr__(self) -> str:
        return f"GroupLoader({self._key})"

    @property
    def num_bytes(self) -> int:
        """Of the weights in memory."""
        return 0 if self._model is None else self._model[0].weights.num_bytes

    def clear(self) -> int:
        """Forget every sequence; the bytes of what is kept of past ones, which stays."""
        if self._part is None:
            return 0
        self._part.executor.clear()
        return self._part.executor.prefixes.num_bytes

    def drop(self) -> None:
        """Give back everything."""
        self.clear()
        if self._part is not None:
            self._part.executor.prefixes.retire()
        self._key = self._model = self._part = None
        mx.clear_cache()

    def load(
        self,
        plan: GroupPlan,
        name: str,
        opened: OpenModel,
        place: ExecutorPlace,
        memory_bytes: int,
        progress: LoadProgressed,
    ) -> GroupPart | None:
        """The part of this worker, where all of its group are there. memory_bytes: for what it keeps of past sequences; progress:
        told the bytes of weights in memory.

        Raises what reading raises, and GroupBroken.
        """
        key = _Key(opened.digest, plan.route, plan.route.rank_of(name), plan.cut, place)
        if key != self._key:
            self.drop()
            self._key = key
        group = self.company.group
        if group is None:
            return None
        before = opened.model.weights.num_bytes
        with self.company.awaiting(lambda: progress(before + self.num_bytes)):
            if self._model is None:
                self._model = self._opened(plan, opened)
            model, exchange = self._model
            exchange.group = noted = NotedGroup(group)
            # Also where it ran before, since all ranks have to take part where one of them is new.
            names = " or ".join(plan.route.together_with(name))
            told = before + self.num_bytes
            caches = warmed_up(names, model, place.layers, place.kv, lambda num_bytes: progress(told + num_bytes))
            sums = noted.timed()
            exchange.group = group
        if self._part is None:
            self._part = self._made(key, opened, kv_needs(caches))
        self._part.executor.prefixes.limit(memory_bytes=memory_bytes, copy_bytes=0)
        return replace(self._part, sums=sums)

    def _opened(self, plan: GroupPlan, opened: OpenModel) -> tuple[SplitModel, Exchange]:
        """With no weight read yet."""
        tree = loading.load(opened.path)
        assert self.company.group is not None
        exchange = apply(tree, cut_of(plan.cut), self.company.group)
        model = SplitModel(tree, opened.model.unused)
        model.limits_projection = opened.model.limits_projection
        return model, exchange

    def _made(self, key: _Key, opened: OpenModel, needs: KvNeeds) -> GroupPart:
        assert self._model is not None
        (model, exchange), place = self._model, key.place
        is_last = place.stage.is_last  # other stages pass on what their last layer makes
        store = PrefixStore(model, place.layers, memory_bytes=0, kv=place.kv)
        executor = RankExecutor(
            model,
            place.stage,
            last_position_only=place.last_position_only,
            prefixes=store,
            kv=place.kv,
            uncached=place.uncached,
            grammars=opened.grammars,
            exchange=exchange,
            num_for_caches=exchanges_for_caches(model, exchange, place.layers, place.kv) if is_last else math.inf,
        )
        return GroupPart(key.route, key.rank, place.kv, model, executor, needs)


def _width(layers: LayerRange) -> int:
    return layers.end - layers.start
