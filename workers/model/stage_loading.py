"""From a plan to everything that one worker needs to run its stages: model, executors, costs, kept prefixes.

Reads exactly the weights of the worker's layers, or of the full model where the plan says so, and measures what prefill
chunks cost here. On the MLX thread; sends nothing.
"""

import functools
import logging
import time
from collections.abc import Callable

import mlx.core as mx
import msgspec

from protocol.errors import ModelError
from protocol.messages import KeptPrefix, LoadStage
from protocol.model_digest import model_digest
from protocol.values import KvSettings, LayerRange, Route
from strategy.chunking import ChunkCost
from workers.cache.disk_tier import DiskTier, remove_stale, signature
from workers.cache.kv_memory import kv_needs
from workers.cache.prefix_store import PrefixStore
from workers.engine.executor import MLX_LM_CHUNK_TOKENS, Stage, StageExecutor, Uncached
from workers.model.inspection import inspect
from workers.model.shelf import ModelShelf
from workers.model.split_model import SplitModel

log = logging.getLogger(__name__)

# Chunks tried at load, smallest first: two, and more until they took this long.
_TRIED_CHUNKS = (16, 32, 64, 128, 256, 512)
_TRIED_CHUNKS_S = 0.4
# Where chunks have a fixed size, nobody asks what they cost.
_UNMEASURED = ChunkCost(0.0, 0.0)
# Sequences whose caches are merged into one decode batch.
MAX_ROWS = 32
# A static cache's room where only its shape matters.
_SOME_TOKENS = 256


class LoadedStages(msgspec.Struct, frozen=True, kw_only=True):
    """By route: how to run this worker's part of it, and what a prefill chunk costs where the route begins here.

    max_rows: sequences in one batch; prefixes: what each route keeps of past sequences, in the order of loading.
    """

    executors: dict[Route, StageExecutor] = {}
    chunk_costs: dict[Route, ChunkCost] = {}
    prefixes: tuple[KeptPrefix, ...] = ()
    max_rows: int = 1
    fixed_chunk_tokens: int | None = None
    weights_bytes: int = 0

    def flush(self) -> None:
        """Put on disk what past sequences left."""
        for executor in self.executors.values():
            executor.prefixes.flush()


def load_stages(name: str, plan: LoadStage, shelf: ModelShelf, progress: Callable[[int], None]) -> LoadedStages:
    """Load the stages of the worker `name`. progress: told the bytes read so far.

    Raises:
        ModelError: mlx-lm cannot use the model, or the model does not allow the kind of cache.
        RuntimeError, ValueError, MemoryError: what MLX raises while it reads the weights.
    """
    if mx.metal.is_available():  # keep weights resident on the GPU, as mlx-lm does while it generates
        mx.set_wired_limit(int(mx.device_info()["max_recommended_working_set_size"]))
    path = shelf.place(plan.model)
    model = SplitModel.load(path)
    model.unused = inspect(path, shelf.cache).unused
    routes = _routes_through(name, plan, model.num_layers)
    kv = _kv_settings(plan, model, list(routes.values()))
    fixed_chunk_tokens = MLX_LM_CHUNK_TOKENS if plan.whole_prompts else plan.prefill_chunk_tokens
    executors, prefixes, chunk_costs = {}, [], {}
    for route, layers in routes.items():
        needs = kv_needs(model.warm_up(layers, kv, lambda: progress(mx.get_active_memory())))
        kept = _prefix_store(plan, shelf, model, layers, num_routes=len(routes), needs=needs)
        stage = Stage(layers, is_last=route.last == name)
        executors[route] = StageExecutor(
            model, stage, last_position_only=plan.last_position_only, prefixes=kept, kv=kv, uncached=_uncached(plan)
        )
        prefixes.append(KeptPrefix(route=route, needs=needs))
        if route.head == name:
            run = functools.partial(_measure_chunk, model, layers, last_position_only=plan.last_position_only)
            chunk_costs[route] = _UNMEASURED if fixed_chunk_tokens else chunk_cost(run)
            log.info("chunks of layers %s cost %s", layers, chunk_costs[route])
    mx.clear_cache()
    batches = plan.batches and (kv is None or model.kv_kind(kv.kind).batches(kv))
    return LoadedStages(
        executors=executors,
        chunk_costs=chunk_costs,
        prefixes=tuple(prefixes),
        max_rows=MAX_ROWS if batches else 1,
        fixed_chunk_tokens=fixed_chunk_tokens,
        weights_bytes=mx.get_active_memory(),
    )


def _routes_through(name: str, plan: LoadStage, num_layers: int) -> dict[Route, LayerRange]:
    """The routes that pass through this worker and its layers in each: all stages, and itself alone where it holds the
    full model.
    """
    own = next(stage for stage in plan.stages if stage.worker == name)
    routes = {} if plan.pipeline is None else {plan.pipeline: own.layers}
    if own.holds_full_model:
        routes[Route((name,))] = LayerRange(0, num_layers)
    return routes


def _uncached(plan: LoadStage) -> Uncached:
    """How passes without a KV cache run under this plan."""
    if not plan.uncached_in_caches:
        return Uncached.PLAIN
    return Uncached.AS_MLX_LM if plan.whole_prompts else Uncached.IN_CACHES


def _kv_settings(plan: LoadStage, model: SplitModel, ranges: list[LayerRange]) -> KvSettings | None:
    """The plan's kind of cache, None for mlx-lm's own."""
    if plan.kv.kind == "dynamic":
        return None
    kv = plan.kv
    if kv.kind == "static":
        kv = msgspec.structs.replace(kv, max_tokens=_SOME_TOKENS)  # each sequence has its own
    for layers in ranges:
        if reason := model.kv_kind(kv.kind).why_not(kv, layers):
            raise ModelError(f"kv_cache.kind {kv.kind!r} cannot be had: {reason}")
    return kv


def _prefix_store(
    plan: LoadStage, shelf: ModelShelf, model: SplitModel, layers: LayerRange, *, num_routes: int, needs: msgspec.Struct
) -> PrefixStore:
    disk = None
    if plan.prefix_disk_bytes:
        content = model_digest(shelf.place(plan.model), with_times=True)
        folder = f"{content}-{signature(layers=layers, kv=plan.kv, needs=needs)}"
        root = shelf.cache / "kv"
        disk = DiskTier(root / folder, limit_bytes=plan.prefix_disk_bytes // num_routes)
        remove_stale(root, content, limit_bytes=plan.prefix_disk_bytes * len(plan.stages))
    return PrefixStore(model, layers, memory_bytes=plan.prefix_memory_bytes // num_routes, disk=disk)


def chunk_cost(measure: Callable[[int], float]) -> ChunkCost:
    """What chunks cost here, from a few short runs. measure: runs a chunk of so many tokens and gives its seconds.

    Each size is tried twice, some time apart, and its faster run counts: other workers load at the same time.
    """
    measure(_TRIED_CHUNKS[0])  # the first run of all is never like the others
    first: dict[int, float] = {}
    for num_tokens in _TRIED_CHUNKS:
        first[num_tokens] = measure(num_tokens)
        if len(first) > 1 and sum(first.values()) > _TRIED_CHUNKS_S:
            break
    return ChunkCost.fit([(num_tokens, min(seconds, measure(num_tokens))) for num_tokens, seconds in first.items()])


def _measure_chunk(model: SplitModel, layers: LayerRange, num_tokens: int, *, last_position_only: bool) -> float:
    tokens = mx.zeros((1, num_tokens), mx.int32)
    cache = model.make_cache(layers)
    started = time.perf_counter()
    model.evaluate(model.forward(tokens, layers=layers, cache=cache, last_position_only=last_position_only), cache)
    return time.perf_counter() - started
