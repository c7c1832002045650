"""What one stage keeps of past sequences, in memory and on disk, under the names that the head's directory gives.

Owns the bytes; decides only what is in memory beside the disk: a part goes to disk when the worker has nothing else to
do, or when it must leave memory. A part holds a copy of each distinct entry of a stage's cache: for a block, of just
the tokens [start, end); for a snapshot (caches that cannot be cut), of everything up to `end`. Beside its own parts it
holds copies of what stages of other layers keep of the same tokens, for a store of more layers that may come after it.
What no directory names any more is never used again, so it is the first to go where room is needed. All methods belong
to the MLX thread.
"""

from collections import OrderedDict
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Any

import mlx.core as mx
from mlx_lm.models.cache import CacheList, RotatingKVCache

from protocol.errors import WireError
from protocol.values import LayerRange
from strategy.prefix import Key
from workers.cache import kv_parts
from workers.cache.disk_tier import DiskTier
from workers.cache.kv_parts import KvPart
from workers.cache.stage_cache import StageCache
from workers.kv_cache import KvSettings, rows
from workers.model.payload import Buffer, Spec
from workers.model.split_model import SplitModel

# What a store that is given up still hands to its disk, since people wait for what comes after it.
_RETIRED_BYTES = 64 << 20


# By span, what each stage of a pipeline has of a sequence, with its layers.
Handed = Sequence[Sequence[tuple[LayerRange, KvPart]]]


class PrefixLost(Exception):
    """A part that the directory knows is not here, or its file is damaged; or what was handed over does not fit."""


def can_cut(cache: StageCache) -> bool:
    """Whether every cache can be cut at any token, now and later, so that sequences can share blocks."""
    return all(_keeps_every_token(cache.entries[index]) for index in cache.distinct())


def part_of(cache: StageCache, start: int, end: int) -> KvPart:
    """A copy, unevaluated, of tokens [start, end) of a running sequence's cache; where it cannot be cut, of all its tokens,
    which end there.
    """
    distinct = cache.distinct()
    taken = [rows.cut(cache.entries[at], start, end) for at in distinct] if can_cut(cache) else cache.save()
    return KvPart(end, dict(zip(distinct, taken, strict=True)))


def _keeps_every_token(entry: Any) -> bool:
    if isinstance(entry, CacheList):
        return all(_keeps_every_token(part) for part in entry.caches)
    return rows.can_read(entry) and not isinstance(entry, RotatingKVCache)


class PrefixStore:
    """The parts of one route on one stage, of the `layers` that it has there.

    memory_bytes: the most to hold in memory; copy_bytes: the most to hold of other stages' parts; disk: None keeps
    nothing across restarts. kv: None is mlx-lm's default kind.
    """

    def __init__(
        self,
        model: SplitModel,
        layers: LayerRange,
        *,
        memory_bytes: int,
        disk: DiskTier | None = None,
        copy_bytes: int = 0,
        kv: KvSettings | None = None,
    ):
        self._model = model
        self.layers = layers
        self._kv = kv
        self._memory_bytes = memory_bytes
        self._disk = disk
        self._parts: OrderedDict[Key, KvPart] = OrderedDict()  # least recently used first
        self._unwritten: OrderedDict[Key, None] = OrderedDict()  # of these, what the disk shall get, oldest first
        self._copies = _Copies(copy_bytes)
        self._layouts: dict[LayerRange, StageCache] = {}
        self._own_bytes = 0

    def __repr__(self) -> str:
        return f"PrefixStore({self.layers}, {len(self._parts)} parts, {self.num_bytes} bytes)"

    def __len__(self) -> int:
        return len(self._parts)

    @property
    def num_bytes(self) -> int:
        """In memory, copies of other stages' parts included."""
        return self._own_bytes + self._copies.num_bytes

    @property
    def known(self) -> list[tuple[Key, int]]:
        """Keys of all parts here, in memory or on disk, with their numbers of tokens; least recently used first."""
        on_disk = self._disk.num_tokens_by_key if self._disk else []
        in_memory = [(key, part.end) for key, part in self._parts.items()]
        return [(key, num_tokens) for key, num_tokens in on_disk if key not in self._parts] + in_memory

    @property
    def disk_bytes(self) -> int:
        """Bytes of files, those still being written included."""
        return self._disk.num_bytes if self._disk else 0

    def bytes_of(self, keys: Iterable[Key]) -> int:
        """Bytes that these parts take in memory."""
        return sum(self._parts[key].num_bytes for key in keys if key in self._parts)

    def limit(self, *, memory_bytes: int, copy_bytes: int) -> None:
        """There is another amount of room from now on."""
        self._memory_bytes = memory_bytes
        self._copies.limit(copy_bytes)
        self._shrink()

    def attach(self, disk: DiskTier | None) -> None:
        """What is kept goes to this disk from now on, what is in memory already included."""
        self._disk = disk
        there = {key for key, _ in disk.num_tokens_by_key} if disk else self._parts.keys()
        self._unwritten = OrderedDict((key, None) for key in self._parts if key not in there)

    def spill(self) -> bool:
        """Give one more part to the disk; False when it has all."""
        if not self._unwritten:
            return False
        key = next(iter(self._unwritten))
        self._write(key, self._parts[key])
        return True

    def flush(self, is_over: Callable[[], bool] = lambda: False) -> None:
        """Return when everything kept is on disk, where there is one, or as much of it as went there until `is_over`."""
        if self._disk is None:
            return
        self._disk.flush()
        while not is_over() and self.spill():
            self._disk.flush()  # one at a time: what is asked for is written, however long that takes

    def begin(self, keys: Sequence[Key], kv: KvSettings | None, handed: Handed = ()) -> StageCache:
        """A cache that begins with the tokens of an earlier sequence, in the parts named by `keys`, and behind them what
        was handed over; empty without either.

        kv: None is mlx-lm's default kind. The parts of `handed` are emptied, so that its memory is needed once.

        Raises:
            PrefixLost: a part is missing, damaged, or of another kind.
        """
        cache = self._model.make_cache(self.layers, kv)
        if not keys and not handed:
            return cache
        parts = [self._find(key).entries for key in reversed(keys)][::-1]  # the beginning goes last
        others = [self._taken_together(stages) for stages in handed]
        try:
            if not can_cut(cache):
                return cache.load([(parts + others)[-1][index] for index in cache.distinct()])
            for index in cache.distinct():
                entry = cache.entries[index]
                rows.join(entry, [*(part[index] for part in parts), *(part.pop(index) for part in others)])
                if others:
                    mx.eval(entry.state)
        except (ValueError, KeyError) as error:
            raise PrefixLost(f"a part does not fit: {error}") from error
        return cache

    def _taken_together(self, stages: Sequence[tuple[LayerRange, KvPart]]) -> dict[int, Any]:
        """The entries that parts of other layers have together, which lose them. Raises PrefixLost where one lacks."""
        part = kv_parts.combined(self._layout, [(self._layout_of(layers), part) for layers, part in stages])
        if part is None:
            raise PrefixLost(f"layers are missing in what was handed over of {[layers for layers, _ in stages]}")
        for _, taken in stages:
            taken.entries.clear()
        return part.entries

    def keep(self, cache: StageCache, spans: Sequence[tuple[int, int]], keys: Sequence[Key]) -> None:
        """Copy parts, spans of tokens, out of a running sequence's cache."""
        wanted = [(key, span) for key, span in zip(keys, spans, strict=True) if key not in self._parts]
        made = {key: part_of(cache, *span) for key, span in wanted}
        mx.eval([entry.state for part in made.values() for entry in part.entries.values()])
        for key in reversed(keys):  # the end of a chain goes before its beginning
            if key in made:
                self._hold(key, made[key], on_disk=False)
            else:
                self._touch(key)

    def drop(self, keys: Sequence[Key]) -> None:
        """The directory gave these up."""
        for key in keys:
            self._copies.drop(key)
            part = self._parts.pop(key, None)
            self._unwritten.pop(key, None)
            if part is not None:
                self._own_bytes -= part.num_bytes
            if self._disk is not None:
                self._disk.remove(key)

    # --- copies between stages

    def export(self, key: Key) -> tuple[Spec, list[memoryview]] | None:
        """A part in memory as a specification and buffers, for `adopt` on another stage; None where it cannot be sent."""
        part = self._parts.get(key)
        return None if part is None else kv_parts.encode(part)

    def adopt(
        self, layers: LayerRange, key: Key, spec: Spec, buffers: Sequence[Buffer], *, is_earlier: bool = False
    ) -> None:
        """Hold what the stage of these other layers keeps under a key. Raises WireError for a part that is none.

        is_earlier: it was used before whatever is held already.
        """
        if not 0 <= layers[0] < layers[1] <= self._model.num_layers:
            raise WireError(f"a part of a cache is of layers {tuple(layers)}, which the model does not have")
        part = kv_parts.decode(spec, buffers)
        if is_earlier:
            self._copies.add_earlier(layers, key, part)
        else:
            self._copies.add(layers, key, part)

    def take_over(self, earlier: "PrefixStore") -> None:
        """Keep what covers the layers of this store, its copies included, of one that is given up. Of the same kind of
        cache.
        """
        for key, parts in earlier.in_memory():
            part = kv_parts.combined(self._layout, [(self._layout_of(layers), part) for layers, part in parts.items()])
            if part is not None:
                self._hold(key, part, on_disk=False)
            for layers, copied in parts.items():
                if layers[1] <= self.layers[0] or layers[0] >= self.layers[1]:
                    self._copies.add(layers, key, copied)

    def in_memory(self) -> Iterator[tuple[Key, dict[LayerRange, KvPart]]]:
        """Each key with the parts of it that are in memory, by their layers; least recently used first."""
        for key in [*(key for key in self._copies if key not in self._parts), *self._parts]:
            own = {self.layers: self._parts[key]} if key in self._parts else {}
            yield key, own | self._copies.of(key)

    def retire(self) -> None:
        """Nothing is asked of this store again: it gives its memory back, and a little of what is new to its disk."""
        num_bytes = 0
        while self._unwritten and num_bytes < _RETIRED_BYTES:
            num_bytes += self._parts[next(iter(self._unwritten))].num_bytes
            self.spill()
        self._parts.clear()
        self._unwritten.clear()
        self._own_bytes = 0
        self._copies.limit(0)

    @property
    def _layout(self) -> StageCache:
        return self._layout_of(self.layers)

    def _layout_of(self, layers: LayerRange) -> StageCache:
        if layers not in self._layouts:
            self._layouts[layers] = self._model.make_cache(layers, self._kv)
        return self._layouts[layers]

    def _find(self, key: Key) -> KvPart:
        part = self._parts.get(key)
        if part is not None:
            self._touch(key)
            return part
        read = self._disk.read(key) if self._disk is not None else None
        indices = self._layout.distinct()
        if read is None or len(read[0]) != len(indices):
            raise PrefixLost(key.hex())
        part = KvPart(read[1], dict(zip(indices, read[0], strict=True)))
        self._hold(key, part, on_disk=True)
        return part

    def _touch(self, key: Key) -> None:
        if key in self._parts:
            self._parts.move_to_end(key)
        self._copies.touch(key)

    def _write(self, key: Key, part: KvPart) -> None:
        del self._unwritten[key]
        if self._disk is not None:
            self._disk.write(key, list(part.entries.values()), part.end)

    def _hold(self, key: Key, part: KvPart, *, on_disk: bool) -> None:
        if key in self._parts:
            return
        self._parts[key] = part
        self._own_bytes += part.num_bytes
        if self._disk is not None and not on_disk:
            self._unwritten[key] = None
        self._shrink()

    def _shrink(self) -> None:
        """What exceeds the budget stays on disk only, or is lost without one."""
        while self._own_bytes > self._memory_bytes and len(self._parts) > 1:
            oldest_key, oldest = self._parts.popitem(last=False)
            self._own_bytes -= oldest.num_bytes
            if oldest_key in self._unwritten:
                self._write(oldest_key, oldest)


class _Copies:
    """Parts of other stages, least recently used first, within a budget of bytes."""

    def __init__(self, limit_bytes: int):
        self._limit_bytes = limit_bytes
        self._parts: OrderedDict[Key, dict[LayerRange, KvPart]] = OrderedDict()
        self.num_bytes = 0

    def __repr__(self) -> str:
        return f"_Copies({len(self._parts)} keys, {self.num_bytes} bytes)"

    def __iter__(self) -> Iterator[Key]:
        return iter(self._parts)

    def of(self, key: Key) -> dict[LayerRange, KvPart]:
        return self._parts.get(key, {})

    def add(self, layers: LayerRange, key: Key, part: KvPart) -> None:
        parts = self._parts.setdefault(key, {})
        self.num_bytes += part.num_bytes - (parts[layers].num_bytes if layers in parts else 0)
        parts[layers] = part
        self.touch(key)
        self.limit(self._limit_bytes)

    def add_earlier(self, layers: LayerRange, key: Key, part: KvPart) -> None:
        """Only where there is room; what is held already counts as more recently used."""
        if layers in self.of(key) or self.num_bytes + part.num_bytes > self._limit_bytes:
            return
        is_new = key not in self._parts
        self._parts.setdefault(key, {})[layers] = part
        self.num_bytes += part.num_bytes
        if is_new:
            self._parts.move_to_end(key, last=False)

    def touch(self, key: Key) -> None:
        if key in self._parts:
            self._parts.move_to_end(key)

    def drop(self, key: Key) -> None:
        self.num_bytes -= sum(part.num_bytes for part in self._parts.pop(key, {}).values())

    def limit(self, limit_bytes: int) -> None:
        self._limit_bytes = limit_bytes
        while self.num_bytes > limit_bytes:
            self.drop(next(iter(self._parts)))
