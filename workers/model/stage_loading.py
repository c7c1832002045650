"""From plans to everything that one worker needs to run its stages: model, executors, costs and speeds, kept prefixes.

Owns what is loaded, from one plan to the next: of the same model only weights that are missing are read, those that no
route here wants any more are given back, and executors of an unchanged range are emptied, not made anew. Exactly the
weights of the worker's layers are in memory, or of the full model where the plan says so. On the MLX thread; sends
nothing.
"""

import logging
from collections.abc import Callable, Iterable, Mapping, Sequence

import mlx.core as mx
import msgspec

from protocol.errors import ModelError
from protocol.messages import GroupPlan, KeptPrefix, LoadStage, PrepareStage
from protocol.model_digest import model_digest
from protocol.values import LayerRange, Peer, Route
from strategy.chunking import MLX_LM_CHUNK_TOKENS, ChunkCost
from strategy.copies import share
from strategy.layer_speeds import LayerSpeeds
from strategy.memory import KvNeeds
from strategy.stage_speed import StageSpeed
from workers.cache.disk_tier import DiskTiers
from workers.cache.kv_memory import kv_needs
from workers.cache.prefix_store import PrefixStore
from workers.drafting.guessers import Guessers
from workers.engine.executor import StageExecutor, StagePlace, Uncached
from workers.engine.grammar import Grammars
from workers.model.group_loading import GroupLoader
from workers.model.inspection import inspect
from workers.model.layer_parts import LayerUnits
from workers.model.open_model import OpenModel
from workers.model.profile import KeptProfiles, Profile, Timer
from workers.model.shelf import LoadProgressed, ModelShelf
from workers.model.split_model import SplitModel
from workers.model.step_timing import ExecutorPlace, StepTimer
from workers.model.warming import NoNumbers, warmed_up
from workers.tensor.company import Company
from workers.tensor.group import TensorGroup

log = logging.getLogger(__name__)

MakeTimer = Callable[[SplitModel], Timer]

# Sequences whose caches are merged into one decode batch.
MAX_ROWS = 32
# A static cache's room where only its shape matters.
_SOME_TOKENS = 256


class LoadedStages(msgspec.Struct, frozen=True, kw_only=True):
    """By route: how to run this worker's part of it, and what a prefill chunk costs where the route begins here.

    copied: the route of which another worker is given copies of what is kept here, None for none; guessers: who guess next tokens; max_rows: sequences in
    one batch; reads_together: prompts can be read in one step; streams_wait: see `ChunkSize`; groups: to the other ranks of routes that are computed together; prefixes: what each route keeps of past sequences, in the order of loading, and how fast it runs; layers: what each
    takes, None where nobody asked; pipeline_layers: of each worker in the pipeline; read_bytes: of weights read from disk for this
    plan; vocabulary_size: token ids lie below it.
    """

    executors: dict[Route, StageExecutor] = {}
    chunk_costs: dict[Route, ChunkCost] = {}
    prefixes: tuple[KeptPrefix, ...] = ()
    layers: LayerSpeeds | None = None
    pipeline_layers: Mapping[str, LayerRange] = {}
    groups: Mapping[Route, TensorGroup] = {}
    copied: Route | None = None
    guessers: Guessers | None = None
    max_rows: int = 1
    reads_together: bool = False
    streams_wait: bool = False
    fixed_chunk_tokens: int | None = None
    weights_bytes: int = 0
    read_bytes: int = 0
    vocabulary_size: int = 0

    @property
    def speeds(self) -> dict[Route, StageSpeed]:
        """Of the routes that were measured."""
        return {prefix.route: prefix.speed for prefix in self.prefixes if prefix.speed is not None}

    def needs_of(self, route: Route) -> KvNeeds | None:
        """What a sequence's caches take here on a route; None where it is not loaded."""
        return next((prefix.needs for prefix in self.prefixes if prefix.route == route), None)

    def flush(self, is_over: Callable[[], bool] = lambda: False) -> None:
        """Put on disk what past sequences left, until `is_over`."""
        for executor in self.executors.values():
            executor.prefixes.flush(is_over)


class StageLoader:
    """See the module. shelf: where models lie; make_timer: makes what measures steps of a model, None for a `StepTimer`; company: where
    the other ranks of groups are met, None where there are none.
    """

    def __init__(self, shelf: ModelShelf, make_timer: MakeTimer | None = None, company: Company | None = None):
        self._shelf = shelf
        self._make_timer = make_timer or StepTimer
        self.company = company or Company(None, lambda: False)
        self._groups = GroupLoader(self.company)
        self._open: OpenModel | None = None
        self._executors: dict[ExecutorPlace, StageExecutor] = {}
        self._needs: dict[ExecutorPlace, KvNeeds] = {}
        self._held: tuple[str | None, tuple[LayerRange, ...]] = (None, ())

    def __repr__(self) -> str:
        return f"StageLoader({self._held}, {len(self._executors)} executors)"

    @property
    def held(self) -> tuple[str | None, tuple[LayerRange, ...]]:
        """The digest of the model that is open and which of its layers are in memory; readable from any thread."""
        return self._held

    def load(self, name: str, plan: LoadStage, progress: LoadProgressed) -> LoadedStages:
        """Come to what the plan wants of the worker `name`. progress: told the bytes of weights in memory.

        After an error the next plan can be loaded.

        Raises:
            ModelError: mlx-lm cannot use the model, or the model does not allow the kind of cache.
            NoNumbers: see there; nothing stays loaded.
            RuntimeError, ValueError, MemoryError: what MLX raises while it reads the weights; nothing stays loaded.
            GroupBroken, Overtaken: the other ranks of its group went, or something newer is wanted.
        """
        try:
            group = self.company.renew(name, plan)
            opened = self._opened(plan.model, _ranges(name, plan, group), plan.sources, progress)
            return self._load(name, plan, opened, group, progress)
        except (RuntimeError, ValueError, MemoryError, NoNumbers):
            self._drop()  # an array whose reading failed cannot be read again
            raise
        finally:
            self._note()

    def prepare(self, message: PrepareStage, progress: LoadProgressed) -> int:
        """Read the weights of layers in advance of a plan; returns their bytes. progress: as in `load`.

        Raises:
            ModelError: mlx-lm cannot use the model, or another one is in use here.
            RuntimeError, ValueError, MemoryError: what MLX raises while it reads the weights.
        """
        if self._open is not None and self._open.digest != message.model and self._executors:
            raise ModelError("another model is in use here; it is replaced when a plan asks for this one")
        model = self._opened(message.model, [message.layers], message.sources, progress).model
        before = model.weights.num_bytes
        try:
            return model.read(message.layers, lambda num_bytes: progress(before + num_bytes))
        finally:
            self._note()

    def _opened(
        self, digest: str, ranges: Sequence[LayerRange], sources: Sequence[Peer], progress: LoadProgressed
    ) -> OpenModel:
        """The model, opened if another one or none was, with what these ranges need of it; another one is dropped first."""
        path = self._shelf.ensure(digest, ranges, sources, progress)
        if self._open is None or self._open.digest != digest:
            self._drop()
            model = SplitModel.load(path)
            found = inspect(path, self._shelf.cache)
            model.unused, model.limits_projection = found.unused, found.last_position_only
            profile = Profile(
                self._make_timer(model),
                LayerUnits(model.layers, found.legal_cuts),
                KeptProfiles(self._shelf.cache / "profiles", digest),
                context_tokens=found.context_tokens,
            )
            tiers = DiskTiers(self._shelf.cache / "kv", model_digest(path, with_times=True))
            grammars = Grammars(path / "tokenizer.json", lambda: model.vocabulary_size)
            self._open = OpenModel(digest, path, model, profile, tiers, grammars)
        return self._open

    def _drop(self) -> None:
        for executor in self._executors.values():
            executor.clear()
            executor.prefixes.retire()
        self._executors, self._needs = {}, {}
        self._groups.drop()
        if self._open is not None:
            self._open.tiers.close()
        self._open = None
        mx.clear_cache()

    def _note(self) -> None:
        if self._open is None:
            self._held = (None, ())
        else:
            self._held = (self._open.digest, _merged(self._open.model.weights.held_layers()))

    def _load(
        self, name: str, plan: LoadStage, opened: OpenModel, group: GroupPlan | None, progress: LoadProgressed
    ) -> LoadedStages:
        model, profile = opened.model, opened.profile
        if group is None:
            self._groups.drop()
        places = self._arranged(name, opened, plan, has_part=group is not None)
        before = model.weights.num_bytes
        for place in places.values():
            self._warm_up(name, model, place, progress)
        read_bytes = model.weights.num_bytes - before
        batches = _batches(plan, model, places.values())
        if plan.profile:
            profile.take(list(places.values()), batches=batches)
        model.release(opened.path, [place.layers for place in places.values()])  # what some read only to warm up
        self._attach_disks(plan, opened, places, len(places) + (group is not None))
        chunk_costs = {route: profile.chunk_cost(place) for route, place in places.items() if route.head == name}
        log.info("read %d bytes of weights; chunks cost %s", read_bytes, chunk_costs)
        mx.clear_cache()
        executors = {route: self._executors[place] for route, place in places.items()}
        kept_bytes = self._groups.clear() + sum(executor.prefixes.num_bytes for executor in executors.values())
        stages = LoadedStages(
            executors=executors,
            chunk_costs=chunk_costs,
            prefixes=tuple(
                KeptPrefix(route=route, needs=self._needs[place], speed=profile.speeds.get(place))
                for route, place in places.items()
            ),
            layers=profile.layers,
            pipeline_layers=_pipeline_layers(plan),
            copied=_copied(plan),
            max_rows=MAX_ROWS if batches else 1,
            reads_together=batches and plan.reads_together,
            streams_wait=plan.streams_wait,
            fixed_chunk_tokens=MLX_LM_CHUNK_TOKENS if plan.whole_prompts else plan.prefill_chunk_tokens,
            weights_bytes=max(model.weights.num_bytes, mx.get_active_memory() - kept_bytes),
            read_bytes=read_bytes,
            vocabulary_size=model.vocabulary_size,
        )
        return stages if group is None else self._with_part(stages, name, plan, group, opened, progress)

    def _with_part(
        self,
        stages: LoadedStages,
        name: str,
        plan: LoadStage,
        group: GroupPlan,
        opened: OpenModel,
        progress: LoadProgressed,
    ) -> LoadedStages:
        """With this worker's part of what it computes together with others, where they are there."""
        place = _place(name, plan, group.route, group.layers_of(name))
        num_routes, before = len(stages.executors) + 1, self._groups.num_bytes
        part = self._groups.load(group, name, opened, place, plan.prefix_memory_bytes // num_routes, progress)
        if part is None or self.company.group is None:
            return stages
        if plan.prefix_disk_bytes:
            part.attach(opened.tiers, plan.prefix_disk_bytes // num_routes)
        is_timed = plan.profile or not stages.executors  # nothing else says what a chunk takes
        speed = (
            part.speed(opened.profile.speeds, batches=stages.max_rows > 1, most_tokens=opened.profile.long_tokens)
            if is_timed
            else None
        )
        costs = stages.chunk_costs
        if part.route.head == name:
            chunk = (
                opened.profile.part_cost(place, group.route.ranks, self._executors) if speed is None else speed.chunk
            )
            costs = {**costs, part.route: chunk}
        read_bytes = self._groups.num_bytes - before
        weights_bytes = opened.model.weights.num_bytes + self._groups.num_bytes
        return msgspec.structs.replace(
            stages,
            executors={**stages.executors, part.route: part.executor},
            chunk_costs=costs,
            prefixes=(*stages.prefixes, part.kept(speed if plan.profile else None)),
            groups={part.route: self.company.group},
            weights_bytes=max(stages.weights_bytes, weights_bytes),
            read_bytes=stages.read_bytes + read_bytes,
        )

    def _arranged(self, name: str, opened: OpenModel, plan: LoadStage, *, has_part: bool) -> dict[Route, ExecutorPlace]:
        """The worker's places in a plan, with executors for exactly these; what those that go have kept is taken over where it suits."""
        routes = _routes_through(name, plan, opened.model.num_layers)
        places = {route: _place(name, plan, route, layers) for route, layers in routes.items()}
        num_routes = len(places) + has_part
        gone = {place: self._executors.pop(place) for place in self._executors.keys() - set(places.values())}
        for route, place in places.items():
            memory_bytes, copy_bytes = _room(name, plan, route, num_routes)
            if place in self._executors:
                self._executors[place].clear()
                self._executors[place].prefixes.limit(memory_bytes=memory_bytes, copy_bytes=copy_bytes)
            else:
                store = PrefixStore(
                    opened.model, place.stage.layers, memory_bytes=memory_bytes, copy_bytes=copy_bytes, kv=place.kv
                )
                self._executors[place] = StageExecutor(
                    opened.model,
                    place.stage,
                    last_position_only=place.last_position_only,
                    prefixes=store,
                    kv=place.kv,
                    uncached=place.uncached,
                    grammars=opened.grammars,
                )
            for earlier, executor in gone.items():
                if earlier.kv == place.kv:
                    self._executors[place].prefixes.take_over(executor.prefixes)
        for executor in gone.values():
            executor.clear()
            executor.prefixes.retire()
        self._needs = {place: needs for place, needs in self._needs.items() if place in self._executors}
        opened.model.release(opened.path, routes.values())
        return places

    def _warm_up(self, name: str, model: SplitModel, place: ExecutorPlace, progress: LoadProgressed) -> None:
        if place in self._needs:
            return
        before = model.weights.num_bytes
        caches = warmed_up(name, model, place.layers, place.kv, lambda num_bytes: progress(before + num_bytes))
        self._needs[place] = kv_needs(caches)

    def _attach_disks(
        self, plan: LoadStage, opened: OpenModel, places: dict[Route, ExecutorPlace], num_routes: int
    ) -> None:
        for place in places.values():
            disk = None
            if plan.prefix_disk_bytes:
                disk = opened.tiers.open(
                    limit_bytes=plan.prefix_disk_bytes // num_routes,
                    layers=place.stage.layers,
                    kv=plan.kv,
                    needs=self._needs[place],
                )
            self._executors[place].prefixes.attach(disk)
        if plan.prefix_disk_bytes:
            opened.tiers.remove_stale(limit_bytes=plan.prefix_disk_bytes * len(plan.stages))


def _routes_through(name: str, plan: LoadStage, num_layers: int) -> dict[Route, LayerRange]:
    """The routes that pass through this worker and its layers in each: all stages, where it has one, and itself alone where it
    holds the full model.
    """
    own = next(stage for stage in plan.stages if stage.worker == name)
    routes = {} if plan.pipeline is None or name not in plan.pipeline.workers else {plan.pipeline: own.layers}
    if own.holds_full_model:
        routes[Route((name,))] = LayerRange(0, num_layers)
    return routes


def _ranges(name: str, plan: LoadStage, group: GroupPlan | None) -> list[LayerRange]:
    """The ranges of layers that this worker needs, before the model is open."""
    num_layers = max(stage.layers.end for stage in plan.stages)
    ranges = list(_routes_through(name, plan, num_layers).values())
    return ranges if group is None else [*ranges, group.layers_of(name)]


def _place(name: str, plan: LoadStage, route: Route, layers: LayerRange) -> ExecutorPlace:
    kv = plan.kv if plan.kv.kind != "dynamic" else None  # mlx-lm's own
    if kv is not None and kv.kind == "static":
        kv = msgspec.structs.replace(kv, max_tokens=_SOME_TOKENS)  # each sequence has its own
    is_last = route.is_in_last_stage(name)
    stage = StagePlace(layers, is_last, is_silent=is_last and route.last != name)
    return ExecutorPlace(stage, kv, plan.last_position_only, _uncached(plan))


def _batches(plan: LoadStage, model: SplitModel, places: Iterable[ExecutorPlace]) -> bool:
    """Whether sequences can share steps here."""
    kinds = [place.kv for place in places if place.kv is not None]
    return plan.batches and all(model.kv_kind(kv.kind).batches(kv) for kv in kinds)


def _pipeline_layers(plan: LoadStage) -> dict[str, LayerRange]:
    """Of each worker that has a stage in the pipeline."""
    workers = () if plan.pipeline is None else plan.pipeline.workers
    return {stage.worker: stage.layers for stage in plan.stages if stage.worker in workers}


def _copied(plan: LoadStage) -> Route | None:
    """The route of which another worker is given copies."""
    return plan.pipeline if plan.kv_copies and plan.pipeline is not None and not plan.pipeline.is_single else None


def _uncached(plan: LoadStage) -> Uncached:
    """How passes without a KV cache run under this plan."""
    if not plan.uncached_in_caches:
        return Uncached.PLAIN
    return Uncached.AS_MLX_LM if plan.whole_prompts else Uncached.IN_CACHES


def _room(name: str, plan: LoadStage, route: Route, num_routes: int) -> tuple[int, int]:
    """Bytes of memory for what a route keeps of past sequences, and for copies of what its other stages keep."""
    num_bytes = plan.prefix_memory_bytes // num_routes
    own_bytes = share(num_bytes, route, name) if plan.kv_copies and route == plan.pipeline else num_bytes
    return own_bytes, num_bytes - own_bytes


def _merged(layers: Iterable[int]) -> tuple[LayerRange, ...]:
    """Ascending indices as half-open ranges."""
    ranges: list[LayerRange] = []
    for index in layers:
        if ranges and ranges[-1][1] == index:
            ranges[-1] = LayerRange(ranges[-1][0], index + 1)
        else:
            ranges.append(LayerRange(index, index + 1))
    return tuple(ranges)
