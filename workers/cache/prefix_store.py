"""What one stage keeps of past sequences, in memory and on disk, under the names that the head's directory gives.

Owns the bytes; decides only what is in memory beside the disk: a part goes to disk when the worker has nothing else to
do, or when it must leave memory. A part holds a copy of each distinct entry of a stage's cache: for a block, of just
the tokens [start, end); for a snapshot (caches that cannot be cut), of everything up to `end`. All methods belong to the
MLX thread.
"""

import copy
from collections import OrderedDict
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import mlx.core as mx
from mlx_lm.models.cache import CacheList, RotatingKVCache

from protocol.values import LayerRange
from strategy.prefix import Key
from workers.cache.disk_tier import DiskTier
from workers.cache.stage_cache import StageCache
from workers.kv_cache import KvSettings, rows
from workers.model.split_model import SplitModel


class PrefixLost(Exception):
    """A part that the directory knows is not here, or its file is damaged."""


@dataclass(frozen=True)
class _Part:
    entries: list[Any]
    num_bytes: int
    end: int  # of the tokens it covers


def can_cut(cache: StageCache) -> bool:
    """Whether every cache can be cut at any token, now and later, so that sequences can share blocks."""
    return all(_keeps_every_token(cache.entries[index]) for index in cache.distinct())


def _keeps_every_token(entry: Any) -> bool:
    if isinstance(entry, CacheList):
        return all(_keeps_every_token(part) for part in entry.caches)
    return rows.can_read(entry) and not isinstance(entry, RotatingKVCache)


class PrefixStore:
    """The parts of one route on one stage.

    memory_bytes: the most to hold in memory; disk: None keeps nothing across restarts.
    """

    def __init__(self, model: SplitModel, layers: LayerRange, *, memory_bytes: int, disk: DiskTier | None):
        self._model = model
        self._layers = layers
        self._memory_bytes = memory_bytes
        self._disk = disk
        self._parts: OrderedDict[Key, _Part] = OrderedDict()  # least recently used first
        self._unwritten: OrderedDict[Key, None] = OrderedDict()  # of these, what the disk shall get, oldest first
        self.num_bytes = 0

    def __repr__(self) -> str:
        return f"PrefixStore({self._layers}, {len(self._parts)} parts, {self.num_bytes} bytes)"

    def __len__(self) -> int:
        return len(self._parts)

    @property
    def known(self) -> list[tuple[Key, int]]:
        """Keys that survived on disk, least recently used first, with their numbers of tokens."""
        return self._disk.num_tokens_by_key if self._disk else []

    @property
    def disk_bytes(self) -> int:
        """Bytes of files, those still being written included."""
        return self._disk.num_bytes if self._disk else 0

    def bytes_of(self, keys: Iterable[Key]) -> int:
        """Bytes that these parts take in memory."""
        return sum(self._parts[key].num_bytes for key in keys if key in self._parts)

    def spill(self) -> bool:
        """Give one more part to the disk; False when it has all."""
        if not self._unwritten:
            return False
        key = next(iter(self._unwritten))
        self._write(key, self._parts[key])
        return True

    def flush(self) -> None:
        """Return when everything kept is on disk, where there is one."""
        while self.spill():
            pass
        if self._disk is not None:
            self._disk.flush()

    def begin(self, keys: Sequence[Key], kv: KvSettings | None) -> StageCache:
        """A cache that begins with the tokens of an earlier sequence, in the parts named by `keys`; empty without keys.

        kv: None is mlx-lm's default kind.

        Raises:
            PrefixLost: a part is missing, damaged, or of another kind.
        """
        cache = self._model.make_cache(self._layers, kv)
        if not keys:
            return cache
        parts = [self._find(key).entries for key in keys]
        of = {index: [entries[position] for entries in parts] for position, index in enumerate(cache.distinct())}
        if not can_cut(cache):
            return cache.replaced(lambda index, _: copy.deepcopy(of[index][-1]))
        for index, blocks in of.items():
            try:
                rows.join(cache.entries[index], blocks)
            except ValueError as error:
                raise PrefixLost(str(error)) from error
        return cache

    def keep(self, cache: StageCache, spans: Sequence[tuple[int, int]], keys: Sequence[Key]) -> None:
        """Copy parts, spans of tokens, out of a running sequence's cache."""
        cuts = can_cut(cache)
        distinct = [cache.entries[index] for index in cache.distinct()]
        new = [(key, span) for key, span in zip(keys, spans, strict=True) if key not in self._parts]
        parts = [[rows.cut(entry, *span) for entry in distinct] if cuts else copy.deepcopy(distinct) for _, span in new]
        mx.eval([entry.state for entries in parts for entry in entries])
        for (key, (_, end)), entries in zip(new, parts, strict=True):
            if self._disk is not None:
                self._unwritten[key] = None
            self._hold(key, entries, end)

    def drop(self, keys: Sequence[Key]) -> None:
        """The directory gave these up."""
        for key in keys:
            part = self._parts.pop(key, None)
            self._unwritten.pop(key, None)
            if part is not None:
                self.num_bytes -= part.num_bytes
            if self._disk is not None:
                self._disk.remove(key)

    def _find(self, key: Key) -> _Part:
        part = self._parts.get(key)
        if part is not None:
            self._parts.move_to_end(key)
            return part
        entries = self._disk.read(key) if self._disk is not None else None
        if entries is None:
            raise PrefixLost(key.hex())
        return self._hold(key, entries, 0)

    def _write(self, key: Key, part: _Part) -> None:
        del self._unwritten[key]
        if self._disk is not None:
            self._disk.write(key, part.entries, part.end)

    def _hold(self, key: Key, entries: list[Any], end: int) -> _Part:
        """Keep a part in memory; what exceeds the budget stays on disk only, or is lost without one."""
        part = self._parts[key] = _Part(entries, sum(entry.nbytes for entry in entries), end)
        self.num_bytes += part.num_bytes
        while self.num_bytes > self._memory_bytes and len(self._parts) > 1:
            oldest_key, oldest = self._parts.popitem(last=False)
            self.num_bytes -= oldest.num_bytes
            if oldest_key in self._unwritten:
                self._write(oldest_key, oldest)
        return part
