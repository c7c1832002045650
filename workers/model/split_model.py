"""Runs any contiguous range of layers of any mlx-lm model, bit for bit as the whole model would.

Owns the redirection of layer calls. The module tree stays whole and lazily loaded and the model's own code runs on every
stage; only the calls of the layer objects are redirected: layers before the range hand on what the previous stage sent,
layers after it hand on what the last layer of the range returned. What nobody asks for is never computed, and its
weights are never read. Belongs to one thread, as all of MLX does here.
"""

from collections.abc import Callable, Iterable, Mapping
from functools import partial
from pathlib import Path
from typing import Any, Self

import mlx.core as mx
from mlx import nn
from mlx_lm.models.cache import make_prompt_cache

from protocol.errors import ModelError
from protocol.values import LayerRange
from workers.cache.stage_cache import StageCache
from workers.kv_cache import KINDS, Kind, KvSettings
from workers.model import loading
from workers.model.hidden_states import OutsideCalls, given_to_projection
from workers.model.payload import Carried, Part, Payload, arrays, map_arrays, without
from workers.model.weights import Weights
from workers.tensor.cuts import cut_likewise
from workers.tensor.exchange import exchange_of, silent, unprojected


class CannotSplit(ModelError):
    """The architecture does not run its layers one after the other, so no range of them can run alone."""


class SplitModel:
    """A whole mlx-lm module tree, lazily loaded, whose layer calls can be redirected to any contiguous range.

    model: usable as mlx-lm made it, also while this object holds it. unused: for each cut (the first layer after it),
    the parts of a payload that nobody reads there; they are sent as None. weights: which of them are in memory.
    """

    def __init__(self, model: nn.Module, unused: dict[int, tuple[Part, ...]] | None = None):
        self.model = model
        self.layers: list[nn.Module] = list(model.layers)
        self.num_layers = len(self.layers)
        self.unused = unused or {}
        self.limits_projection = True  # whether a pass may compute logits for the last position alone
        self._vocabulary_size = 0  # known from the first pass of any range on
        self._switch = _Switch()
        self._outside_calls = OutsideCalls(model, self.layers)
        self._owner_of_entry: tuple[int | None, ...] | None = None
        self._kinds: dict[str, Kind] = {}
        self.weights = Weights(model, self.layers)
        self._outside: dict[LayerRange, frozenset[str]] = {}
        _redirect(self.layers, self._switch)

    def __repr__(self) -> str:
        return f"SplitModel({type(self.model).__module__}, {self.num_layers} layers)"

    @classmethod
    def load(cls, path: Path) -> Self:
        """The model in a directory of the Hugging Face layout; no weight is read yet.

        Raises ModelError with one sentence when mlx-lm cannot use the directory.
        """
        return cls(loading.load(path))

    def make_cache(self, layers: LayerRange, kv: KvSettings | None = None) -> StageCache:
        """Empty caches for one sequence, real for the given layers. kv: None is mlx-lm's default.

        Raises ValueError when the model or the settings do not allow the kind; `kv_kind(...).why_not` says so before.
        """
        if layers != (0, self.num_layers) and self._owner_of_entry is None:
            self._owner_of_entry = self._find_owners(make_prompt_cache(self.model))
        entries = make_prompt_cache(self.model)
        kind = None if kv is None else self.kv_kind(kv.kind)
        made = entries if kind is None or kv is None else kind.make(entries, kv)
        if layers == (0, self.num_layers):
            cache = StageCache(made, tuple(range(len(made))))
        else:
            assert self._owner_of_entry is not None
            stand_ins = made if kind is not None and kind.shapes_masks else entries
            cache = StageCache.of(stand_ins, self._owner_of_entry, layers)
            for index in cache.owned:
                cache.entries[index] = made[index]
        cache.renew = partial(self.make_cache, layers, kv)
        return cache

    def caches_by_layer(self, kv: KvSettings | None = None) -> list[StageCache]:
        """The caches of one sequence after one token, for each layer alone; nothing is evaluated, by us at least."""
        layers = LayerRange(0, self.num_layers)
        entries = self.make_cache(layers, kv).entries
        owners = self._find_owners(make_prompt_cache(self.model))
        with silent(self.model):
            self.model(mx.zeros((1, 1), mx.int32), cache=entries)
        return [
            StageCache(entries, tuple(index for index, owner in enumerate(owners) if owner == layer))
            for layer in range(self.num_layers)
        ]

    def kv_kind(self, name: str) -> Kind:
        """A kind of cache for this model. Raises ModelError for a name that is none."""
        if name not in KINDS:
            raise ModelError(f"there is no kind of KV cache {name!r}; take one of {', '.join(KINDS)}")
        if name not in self._kinds:
            self._kinds[name] = KINDS[name](self.model)
        return self._kinds[name]

    def forward(
        self,
        tokens: mx.array,
        *,
        layers: LayerRange,
        cache: StageCache | None,
        payload: Payload = None,
        last_positions: int | None = None,
    ) -> Payload:
        """One pass of tokens (batch, n), real ids on every stage, through a half-open range of layers.

        payload: what the previous stage's pass returned; None for the range that starts at 0. Returns the payload for
        the next stage or, when the range ends with the last layer, logits (batch, n, vocabulary); with
        `last_positions` those of so many alone, which skips the rest of the projection where the architecture
        allows. Nothing is evaluated. Raises CannotSplit for an architecture that cannot run this range alone.
        """
        entries = None if cache is None else cache.entries
        self._begin_exchanging(layers)
        if layers == (0, self.num_layers) and last_positions is None:
            return self._noted(self.model(tokens, cache=entries))
        current = _Pass(self.layers, layers, tokens.shape, cache, payload, last_positions=last_positions)
        logits = self._run(current, tokens, entries)
        if layers[1] == self.num_layers:
            return _last(logits, last_positions)
        return map_arrays(mx.contiguous, without(current.output, self.unused.get(layers[1], ())))

    def hidden_states(
        self,
        tokens: mx.array,
        *,
        layers: LayerRange,
        cache: StageCache | None,
        payload: Payload = None,
        last_positions: int | None = None,
    ) -> mx.array:
        """As `forward` of a range that ends with the last layer, but what the projection to logits is given: (batch, n, size), or
        those of the `last_positions` alone. Raises ModelError for an architecture that does not show it.
        """
        with self._outside_calls.watched() as calls, unprojected(self.model):
            logits = self.forward(tokens, layers=layers, cache=cache, payload=payload, last_positions=last_positions)
        hidden = given_to_projection(calls, logits.shape[-1], tokens.shape)
        return _last(hidden, last_positions)

    def begin_evaluation(self, output: Payload, cache: StageCache | None) -> None:
        """As `evaluate`, without waiting for the end."""
        mx.async_eval(list(arrays(output)), [] if cache is None else cache.states())

    def evaluate(self, output: Payload, cache: StageCache | None) -> None:
        """Computes exactly the output of a pass (None: nothing but the caches) and the states of the caches."""
        mx.eval(list(arrays(output)), [] if cache is None else cache.states())

    def warm_up(
        self, layers: LayerRange, kv: KvSettings | None = None, progress: Callable[[int], object] = lambda _: None
    ) -> tuple[StageCache, Payload]:
        """Reads what the range needs, see `read`, and runs one token through it; returns the caches after that token, and
        what it became.

        An architecture that looks at values while it runs (dbrx) reads the layers before the range as well.
        """
        self.read(layers, progress)
        cache = self.make_cache(layers, kv)
        output = self._one_token(layers, cache)
        self.evaluate(output, cache)
        return cache, output

    def read(self, layers: LayerRange, progress: Callable[[int], object] = lambda _: None) -> int:
        """Reads from disk what is missing of the weights that the range needs, and no others; returns their bytes.

        progress: told the bytes after each layer.
        """
        num_bytes = self.weights.read_named(self._needed_outside(layers))
        for index in range(*layers):
            num_bytes += self.weights.read_layer(index)
            progress(num_bytes)
        return num_bytes

    def release(self, path: Path, keep: Iterable[LayerRange]) -> None:
        """Gives back the memory of all weights that none of these ranges needs. path: where the model lies."""
        ranges = list(keep)
        layers = {index for bounds in ranges for index in range(*bounds)}
        names = frozenset().union(*(self._needed_outside(bounds) for bounds in ranges))
        if self.weights.excess(layers=layers, names=names):
            self._kinds.clear()  # some keep what they made of a layer's weights
            self.weights.release(cut_likewise(self.model, loading.load(path)), layers=layers, names=names)

    def needed_from(self, tensors: Mapping[str, mx.array], layers: LayerRange) -> frozenset[str]:
        """Which of these, as they were read from files, the weights that a range needs are made from; none may be read yet."""
        return self.weights.made_from(tensors, self.weights.of(range(*layers), self._needed_outside(layers)))

    def _needed_outside(self, layers: LayerRange) -> frozenset[str]:
        """Names of the weights outside the layers (embedding, head, norms) that a range needs."""
        if layers not in self._outside:
            cache = self.make_cache(layers)
            with silent(self.model):
                output = self._one_token(layers, cache)
            self._outside[layers] = self.weights.used_by([*arrays(output), *arrays(cache.states())])
        return self._outside[layers]

    @property
    def vocabulary_size(self) -> int:
        """Columns of the logits."""
        if not self._vocabulary_size:
            self.structure_before(self.num_layers, mx.zeros((1, 1), mx.int32))
        return self._vocabulary_size

    def structure_before(self, start: int, tokens: mx.array) -> Payload:
        """What the layers before `start` hand on of these tokens, to look at or to put something in its place: evaluated, it would
        read their weights. None for the first layer.
        """
        if not start:
            return None
        before = LayerRange(0, start)
        with silent(self.model):
            return self.forward(tokens, layers=before, cache=self.make_cache(before))

    def _one_token(self, layers: LayerRange, cache: StageCache) -> Payload:
        """The pass of one token, after a payload of ones, so that nothing before the range is computed. Not of zeros: some
        architectures (gemma3n) divide by the size of what they get.
        """
        token = mx.zeros((1, 1), mx.int32)
        payload = map_arrays(_in_its_place, self.structure_before(layers[0], token))
        return self.forward(token, layers=layers, cache=cache, payload=payload)

    def _begin_exchanging(self, layers: LayerRange) -> None:
        """Of modules outside the layers that are cut into tensor ranks, those are called in earnest which the range needs."""
        exchange = exchange_of(self.model)
        if exchange is not None and not exchange.is_silent:
            embeds = layers[0] == 0 or f"{exchange.plan.projection}.weight" in self._needed_outside(layers)
            exchange.begin(projects=layers[1] == self.num_layers, embeds=embeds)

    def _run(self, current: "_Pass", tokens: mx.array, entries: list[Any] | None) -> mx.array:
        self._switch.current = current
        try:
            logits = self.model(tokens, cache=entries)
        finally:
            self._switch.current = None
        current.check_complete()
        return self._noted(logits)

    def _noted(self, logits: mx.array) -> mx.array:
        self._vocabulary_size = logits.shape[-1]
        return logits

    def _find_owners(self, entries: list[Any]) -> tuple[int | None, ...]:
        """For each cache entry the layer that first gets it (nearly always the one with the same index) or None."""
        if len(entries) == self.num_layers:
            return tuple(range(self.num_layers))
        watch = _Watch(self.layers, entries)
        with silent(self.model):
            self._run(watch, mx.zeros((1, 1), mx.int32), entries)
        return tuple(watch.owners)


class _Switch:
    """Which pass the layers' calls belong to; None leaves the model as mlx-lm made it."""

    __slots__ = ("current",)

    def __init__(self) -> None:
        self.current: _Pass | None = None


class _Pass:
    """One redirected pass: counts the layers' calls and says what each returns."""

    def __init__(
        self,
        layers: list[nn.Module],
        bounds: LayerRange,
        shape: tuple[int, ...],
        cache: StageCache | None = None,
        payload: Payload = None,
        *,
        last_positions: int | None = None,
    ):
        self._layers = layers
        self._start, self._stop = bounds
        self._shape = shape
        self._cache = cache
        self._calls = 0
        self._received = payload.output if isinstance(payload, Carried) else payload
        self._changes = payload.changes if isinstance(payload, Carried) else {}
        self._before = _first_only(self._received)
        self._dicts: dict[str | int, dict[Any, Any]] = {}
        self._last_positions = last_positions
        self.output: Payload = None

    def call(self, run: Callable[..., Any], layer: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        """What the call of a layer returns. Always new array objects: some models write into what they get."""
        index = self._calls
        self._calls += 1
        if index >= len(self._layers) or self._layers[index] is not layer:
            raise CannotSplit("it calls its layers in another order than once each, first to last")
        if index == 0:
            self._dicts = {key: dict(value) for key, value in _dicts(args, kwargs)}
        if self._start <= index < self._stop:
            output = run(layer, *args, **kwargs)
            return self._leave(output, args, kwargs) if index == self._stop - 1 else output
        if self._cache is not None:
            self._cache.pass_over(index, self._shape)
        if index >= self._stop:
            return _fresh(self.output.output if isinstance(self.output, Carried) else self.output)
        if index < self._start - 1:
            return _fresh(self._before)
        for key, value in _dicts(args, kwargs):
            value.update(_fresh(self._changes.get(key, {})))
        return _fresh(self._received)

    def check_complete(self) -> None:
        if self._calls != len(self._layers):
            raise CannotSplit(f"it calls {self._calls} layers in a pass instead of {len(self._layers)}")

    def _leave(self, output: Payload, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Payload:
        if self._stop == len(self._layers):
            is_hidden = isinstance(output, mx.array) and output.ndim == 3 and output.shape[:2] == self._shape
            return _last(output, self._last_positions) if is_hidden else output
        changes = {key: self._changed(key, value) for key, value in _dicts(args, kwargs)}
        self.output = _fresh(Carried(output, changes) if any(changes.values()) else output)
        return output

    def _changed(self, key: str | int, value: dict[Any, Any]) -> dict[Any, Any]:
        before = self._dicts.get(key, {})
        return {name: item for name, item in value.items() if name not in before or before[name] is not item}


class _Watch(_Pass):
    """A pass of every layer that notes which cache entry each one gets."""

    def __init__(self, layers: list[nn.Module], entries: list[Any]):
        super().__init__(layers, LayerRange(0, len(layers)), (1, 1))
        self._index_of = {id(entry): index for index, entry in enumerate(entries)}
        self.owners: list[int | None] = [None] * len(entries)

    def call(self, run: Callable[..., Any], layer: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        for value in (*args, *kwargs.values()):
            entry = self._index_of.pop(id(value), None)
            if entry is not None:
                self.owners[entry] = self._calls
        return super().call(run, layer, args, kwargs)


def _in_its_place(array: mx.array) -> mx.array:
    make = mx.ones if mx.issubdtype(array.dtype, mx.floating) else mx.zeros
    return make(array.shape, array.dtype)


def _last(array: mx.array, count: int | None) -> mx.array:
    """Of (batch, n, size) so many positions at most; all for None."""
    return array if count is None or array.shape[1] <= count else array[:, -count:, :]


def _fresh(payload: Payload) -> Payload:
    return mx.stop_gradient(payload) if isinstance(payload, mx.array) else map_arrays(mx.stop_gradient, payload)


def _first_only(payload: Payload) -> Payload:
    """The shape of a layer's return value with only its first array, so that an illegal read of the rest fails."""
    if isinstance(payload, tuple | list) and payload:
        return type(payload)([_first_only(payload[0]), *[None] * (len(payload) - 1)])
    return payload


def _dicts(args: tuple[Any, ...], kwargs: dict[str, Any]) -> list[tuple[str | int, dict[Any, Any]]]:
    """The dicts among a call's arguments, by position or name: layers of some models leave values in them."""
    given: list[tuple[str | int, Any]] = [*enumerate(args), *kwargs.items()]
    return [(key, value) for key, value in given if type(value) is dict]


def _redirect(layers: list[nn.Module], switch: _Switch) -> None:
    """Turns each layer into an instance of a subclass of its own class, whose call asks the current pass."""
    classes: dict[type, type] = {}
    for layer in layers:
        kind = type(layer)
        if kind not in classes.values():
            if kind not in classes:
                classes[kind] = _redirected(kind, switch)
            layer.__class__ = classes[kind]


def _redirected(kind: type[nn.Module], switch: _Switch) -> type[nn.Module]:
    run = kind.__call__

    def call(self: nn.Module, *args: Any, **kwargs: Any) -> Any:
        current = switch.current
        if current is None:
            return run(self, *args, **kwargs)
        return current.call(run, self, args, kwargs)

    return type(kind.__name__, (kind,), {"__call__": call, "__module__": kind.__module__})
