"""What would become of a model here, said before anything of it is loaded: `doctor MODEL`.

Plans as a start does, with the workers of the cluster that runs or, where none does, those of the configuration on this machine.
"""

import sys
import tempfile
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import msgspec

from cluster.cli.session import Session
from cluster.cli.showing import layers_text, size_text
from cluster.cli.workers_code import run_workers_code
from cluster.membership.local import default_memory_limit
from cluster.planning.hub import cached, outline
from cluster.planning.known_model import KnownModel
from cluster.planning.model_files import check_weights, kinds_of_numbers, read_config, resolve_model
from cluster.serving.findings import Finding
from cluster.settings import Settings
from protocol.messages import Inspected
from protocol.model_search import model_name
from protocol.values import LayerRange
from strategy.grouping import beside_groups, groups_of
from strategy.memory import caches_bytes, worker_budget
from strategy.partition import ModelSizes, Node, NoPlan, Partition, Stage, partition
from strategy.vocabulary import NO_LAYERS

_HALF = {"BF16": "bfloat16", "F16": "float16"}


def foresee(session: Session, settings: Settings, *, counts_running: bool) -> Iterator[Finding]:
    """Findings about the model of these settings, the plan of it and what to do next last. counts_running: plan with the workers of
    the cluster that runs, if one does.

    Raises TandemError where nothing can be said.
    """
    location = settings.model.path
    nodes, unknown = _nodes(settings, session.status()["workers"] if counts_running else [])
    path = Path(location) if Path(location).is_absolute() else cached(location)
    if path is not None:
        yield from _of_directory(session, settings, resolve_model(str(path)), model_name(path), nodes)
    else:
        with tempfile.TemporaryDirectory() as folder:
            outline(location, Path(folder))
            yield from _of_directory(session, settings, resolve_model(folder), location, nodes)
        yield Finding(verdict="ok", text="not downloaded yet: a start does that, or `./launch.sh models pull`")
    if unknown:
        text = f"not counted, since only a start asks how much memory they have: {', '.join(unknown)}"
        yield Finding(verdict="warning", text=text)
    yield Finding(verdict="next", text=f"`./launch.sh start --model {location}` loads it")


def _of_directory(
    session: Session, settings: Settings, path: Path, name: str, nodes: Sequence[Node]
) -> Iterator[Finding]:
    check_weights(path)
    kv = msgspec.json.encode(settings.kv_cache.kv).decode()
    words = ["--model", str(path), "--cache", str(session.home.cache), "--kv", kv]
    if settings.groups:
        words += ["--ranks", *map(str, settings.group_ranks)]
    found = run_workers_code(session, "workers.model.outlook", words, Inspected, fails=f"{name} cannot be examined")
    sizes = KnownModel(path, "", settings).inspected(found).sizes
    context = "" if found.context_tokens is None else f", context of {found.context_tokens:,} tokens"
    text = (
        f"model {name}: {found.architecture}, {found.num_layers} layers, {size_text(sizes.total)} of weights{context}"
    )
    yield Finding(verdict="ok", text=text)
    yield from slow_formats(kinds_of_numbers(path), has_quantization=bool(read_config(path).get("quantization")))
    yield _cuts(found)
    yield from plan_of(found, sizes, nodes, settings)


def slow_formats(kinds: dict[str, int], *, has_quantization: bool, platform: str = sys.platform) -> Iterator[Finding]:
    """What of the weights' kinds of numbers has no fast path on this machine."""
    half = next((_HALF[kind] for kind in kinds if kind in _HALF), None)
    if platform != "linux" or half is None:
        return
    if has_quantization:
        cost = f"quantized with scales in {half}, which MLX multiplies about ten times slower than with float32 scales"
        remedy = "`python -m mlx_lm convert -q --dtype float32`"
    else:
        cost = f"{half} has no fast path: prompts are read about seven times slower than in float32, answers take a third longer"
        remedy = "`python -m mlx_lm convert --dtype float32`, which takes twice the memory"
    yield Finding(
        verdict="warning", text=f"on this machine's CPU: {cost}; convert it with {remedy} (Macs are not concerned)"
    )


def _cuts(found: Inspected) -> Finding:
    if found.why_not is not None:
        return Finding(
            verdict="warning", text=f"it cannot be split: {found.why_not}; each worker needs room for all of it"
        )
    cuts, most = len(found.legal_cuts), found.num_layers - 1
    where = "between any two layers" if cuts == most else f"at {cuts} of {most} places"
    return Finding(verdict="ok", text=f"it can be split {where}")


def _nodes(settings: Settings, running: Sequence[dict[str, Any]]) -> tuple[list[Node], list[str]]:
    """The workers to plan with, and those of which nothing is known. running: workers as a status has them, who count alone."""
    there = [(worker["name"], worker["memory"]["limit_bytes"]) for worker in running]
    if there:
        return [Node(name=name, memory_limit_bytes=limit) for name, limit in there if limit], []
    default = default_memory_limit(len(settings.workers)) if settings.workers else 0
    here = [
        Node(
            name=worker.name,
            memory_limit_bytes=worker.memory_limit or default,
            layers=None if worker.layers is None else LayerRange(*worker.layers),
        )
        for worker in settings.workers
    ]
    named = [(name, host.memory_limit) for host in settings.hosts for name in host.worker_names]
    elsewhere = [Node(name=name, memory_limit_bytes=limit) for name, limit in named if limit is not None]
    return [*here, *elsewhere], [name for name, limit in named if limit is None]


def plan_of(found: Inspected, sizes: ModelSizes, nodes: Sequence[Node], settings: Settings) -> Iterator[Finding]:
    """How these workers would share the model, and for how much there is room beside it."""
    try:
        planned = beside_groups(
            sizes, nodes, lambda nodes: partition(sizes, nodes, found.legal_cuts, why_not=found.why_not)
        )
    except NoPlan as error:
        yield Finding(verdict="problem", text=f"it does not fit: {error}")
        return
    limits = {node.name: node.memory_limit_bytes for node in nodes}
    for stage in planned.stages:
        yield _held(stage, planned, limits[stage.worker])
    groups = groups_of(planned, sizes)
    if settings.groups and groups.why_none is not None:
        yield Finding(verdict="warning", text=f"no workers compute together: {groups.why_none}")
    whole = [stage.worker for stage in planned.stages if stage.holds_full_model]
    together = "all answer" if planned.pipeline is not None else f"{', '.join(map(str, groups.routes))} answers"
    text = (
        f"the whole model fits on {', '.join(whole)}"
        if whole
        else f"no worker has room for all of it: {together} together"
    )
    yield Finding(verdict="ok", text=text)
    if found.caches:
        yield _room(found, sizes, planned, limits, settings)


def _held(stage: Stage, planned: Partition, limit_bytes: int) -> Finding:
    """What a worker would hold, and what that takes of its memory."""
    what = [] if stage.layers == NO_LAYERS else [f"layers {layers_text(list(stage.layers))}"]
    what += [f"its part of {group.route}" for group in planned.groups if stage.worker in group.route.workers]
    num_bytes = stage.weights_bytes + planned.part_bytes(stage.worker)
    share = f"{size_text(num_bytes)} of its {size_text(limit_bytes)}"
    return Finding(verdict="ok", text=f"{stage.worker}: {' and '.join(what) or 'nothing'}, {share}")


def _room(
    found: Inspected, sizes: ModelSizes, planned: Partition, limits: dict[str, int], settings: Settings
) -> Finding:
    """How many requests of usual length can run at once on all stages."""
    cache, most = settings.cache, []
    tokens = min(settings.plan.tokens[1], found.context_tokens or settings.plan.tokens[1])
    for stage in planned.stages:
        budget = worker_budget(
            limit_bytes=limits[stage.worker],
            weights_bytes=planned.weights_bytes(sizes, stage),
            prefix_limit=cache.memory_limit,
            prefix=cache.prefix,
        )
        needed = _caches_bytes(found, stage, planned, tokens)
        if needed:
            most.append(budget.sequence_bytes // needed)
    if not most:
        return Finding(verdict="ok", text="its caches do not grow with requests")
    count = min(most)
    text = f"beside the weights there is room for {count:,} requests of {tokens:,} tokens at once"
    if count == 0:
        return Finding(verdict="warning", text=f"{text}: give workers more memory, or [plan] less to do")
    return Finding(verdict="ok", text=text)


def _caches_bytes(found: Inspected, stage: Stage, planned: Partition, tokens: int) -> int:
    """Of a sequence on a worker: of its stage or, where it has none, of its part of a group's layers."""
    if stage.layers != NO_LAYERS:
        return caches_bytes(found.caches[slice(*stage.layers)], tokens)
    own = next((group for group in planned.groups if stage.worker in group.route.workers), None)
    return (
        0 if own is None else caches_bytes(found.caches[slice(*own.layers_of(stage.worker))], tokens) // own.route.ranks
    )
