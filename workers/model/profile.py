"""How fast one model's stages and layers run on this worker: measured once, kept on disk, foretold for other splits.

Owns what was measured of a model while it is open. The stages of its first plan are measured, within a time; those of later
plans, for which people wait, are foretold from them, unless a file has them from before. On the MLX thread, while nothing
else runs here.
"""

import hashlib
import json
import logging
import os
import time
from collections.abc import Callable, Iterable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Protocol, TypeVar

import mlx.core as mx
import msgspec

from protocol.transport.addressing import this_host
from protocol.values import LayerRange
from protocol.version import installed_version
from strategy.chunking import ChunkCost
from strategy.layer_speeds import LayerSpeeds, PartSpeed
from strategy.stage_speed import StageSpeed
from workers.engine.executor import StagePlace
from workers.model.chunk_costs import chunk_cost, chunk_runs, fastest_runs, within_s
from workers.model.layer_parts import LayerUnits
from workers.model.step_timing import ExecutorPlace, TriedStep

log = logging.getLogger(__name__)

REVISION = 1
# All of a profile takes about so long; what is measured first, the least that there must be, is measured on any machine.
BUDGET_S = 1.8
_CHUNKS_S, _DECODE_S = 0.1, 0.06
# The time that layers have, of what a stage has.
_LAYERS_SHARE = 0.5
_ROWS = (1, 4, 8, 2)  # where time is short, the first two
_SHORT_TOKENS, _LONG_TOKENS = 16, 2048
# Of the chunk whose cost is known layer by layer.
CHUNK_TOKENS = 64

_Kept = TypeVar("_Kept")


class Timer(Protocol):
    """What measures; `workers.model.step_timing.StepTimer`."""

    def __call__(self, place: ExecutorPlace, tried: TriedStep, /) -> float: ...

    def payload_bytes(self, layers: LayerRange, /) -> int: ...

    def window_tokens(self, layers: LayerRange, /) -> int: ...


class KeptProfiles:
    """Files with what was measured of a model: of this machine, MLX and mlx-lm alone."""

    def __init__(self, folder: Path, digest: str):
        self._folder = folder
        self._about = (digest, this_host(), _machine(), installed_version("mlx"), installed_version("mlx-lm"))

    def __repr__(self) -> str:
        return f"KeptProfiles({str(self._folder)!r})"

    def read(self, kind: type[_Kept], *about: object) -> _Kept | None:
        """What was kept, None where nothing was or the file is damaged."""
        try:
            return msgspec.json.decode(self._path(about).read_bytes(), type=kind)
        except (OSError, ValueError):
            return None

    def write(self, found: object, *about: object) -> None:
        """Keep it; what cannot be written is measured again."""
        path = self._path(about)
        partial = path.with_suffix(f".{os.getpid()}")
        try:
            self._folder.mkdir(parents=True, exist_ok=True)
            partial.write_bytes(msgspec.json.encode(found))
            partial.replace(path)
        except OSError as error:
            log.warning("a profile is not kept: %s", error)

    def _path(self, about: tuple[object, ...]) -> Path:
        said = json.dumps([REVISION, *self._about, *about], default=repr)
        return self._folder / f"{hashlib.sha256(said.encode()).hexdigest()[:24]}.json"


class Profile:
    """See the module. units: of the model; context_tokens: the most that it takes, None where it does not say; now: a clock in
    seconds.
    """

    def __init__(
        self,
        timer: Timer,
        units: LayerUnits,
        kept: KeptProfiles,
        *,
        context_tokens: int | None,
        now: Callable[[], float] = time.perf_counter,
    ):
        self._timer = timer
        self._units = units
        self._kept = kept
        self.long_tokens = _long_tokens(context_tokens)
        self._now = now
        self._chunks: tuple[LayerRange, ChunkCost] | None = None
        self.speeds: dict[ExecutorPlace, StageSpeed] = {}
        self.layers: LayerSpeeds | None = None

    def __repr__(self) -> str:
        return f"Profile({list(self.speeds.values())})"

    def chunk_cost(self, place: ExecutorPlace) -> ChunkCost:
        """Of a stage whose weights are in memory. Of one that has no profile measured for the first range, for any other scaled by the
        number of layers, since people wait while a plan changes.
        """
        if place in self.speeds:
            return self.speeds[place].chunk
        if self._chunks is None:
            self._chunks = place.layers, chunk_cost(lambda tokens: self._timer(place, TriedStep(1, tokens)))
        measured, cost = self._chunks
        return cost.scaled(_width(place.layers) / _width(measured))

    def part_cost(self, place: ExecutorPlace, ranks: int, here: Iterable[ExecutorPlace]) -> ChunkCost:
        """Of one of so many ranks' part of a stage, by what the widest place `here` takes: whole, its weights would have to be read."""
        widest = max(here, key=lambda each: _width(each.layers), default=place)
        return self.chunk_cost(widest).scaled(_width(place.layers) / _width(widest.layers) / ranks)

    def take(self, places: Sequence[ExecutorPlace], *, batches: bool) -> None:
        """Have the `speeds` of these places, whose weights are in memory, and of `layers`. batches: sequences share steps.

        What a model's own code raises leaves out what it was raised for.
        """
        budget_s, begun_at = 0.0 if self.speeds else BUDGET_S, self._now()
        widest_first = sorted(places, key=lambda place: _width(place.layers), reverse=True)
        try:
            for number, place in enumerate(widest_first, 1):
                if place not in self.speeds:
                    until = begun_at + budget_s * number / (len(places) + _LAYERS_SHARE)
                    self.speeds[place] = self._speed(place, until, batches=batches)
            if self.layers is None:
                self.layers = self._layers(widest_first, begun_at + budget_s)
        except Exception as error:  # noqa: BLE001  the boundary between us and any model's code
            log.warning("the speed of this model cannot be measured: %s", error)

    def _speed(self, place: ExecutorPlace, until: float, *, batches: bool) -> StageSpeed:
        found = self._kept.read(StageSpeed, place, batches)
        if found is not None:
            return found
        if self.speeds and self._now() >= until:
            return self._foretold(place)
        found = self._measured(place, until, _ROWS if batches else _ROWS[:1])
        log.info("layers %s: %s", place.layers, found)
        self._kept.write(found, place, batches)
        return found

    def _measured(self, place: ExecutorPlace, until: float, rows: Sequence[int]) -> StageSpeed:
        left_s = until - self._now()

        def is_over(reserved: float = 0.0) -> bool:
            return self._now() >= until - reserved * left_s

        def twice(tried: TriedStep) -> float:
            seconds = self._timer(place, tried)
            return seconds if is_over() else min(seconds, self._timer(place, tried))

        chunks = chunk_runs(
            lambda tokens: self._timer(place, TriedStep(1, tokens)), limit_s=_CHUNKS_S, is_over=lambda: is_over(0.6)
        )
        decode = fastest_runs(
            lambda size: self._timer(place, TriedStep(size, 1, _SHORT_TOKENS)),
            rows,
            limit_s=_DECODE_S,
            is_over=lambda: is_over(0.3),
        )
        tokens = chunks[0][0] if is_over() else min(chunks[-1][0], CHUNK_TOKENS)
        window = self._timer.window_tokens(place.layers)
        chunk_s = self._slope(window, (0, dict(chunks)[tokens]), lambda before: twice(TriedStep(1, tokens, before)))
        token_context_s = chunk_s / tokens
        context_s = self._slope(window, (_SHORT_TOKENS, decode[0][1]), lambda before: twice(TriedStep(1, 1, before)))
        # Two sizes alone tell little apart where one was disturbed; a step of one token is much like a chunk of one.
        samples = chunks if len(chunks) > 2 else [(1, decode[0][1]), *chunks]
        return StageSpeed(
            decode=tuple((rows, max(seconds - rows * _SHORT_TOKENS * context_s, 0.0)) for rows, seconds in decode),
            decode_context_s=context_s,
            chunk=ChunkCost.fit(
                [(size, seconds - within_s(size, seconds, token_context_s)) for size, seconds in samples]
            ),
            chunk_context_s=token_context_s,
            payload_bytes=self._timer.payload_bytes(place.layers),
        )

    def _slope(self, window: int, known: tuple[int, float], measure: Callable[[int], float]) -> float:
        """What each token before those of a step adds to it, once windows are full. known: tokens and seconds of a short one."""
        short, short_s = known
        if window > short:
            short = min(window, self.long_tokens // 2)
            short_s = measure(short)
        return max(measure(self.long_tokens) - short_s, 0.0) / (self.long_tokens - short)

    def _foretold(self, place: ExecutorPlace) -> StageSpeed:
        """From the widest range that is known."""
        known = max(self.speeds, key=lambda known: _width(known.layers))
        share = _width(place.layers) / _width(known.layers)
        decode_share = chunk_share = share
        if self.layers is not None:
            wanted, had = self.layers.of(place.layers), self.layers.of(known.layers)
            if wanted is not None and had is not None:
                decode_share, chunk_share = wanted.decode_s / had.decode_s, wanted.chunk_s / had.chunk_s
        speed = self.speeds[known]
        return StageSpeed(
            decode=tuple((rows, seconds * decode_share) for rows, seconds in speed.decode),
            decode_context_s=speed.decode_context_s * share,
            chunk=ChunkCost(speed.chunk.fixed_s * chunk_share, speed.chunk.token_s * chunk_share),
            chunk_context_s=speed.chunk_context_s * share,
            payload_bytes=self._timer.payload_bytes(place.layers),
        )

    def _layers(self, places: Sequence[ExecutorPlace], until: float) -> LayerSpeeds:
        held = [place.layers for place in places]
        about = ("layers", held, places[0].kv)
        found = self._kept.read(LayerSpeeds, *about)
        if found is not None:
            return found
        units = self._units.to_measure(held)
        measured = [(place.layers, _part(self.speeds[place])) for place in places]
        while units and self._now() < until:
            unit = units.pop(0)
            measured.append((unit, self._unit(unit, places[0])))
        found = self._units.speeds(measured, CHUNK_TOKENS)
        if not units:
            self._kept.write(found, *about)
        return found

    def _unit(self, unit: LayerRange, like: ExecutorPlace) -> PartSpeed:
        is_last = unit.end == self._units.num_layers
        place = replace(like, stage=StagePlace(unit, is_last))
        tried = TriedStep(1, 1, _SHORT_TOKENS), TriedStep(1, CHUNK_TOKENS)
        return PartSpeed(*(min(self._timer(place, each), self._timer(place, each)) for each in tried))


def _part(speed: StageSpeed) -> PartSpeed:
    return PartSpeed(speed.decode_s(1, _SHORT_TOKENS), speed.chunk_s(CHUNK_TOKENS, 0))


def _long_tokens(context_tokens: int | None) -> int:
    """Before the tokens of a step, such that all of them have a place in the model."""
    room = (context_tokens or 4 * CHUNK_TOKENS) - 2 * CHUNK_TOKENS
    return max(min(_LONG_TOKENS, room), _SHORT_TOKENS)


def _width(layers: LayerRange) -> int:
    return layers.end - layers.start


def _machine() -> str:
    """What else the speed depends on: the device, and what does the arithmetic of a CPU."""
    return f"{mx.default_device()} {os.environ.get('LD_PRELOAD', '')}"
