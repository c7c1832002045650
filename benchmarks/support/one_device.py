"""Greedy generation on one device in this process, with any kind of KV cache or none, counting what is computed."""

import time
from collections.abc import Sequence
from pathlib import Path

import mlx.core as mx
import msgspec

from benchmarks.support import machine
from workers.cache.stage_cache import StageCache
from workers.kv_cache import KINDS, KvSettings
from workers.model.inspection import inspect
from workers.model.split_model import SplitModel


class Generated(msgspec.Struct, frozen=True, kw_only=True):
    """One generation. cpu_s: processor time, which other programs disturb less. positions: tokens that passed through
    the model, repetitions counted.
    """

    tokens: tuple[int, ...]
    seconds: float
    cpu_s: float = 0.0
    positions: int = 0
    cache_bytes: int = 0


class OneDevice:
    """A model with its weights in memory. vocabulary: ids that it knows."""

    def __init__(self, model: Path):
        self._model = SplitModel.load(model)
        self._layers = (0, self._model.num_layers)
        self._last_only = inspect(model, machine.home().cache).last_position_only
        self._positions = 0
        self._model.warm_up(self._layers)
        self.vocabulary = self._logits([1], None).shape[-1]

    def kinds(self, max_tokens: int) -> dict[str, KvSettings]:
        """Settings to try, by name, for sequences of so many tokens."""
        found = {kind: KvSettings(kind=kind, max_tokens=max_tokens) for kind in KINDS if kind != "dynamic"}
        return found | {"quantized, 4 bits": KvSettings(kind="quantized", bits=4)}

    def why_not(self, settings: KvSettings) -> str | None:
        """Why the model does not allow a kind."""
        return self._model.kv_kind(settings.kind).why_not(settings)

    def generate(
        self,
        prompt: Sequence[int],
        num_tokens: int,
        *,
        cached: bool,
        settings: KvSettings | None = None,
        keep_last: bool = False,
    ) -> Generated:
        """Exactly `num_tokens` tokens. keep_last: the last one passes through the model too, for a next turn."""
        self._positions = 0
        cache = self._model.make_cache(self._layers, settings) if cached else None
        tokens: list[int] = []
        started, cpu_started = time.perf_counter(), time.process_time()
        ids = list(prompt)
        while len(tokens) < num_tokens:
            tokens.append(int(mx.argmax(self._logits(ids, cache)[0, -1]).item()))
            ids = tokens[-1:] if cached else [*ids, tokens[-1]]
        if keep_last:
            self._logits(ids, cache)
        seconds = time.perf_counter() - started
        return Generated(
            tokens=tuple(tokens),
            seconds=seconds,
            cpu_s=time.process_time() - cpu_started,
            positions=self._positions,
            cache_bytes=0 if cache is None else cache.nbytes,
        )

    def _logits(self, ids: Sequence[int], cache: StageCache | None) -> mx.array:
        self._positions += len(ids)
        logits = self._model.forward(
            mx.array([ids], mx.int32), layers=self._layers, cache=cache, last_positions=1 if self._last_only else None
        )
        self._model.evaluate(logits, cache)
        return logits
