"""From plans to everything that one worker needs to run its stages: model, executors, costs and speeds, kept prefixes.

Owns what is loaded, from one plan to the next: of the same model only weights that are missing are read, those that no
route here wants any more are given back, and executors of an unchanged range are emptied, not made anew. Exactly the
weights of the worker's layers are in memory, or of the full model where the plan says so. On the MLX thread; sends
nothing.
"""

import logging
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import mlx.core as mx
import msgspec

from protocol.errors import ModelError
from protocol.messages import KeptPrefix, LoadStage, PrepareStage
from protocol.model_digest import model_digest
from protocol.values import LayerRange, Peer, Route
from strategy.chunking import MLX_LM_CHUNK_TOKENS, ChunkCost
from strategy.copies import share
from strategy.cost import StageSpeed
from strategy.layer_speeds import LayerSpeeds
from strategy.memory import KvNeeds
from workers.cache.disk_tier import DiskTiers
from workers.cache.kv_memory import kv_needs
from workers.cache.prefix_store import PrefixStore
from workers.engine.executor import StageExecutor, StagePlace, Uncached
from workers.engine.grammar import Grammars
from workers.model.inspection import inspect
from workers.model.layer_parts import LayerUnits
from workers.model.payload import are_numbers
from workers.model.profile import KeptProfiles, Profile, Timer
from workers.model.shelf import LoadProgressed, ModelShelf
from workers.model.split_model import SplitModel
from workers.model.step_timing import ExecutorPlace, StepTimer

log = logging.getLogger(__name__)

MakeTimer = Callable[[SplitModel], Timer]

# Sequences whose caches are merged into one decode batch.
MAX_ROWS = 32
# A static cache's room where only its shape matters.
_SOME_TOKENS = 256


class NoNumbers(ModelError):
    """Some layers compute NaN or infinity, as with weights that are absent or damaged."""


class LoadedStages(msgspec.Struct, frozen=True, kw_only=True):
    """By route: how to run this worker's part of it, and what a prefill chunk costs where the route begins here.

    copied: the route of which another worker is given copies of what is kept here, None for none; max_rows: sequences in
    one batch; prefixes: what each route keeps of past sequences, in the order of loading, and how fast it runs; layers: what each
    takes, None where nobody asked; pipeline_layers: of each worker in the pipeline; read_bytes: of weights read from disk for this
    plan; vocabulary_size: token ids lie below it.
    """

    executors: dict[Route, StageExecutor] = {}
    chunk_costs: dict[Route, ChunkCost] = {}
    prefixes: tuple[KeptPrefix, ...] = ()
    layers: LayerSpeeds | None = None
    pipeline_layers: Mapping[str, LayerRange] = {}
    copied: Route | None = None
    max_rows: int = 1
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


@dataclass(frozen=True)
class _Open:
    """A model that is open: lazily, with the weights of some layers in memory."""

    digest: str
    path: Path
    model: SplitModel
    profile: Profile
    tiers: DiskTiers
    grammars: Grammars


class StageLoader:
    """See the module. shelf: where models lie; make_timer: makes what measures steps of a model, None for a `StepTimer`."""

    def __init__(self, shelf: ModelShelf, make_timer: MakeTimer | None = None):
        self._shelf = shelf
        self._make_timer = make_timer or StepTimer
        self._open: _Open | None = None
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
        """
        try:
            opened = self._opened(plan.model, _ranges(name, plan), plan.sources, progress)
            return self._load(name, plan, opened, progress)
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
    ) -> _Open:
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
            self._open = _Open(digest, path, model, profile, tiers, grammars)
        return self._open

    def _drop(self) -> None:
        for executor in self._executors.values():
            executor.clear()
            executor.prefixes.retire()
        self._executors, self._needs = {}, {}
        if self._open is not None:
            self._open.tiers.close()
        self._open = None
        mx.clear_cache()

    def _note(self) -> None:
        if self._open is None:
            self._held = (None, ())
        else:
            self._held = (self._open.digest, _merged(self._open.model.weights.held_layers()))

    def _load(self, name: str, plan: LoadStage, opened: _Open, progress: LoadProgressed) -> LoadedStages:
        model = opened.model
        routes = _routes_through(name, plan, model.num_layers)
        places = {route: _place(name, plan, route, layers) for route, layers in routes.items()}
        self._arrange(name, opened, plan, places)
        model.release(opened.path, routes.values())
        before = model.weights.num_bytes
        for place in places.values():
            self._warm_up(name, model, place, progress)
        read_bytes = model.weights.num_bytes - before
        batches = _batches(plan, model, places.values())
        profile = opened.profile
        if plan.profile:
            profile.take(list(places.values()), batches=batches)
        model.release(opened.path, routes.values())  # what some architectures read only to warm up
        self._attach_disks(plan, opened, places)
        chunk_costs = {route: profile.chunk_cost(place) for route, place in places.items() if route.head == name}
        log.info("read %d bytes of weights; chunks cost %s", read_bytes, chunk_costs)
        mx.clear_cache()
        executors = {route: self._executors[place] for route, place in places.items()}
        kept_bytes = sum(executor.prefixes.num_bytes for executor in executors.values())
        return LoadedStages(
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
            fixed_chunk_tokens=MLX_LM_CHUNK_TOKENS if plan.whole_prompts else plan.prefill_chunk_tokens,
            weights_bytes=max(model.weights.num_bytes, mx.get_active_memory() - kept_bytes),
            read_bytes=read_bytes,
            vocabulary_size=model.vocabulary_size,
        )

    def _arrange(self, name: str, opened: _Open, plan: LoadStage, places: dict[Route, ExecutorPlace]) -> None:
        """Executors for exactly these places; what those that go have kept is taken over where it suits."""
        gone = {place: self._executors.pop(place) for place in self._executors.keys() - set(places.values())}
        for route, place in places.items():
            memory_bytes, copy_bytes = _room(name, plan, route, len(places))
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

    def _warm_up(self, name: str, model: SplitModel, place: ExecutorPlace, progress: LoadProgressed) -> None:
        if place in self._needs:
            return
        before = model.weights.num_bytes
        if place.kv is not None and (reason := model.kv_kind(place.kv.kind).why_not(place.kv, place.stage.layers)):
            raise ModelError(f"kv_cache.kind {place.kv.kind!r} cannot be had: {reason}")
        caches, output = model.warm_up(place.stage.layers, place.kv, lambda num_bytes: progress(before + num_bytes))
        if not are_numbers(output):
            start, stop = place.stage.layers
            raise NoNumbers(
                f"{name} computes what is no number in layers {start} to {stop}: its copy of the model is damaged or not "
                "whole; get the model again there"
            )
        self._needs[place] = kv_needs(caches)

    def _attach_disks(self, plan: LoadStage, opened: _Open, places: dict[Route, ExecutorPlace]) -> None:
        for place in places.values():
            disk = None
            if plan.prefix_disk_bytes:
                disk = opened.tiers.open(
                    limit_bytes=plan.prefix_disk_bytes // len(places),
                    layers=place.stage.layers,
                    kv=plan.kv,
                    needs=self._needs[place],
                )
            self._executors[place].prefixes.attach(disk)
        if plan.prefix_disk_bytes:
            opened.tiers.remove_stale(limit_bytes=plan.prefix_disk_bytes * len(plan.stages))


def _routes_through(name: str, plan: LoadStage, num_layers: int) -> dict[Route, LayerRange]:
    """The routes that pass through this worker and its layers in each: all stages, where it has one, and itself alone where it
    holds the full model, which it does where the model cannot be cut.
    """
    own = next(stage for stage in plan.stages if stage.worker == name)
    routes = {} if plan.pipeline is None or name not in plan.pipeline.workers else {plan.pipeline: own.layers}
    if own.holds_full_model or plan.pipeline is None:
        routes[Route((name,))] = LayerRange(0, num_layers)
    return routes


def _ranges(name: str, plan: LoadStage) -> list[LayerRange]:
    """The ranges of layers that this worker needs, before the model is open."""
    return list(_routes_through(name, plan, max(stage.layers.end for stage in plan.stages)).values())


def _place(name: str, plan: LoadStage, route: Route, layers: LayerRange) -> ExecutorPlace:
    kv = plan.kv if plan.kv.kind != "dynamic" else None  # mlx-lm's own
    if kv is not None and kv.kind == "static":
        kv = msgspec.structs.replace(kv, max_tokens=_SOME_TOKENS)  # each sequence has its own
    return ExecutorPlace(StagePlace(layers, is_last=route.last == name), kv, plan.last_position_only, _uncached(plan))


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
