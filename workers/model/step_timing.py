"""How long a step takes on this worker, run as the engine runs it, in executors and caches that are thrown away.

The sequences of a step begin with as many tokens as one asks for, which nobody computed: caches as long as real ones, of zeros
where they grow with each token. In place of what the layers before would hand on, and of prompts, stand fixed random
ones. On the MLX thread; what is kept of real sequences does not notice.
"""

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import pairwise
from statistics import median
from typing import NamedTuple

import mlx.core as mx
import numpy as np
from mlx_lm.models.cache import KVCache, RotatingKVCache

from protocol.messages import OpenSequence, Row, Step
from protocol.values import KvSettings, LayerRange, Route, Sampling
from strategy.prefix import Key
from workers.cache.prefix_store import Handed, PrefixStore
from workers.cache.stage_cache import StageCache
from workers.engine.executor import StageExecutor, StagePlace, Uncached
from workers.engine.launched import Launched
from workers.kv_cache.probe import Recorder, Shapes
from workers.model.payload import arrays, noise_like
from workers.model.split_model import SplitModel

# Decode steps follow each other until they took so long and were a few, or took much longer, or were many. The first is not counted:
# it also puts the rows' caches together.
_ENOUGH_S, _TOO_LONG_S = 0.02, 0.06
_FEW_STEPS, _MOST_STEPS = 3, 12
# What grows with each token, and how much is seen in a pass that is never run.
_GROWING = (KVCache, RotatingKVCache)
_ROUTE = Route(("measured",))
_MOST_IDS = 4096


@dataclass(frozen=True)
class ExecutorPlace:
    """What an executor is made for; while it is equal, the executor stays."""

    stage: StagePlace
    kv: KvSettings | None
    last_position_only: bool
    uncached: Uncached

    @property
    def layers(self) -> LayerRange:
        return self.stage.layers


class TriedStep(NamedTuple):
    """So many sequences with so many tokens each (one: a decode step), behind `context` others."""

    rows: int
    num_tokens: int
    context: int = 0


class StepTimer:
    """Of one model, whose layers are in memory as far as they are asked for. now: a clock in seconds."""

    def __init__(self, model: SplitModel, now: Callable[[], float] = time.perf_counter):
        self._model = model
        self._now = now
        self._shapes: dict[LayerRange, dict[int, Shapes]] = {}

    def __repr__(self) -> str:
        return f"StepTimer({self._model})"

    def __call__(self, place: ExecutorPlace, tried: TriedStep) -> float:
        """The seconds of a step in the place of an executor; of decode steps of one that follows others."""
        tokens = self._ids(tried)
        payload = self.received(place.layers, tokens)
        executor = self._opened(place, tried)
        if tried.num_tokens > 1:
            return self._seconds(executor, [_step(tried, 0)], tokens, payload)
        self._seconds(executor, [_step(tried, 0)], tokens, payload)
        sampled = place.layers == (0, self._model.num_layers) and mx.metal.is_available()
        following = [_step(tried, number) for number in range(1, _MOST_STEPS)]
        return self._seconds(executor, following, None if sampled else tokens, payload)

    def _seconds(
        self, executor: StageExecutor, steps: Sequence[Step], tokens: np.ndarray | None, payload: object
    ) -> float:
        """Of one of these steps, as far as is enough: the fastest, since whatever else runs here only slows them.

        tokens: None for those that the step before sampled: then the next step begins before one ends, as on a route of one stage where
        launching does not wait, and the median counts, since an end may be noticed late.
        """
        ends = [self._now()]
        in_flight: Launched | None = None
        for step in steps:
            if _is_enough(len(ends) - 1, self._now() - ends[0]):
                break
            launched = executor.launch(step, tokens, payload)
            if in_flight is not None:
                executor.finish(in_flight)
                ends.append(self._now())
            in_flight = launched
            if tokens is not None:
                executor.finish(launched)
                ends.append(self._now())
                in_flight = None
        if in_flight is not None:
            executor.finish(in_flight)
            ends.append(self._now())
        return (min if tokens is not None else median)([end - before for before, end in pairwise(ends)])

    def payload_bytes(self, layers: LayerRange) -> int:
        """Of one token, to the stage behind these layers."""
        if layers.end == self._model.num_layers:
            return 0
        tokens = self._ids(TriedStep(1, 1))
        cache = self._model.make_cache(layers)
        payload = self.received(layers, tokens)
        output = self._model.forward(mx.array(tokens), layers=layers, cache=cache, payload=payload)
        return sum(array.nbytes for array in arrays(output))

    def window_tokens(self, layers: LayerRange) -> int:
        """How many tokens the largest window of these layers has, 0 without any: so many must be there before each further one adds
        as much as the last.
        """
        cache = self._model.make_cache(layers)
        entries = [cache.entries[index] for index in cache.owned]
        return max((entry.max_size for entry in entries if isinstance(entry, RotatingKVCache)), default=0)

    def _opened(self, place: ExecutorPlace, tried: TriedStep) -> StageExecutor:
        """With the sequences of a step."""
        store = _LongCaches(self._model, place, tried.context, self._shapes_of(place.layers) if tried.context else {})
        executor = StageExecutor(
            self._model,
            place.stage,
            last_position_only=place.last_position_only,
            prefixes=store,
            kv=place.kv,
            uncached=place.uncached,
        )
        for sequence in range(tried.rows):
            message = OpenSequence(
                sequence=sequence,
                route=_ROUTE,
                cached=True,
                sampling=Sampling(),
                seed=0,
                history=(),
                computed_tokens=tried.context,
                max_length=tried.context + tried.num_tokens + _MOST_STEPS,
            )
            executor.open(message, ())
        return executor

    def _ids(self, tried: TriedStep) -> np.ndarray:
        """Far apart, since experts are chosen by them."""
        count = max(min(self._model.vocabulary_size // 2, _MOST_IDS), 1)
        ids = (np.arange(tried.rows * tried.num_tokens) * 7919 + 13) % count
        return ids.reshape(tried.rows, tried.num_tokens).astype(np.int32)

    def received(self, layers: LayerRange, tokens: np.ndarray) -> object:
        """In place of what the layers before these would hand on of some tokens; None before the first."""
        payload = noise_like(self._model.structure_before(layers.start, mx.array(tokens)))
        mx.eval(list(arrays(payload)))
        return payload

    def _shapes_of(self, layers: LayerRange) -> dict[int, Shapes]:
        """What each cache of keys and values of these layers is given for a token."""
        if layers not in self._shapes:
            tokens = self._ids(TriedStep(1, 1))
            plain = self._model.make_cache(layers)
            cache = plain.replaced(
                lambda index, entry: Recorder() if index in plain.owned and isinstance(entry, _GROWING) else entry
            )
            payload = self.received(layers, tokens)
            self._model.forward(mx.array(tokens), layers=layers, cache=cache, payload=payload)
            seen = {index: entry.shapes for index, entry in enumerate(cache.entries) if isinstance(entry, Recorder)}
            self._shapes[layers] = {index: shapes for index, shapes in seen.items() if shapes is not None}
        return self._shapes[layers]


def _is_enough(num_steps: int, seconds: float) -> bool:
    return num_steps > 0 and (seconds > _TOO_LONG_S or (num_steps >= _FEW_STEPS and seconds > _ENOUGH_S))


class _LongCaches(PrefixStore):
    """Every sequence begins with the same tokens, so many. shapes: by index what a cache keeps of one."""

    def __init__(self, model: SplitModel, place: ExecutorPlace, num_tokens: int, shapes: dict[int, Shapes]):
        super().__init__(model, place.layers, memory_bytes=0, kv=place.kv)
        self._num_tokens = num_tokens
        self._shapes = shapes
        self._first: StageCache | None = None

    def begin(self, keys: Sequence[Key], kv: KvSettings | None, handed: Handed = ()) -> StageCache:
        if self._first is None:
            self._first = self._filled(super().begin(keys, kv, handed))
            return self._first
        return self._first.fork()

    def _filled(self, cache: StageCache) -> StageCache:
        if not self._num_tokens:
            return cache
        for index, shapes in self._shapes.items():
            wide = (1, shapes.heads, self._num_tokens)
            cache.entries[index].update_and_fetch(
                mx.zeros((*wide, shapes.key_dim), shapes.dtype), mx.zeros((*wide, shapes.value_dim), shapes.dtype)
            )
        for layer in range(self._model.num_layers):
            if not self.layers.start <= layer < self.layers.end:
                cache.pass_over(layer, (1, self._num_tokens))
        mx.eval(cache.states())
        return cache


def _step(tried: TriedStep, number: int) -> Step:
    """A chunk of a prompt, or one of the decode steps of a slot."""
    is_decode = tried.num_tokens == 1
    position = tried.context + number
    return Step(
        number=number,
        route=_ROUTE,
        slot=0 if is_decode else None,
        cached=True,
        rows=tuple(Row(sequence, position, int(is_decode)) for sequence in range(tried.rows)),
        num_tokens=tried.num_tokens,
    )
