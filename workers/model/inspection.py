"""Finds out, before any weight is read, at which layers a model can be cut and what crosses a cut.

Owns the dry run: a tiny random model of the same architecture and layer structure is run whole and in stages, and only
cuts with identical logits count. What cannot be shrunk is built in full size, unevaluated, and cut where the shapes fit.
Results are kept as JSON by configuration and version of mlx-lm. Nothing here raises for a strange model: it is refused
with a reason. `python -m workers.model.inspection --all` prints the table of every architecture.
"""

import hashlib
import json
import os
import sys
from bisect import bisect_left
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from importlib.metadata import version
from pathlib import Path
from typing import Any, TypeVar

import mlx.core as mx
import msgspec
from mlx import nn
from mlx_lm.models.cache import make_prompt_cache

from protocol.errors import ModelError
from protocol.values import LayerRange
from workers import zoo
from workers.cache.stage_cache import StageCache, can_batch
from workers.model import loading
from workers.model.payload import Carried, Payload
from workers.model.split_model import CannotSplit, Part, SplitModel
from workers.zoo.configurations import architecture_of

T = TypeVar("T")
Passes = tuple[tuple[int, ...], ...]

REVISION = 3
_CONTEXT_KEYS = ("max_position_embeddings", "model_max_length", "n_positions", "max_seq_len", "n_ctx", "seq_length")
# A prefill, a chunk on top of it and decodes, beyond the sliding windows of the shrunk model.
_CACHED: Passes = ((11, 23, 5, 42, 7, 99, 3, 18, 77), (64, 12, 31), (9,))
_RAGGED: Passes = ((11, 23, 5, 42, 7, 99, 3, 18, 77, 64, 12, 31, 8), (64, 12, 31, 8), (5, 42, 7, 99, 3, 18, 77))
_BRIEFLY: Passes = ((11, 23, 5, 42), (9,))


class Inspection(msgspec.Struct, frozen=True, kw_only=True):
    """What splitting this model takes.

    legal_cuts: every layer index c, 0 < c < num_layers, such that a stage may end before c and the next begin at c;
    any selection of them is exact together. why_not: a sentence when there is none. unused: for a cut, the parts of a
    payload (`SplitModel.unused`) that nobody reads. batches: sequences of different
    lengths can run as one batch. last_position_only: the
    projection can be limited to the last position. context_tokens: None when the configuration says nothing.
    """

    architecture: str
    num_layers: int
    legal_cuts: tuple[int, ...]
    why_not: str | None = None
    unused: dict[int, tuple[tuple[str | int, ...], ...]] = {}
    batches: bool = False
    last_position_only: bool = False
    context_tokens: int | None = None


def inspect(path: Path, cache_dir: Path | None) -> Inspection:
    """The inspection of the model in a directory, from `cache_dir` when it is there.

    Raises ModelError when the directory has no usable config.json; everything else is a result.
    """
    config = loading.read_config(path)
    if cache_dir is None:
        return inspect_config(config)
    kept = cache_dir / f"inspection-{_fingerprint(config)}.json"
    try:
        return msgspec.json.decode(kept.read_bytes(), type=Inspection)
    except (OSError, msgspec.DecodeError):
        found = inspect_config(config)
    cache_dir.mkdir(parents=True, exist_ok=True)
    partial = kept.with_suffix(f".{os.getpid()}")
    partial.write_bytes(msgspec.json.encode(found))
    partial.replace(kept)
    return found


def inspect_config(config: Mapping[str, Any]) -> Inspection:
    """The inspection of a model with this config.json, without cache."""
    architecture = architecture_of(config)
    refused = Inspection(
        architecture=architecture, num_layers=_layers_of(config), legal_cuts=(), context_tokens=context_tokens(config)
    )
    with _without_compiling():
        trial, _ = _attempt(lambda: _Trial(zoo.random_model(zoo.shrunk(config)), evaluate=True))
        if trial is None:  # a structure that does not shrink: in full size, unevaluated
            trial, error = _attempt(lambda: _Trial(zoo.random_model(config), evaluate=False))
        if trial is None:
            return msgspec.structs.replace(refused, why_not=_reason(architecture, error))
        return trial.inspection(refused)


def context_tokens(config: Mapping[str, Any]) -> int | None:
    """The most tokens, prompt and answer together, that the configuration states."""
    for key in _CONTEXT_KEYS:
        if isinstance(config.get(key), int) and not isinstance(config[key], bool) and config[key] > 0:
            return config[key]
    return context_tokens(config["text_config"]) if isinstance(config.get("text_config"), Mapping) else None


class _Trial:
    """One model, run whole and in stages. Raises from the start when it does not even run whole."""

    def __init__(self, model: nn.Module, *, evaluate: bool):
        self._evaluate = evaluate
        self._plain_cache = make_prompt_cache(model)
        self._split = SplitModel(model)
        self._last_error: Exception | None = None
        self._handed_on: dict[int, Payload] = {}
        self._whole = {(_CACHED, True): self._logits((), _CACHED, cached=True)}

    def inspection(self, base: Inspection) -> Inspection:
        """Everything that can be found out, on top of what the configuration says."""
        cuts = self._legal_cuts()
        return msgspec.structs.replace(
            base,
            num_layers=self._split.num_layers,
            legal_cuts=cuts,
            why_not=None if cuts else self._why_not(base.architecture),
            unused=self._unused(cuts),
            batches=self._batches(),
            last_position_only=self._slices(),
        )

    def _legal_cuts(self) -> tuple[int, ...]:
        """All of them at once when that is exact. Otherwise the longest run of cuts from the start that is (a part of a
        legal selection is legal, so bisection finds it) and whatever else is legal on its own and together.
        """
        every = tuple(range(1, self._split.num_layers))
        if not every or self._exact(every):
            return every
        first_illegal = bisect_left(every, True, key=lambda cut: not self._exact_briefly(every[:cut]))
        together = every[:first_illegal]
        for cut in every[first_illegal + 1 :]:
            if self._fits((cut,)) and self._exact_briefly((*together, cut)):
                together = (*together, cut)
        return together if together and self._exact(together) else ()

    def _exact(self, cuts: Sequence[int]) -> bool:
        return self._same(cuts, _CACHED, cached=True) and self._same(cuts, _CACHED[:1], cached=False)

    def _exact_briefly(self, cuts: Sequence[int]) -> bool:
        return self._fits(cuts) and self._same(cuts, _BRIEFLY, cached=True)

    def _fits(self, cuts: Sequence[int]) -> bool:
        """Whether the shapes fit; most illegal cuts fail here, at no cost."""
        found, error = _attempt(lambda: self._logits(cuts, _BRIEFLY[:1], cached=True, evaluate=False))
        self._last_error = error or self._last_error
        return found is not None

    def _same(self, cuts: Sequence[int], passes: Passes, *, cached: bool) -> bool:
        expected = self._whole.get((passes, cached))
        if expected is None:
            expected = self._whole[passes, cached] = self._logits((), passes, cached=cached)
        found, error = _attempt(lambda: self._logits(cuts, passes, cached=cached))
        self._last_error = error
        if found is None:
            return False
        pairs = zip(expected, found, strict=True)
        return all(a.shape == b.shape and (not self._evaluate or _equal(a, b)) for a, b in pairs)

    def _logits(self, cuts: Sequence[int], passes: Passes, *, cached: bool, evaluate: bool = True) -> list[mx.array]:
        stages = _stages(cuts, self._split.num_layers)
        caches = [self._split.make_cache(layers) if cached else None for layers in stages]
        found = []
        for ids in passes:
            payload: Payload = None
            tokens = mx.array([ids], mx.int32)
            for layers, cache in zip(stages, caches, strict=True):
                payload = self._split.forward(tokens, layers=layers, cache=cache, payload=payload)
                self._handed_on[layers[1]] = payload
                if self._evaluate and evaluate:
                    self._split.evaluate(payload, cache)
            found.append(payload)
        return found

    def _unused(self, cuts: tuple[int, ...]) -> dict[int, tuple[Part, ...]]:
        """Parts that can be left out at a cut with the logits unchanged; most architectures hand on one array."""
        extra = {cut: tuple(_parts(self._handed_on[cut]))[1:] for cut in cuts}
        extra = {cut: parts for cut, parts in extra.items() if parts}
        if not extra or not self._evaluate:
            return {}
        self._split.unused = {}
        for cut, parts in extra.items():
            if not self._can_drop(cut, parts):
                for part in parts:
                    self._can_drop(cut, (*self._split.unused.get(cut, ()), part))
        return self._split.unused if self._exact(cuts) else {}

    def _can_drop(self, cut: int, parts: tuple[Part, ...]) -> bool:
        """Tries without these parts at the cut, and leaves them out from then on if nothing changes."""
        before = self._split.unused
        self._split.unused = before | {cut: parts}
        if self._exact_briefly((cut,)):
            return True
        self._split.unused = before
        return False

    def _batches(self) -> bool:
        """Whether sequences of different lengths give the same in a batch: some attention code takes no such mask."""
        if not can_batch(self._plain_cache):
            return False
        same, _ = _attempt(self._batch_equals_its_sequences)
        return bool(same)

    def _batch_equals_its_sequences(self) -> bool:
        whole = LayerRange(0, self._split.num_layers)
        alone = [self._split.make_cache(whole) for _ in _RAGGED]
        for ids, cache in zip(_RAGGED, alone, strict=True):
            self._pass([ids], cache)
        batch = StageCache.merge(alone)
        for number, token in enumerate((9, 13, 64)):
            if number == 2:
                batch.filter([2, 0])
                alone = [alone[2], alone[0]]
            expected = mx.concatenate([self._pass([(token,)], cache) for cache in alone])
            if not self._near(self._pass([(token,)] * len(alone), batch), expected):
                return False
        return True

    def _pass(self, ids: Sequence[tuple[int, ...]], cache: StageCache) -> mx.array:
        logits = self._split.forward(
            mx.array(list(ids), mx.int32), layers=LayerRange(0, self._split.num_layers), cache=cache
        )
        if self._evaluate:
            self._split.evaluate(logits, cache)
        return logits

    def _near(self, a: mx.array, b: mx.array) -> bool:
        return a.shape == b.shape and (not self._evaluate or bool(mx.allclose(a, b, 1e-3, 1e-4).item()))

    def _slices(self) -> bool:
        tokens, whole = mx.array([_CACHED[0]], mx.int32), LayerRange(0, self._split.num_layers)
        last, _ = _attempt(lambda: self._split.forward(tokens, layers=whole, cache=None, last_position_only=True))
        if last is None:  # what cannot be redirected cannot be limited either
            return False
        plain = self._split.forward(tokens, layers=whole, cache=None)[:, -1:, :]
        return self._near(last, plain)

    def _why_not(self, architecture: str) -> str:
        if self._split.num_layers < 2:
            return "It has only one layer."
        return _reason(architecture, self._last_error)


def _attempt(action: Callable[[], T]) -> tuple[T | None, Exception | None]:
    """What the action returns, or what it raised: an illegal read fails in whatever way the model's code happens to."""
    try:
        return action(), None
    except Exception as error:  # noqa: BLE001  the boundary between us and any model's code
        return None, error


def _stages(cuts: Sequence[int], num_layers: int) -> list[LayerRange]:
    return [LayerRange(*bounds) for bounds in zip((0, *cuts), (*cuts, num_layers), strict=True)]


def _equal(a: mx.array, b: mx.array) -> bool:
    return bool(mx.array_equal(a, b, equal_nan=True).item())


def _parts(payload: Payload, path: Part = ()) -> Iterator[Part]:
    if isinstance(payload, mx.array):
        yield path
    elif isinstance(payload, dict):
        for key, item in payload.items():
            yield from _parts(item, (*path, key))
    elif isinstance(payload, tuple | list | Carried):
        for index, item in enumerate(payload):
            yield from _parts(item, (*path, index))


def _layers_of(config: Mapping[str, Any]) -> int:
    for key in ("num_hidden_layers", "num_layers", "n_layer", "n_layers", "num_transformer_layers"):
        if isinstance(config.get(key), int):
            return config[key]
    return _layers_of(config["text_config"]) if isinstance(config.get("text_config"), Mapping) else 0


def _reason(architecture: str, error: Exception | None) -> str:
    if isinstance(error, ModelError) and not isinstance(error, CannotSplit):
        return str(error)
    said = " ".join(str(error).split())[:160] if error else "the logits of its stages differ from the whole model's"
    return f"The layers of {architecture} cannot run apart from each other: {said}"


def _fingerprint(config: Mapping[str, Any]) -> str:
    said = json.dumps([REVISION, version("mlx-lm"), version("mlx"), config], sort_keys=True, default=str)
    return hashlib.sha256(said.encode()).hexdigest()[:24]


@contextmanager
def _without_compiling() -> Iterator[None]:
    """Compiling takes longer than running a tiny model, and changes nothing that is looked for here."""
    if os.environ.get("MLX_DISABLE_COMPILE"):
        yield
        return
    mx.disable_compile()
    try:
        yield
    finally:
        mx.enable_compile()


def table() -> Iterator[tuple[str, str, str]]:
    """For every architecture of the installed mlx-lm: its name, where it splits, and whether it batches."""
    for name in zoo.architectures():
        try:
            found = inspect_config(zoo.tiny_config(name))
        except ModelError as error:
            yield name, f"not tried: {error}", "unknown"
            continue
        if found.why_not:
            yield name, f"not at all: {found.why_not}", "yes" if found.batches else "no"
            continue
        everywhere = len(found.legal_cuts) == found.num_layers - 1
        where = "anywhere" if everywhere else f"at {len(found.legal_cuts)} of {found.num_layers - 1} cuts"
        yield name, where, "yes" if found.batches else "no"


def _page() -> str:
    found = list(table())
    rows = "\n".join(f"| `{name}` | {where} | {batches} |" for name, where, batches in found)
    anywhere = sum(where == "anywhere" for _, where, _ in found)
    at_some = sum(where.startswith("at ") for _, where, _ in found)
    return f"""# Architectures

How each architecture of mlx-lm {version("mlx-lm")} splits, found by running a tiny random model of it whole and in stages and
comparing the logits bit for bit (`./launch.sh doctor --architectures` does it again for the installed version; this page is
`python -m workers.model.inspection --markdown`). Of {len(found)}, {anywhere} split anywhere and {at_some} at some cuts. What cannot be
split runs on one worker that has room for it. *Batches*: several requests share one step; otherwise they take turns.

| architecture | splits | batches |
| --- | --- | --- |
{rows}"""


def main(arguments: Sequence[str]) -> int:
    """Prints the table of architectures, or docs/ARCHITECTURES.md."""
    if list(arguments) == ["--markdown"]:
        print(_page())
        return 0
    if list(arguments) != ["--all"]:
        print("usage: python -m workers.model.inspection --all | --markdown", file=sys.stderr)
        return 2
    print(f"{'architecture':24} {'batches':8} splits")
    for name, where, batches in table():
        print(f"{name:24} {batches:8} {where}", flush=True)
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
