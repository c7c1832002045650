"""The caches of one sequence (or one batch) on one stage, as the list of full length that the model's code expects.

Owns which entries are real. Entries of layers that the stage runs are mlx-lm's own caches. The rest are stand-ins, one
object for each kind of cache, which hold no content but advance with each pass, so that the offsets and masks which
model code reads from any entry come right. An operation on the list visits each object once.
"""

import copy
from collections.abc import Callable, Hashable, Iterable, Mapping, Sequence
from typing import Any, Self

import mlx.core as mx
from mlx_lm.models.cache import ArraysCache, BatchKVCache, CacheList, KVCache, QuantizedKVCache

from workers.kv_cache import rows
from workers.kv_cache.batch import batch_of_one, row_view


class StageCache:
    """entries: what the model is called with. owned: indices of the real ones.

    stand_ins: by the layer after whose call they move on, the groups of indices that share one object. renew: makes an
    empty cache like this one.
    """

    def __init__(
        self,
        entries: list[Any],
        owned: tuple[int, ...],
        stand_ins: Mapping[int, tuple[int, ...]] | None = None,
        renew: "Callable[[], StageCache] | None" = None,
    ):
        self._stand_ins = stand_ins or {}
        self.renew = renew
        self.entries = _sharing(entries, self._stand_ins.values())
        self.owned = owned

    def __repr__(self) -> str:
        return f"StageCache({len(self.owned)} of {len(self.entries)} entries, {self.nbytes} bytes)"

    @classmethod
    def of(cls, entries: list[Any], owners: Sequence[int | None], layers: tuple[int, int]) -> Self:
        """Keeps, of a fresh list, the entries of the given layers and lets one of each kind stand in for the others.

        owners: for each entry the layer that it belongs to; None for what the model itself keeps, on every stage.
        """
        start, stop = layers
        kinds: dict[Hashable, list[int]] = {}
        owned = []
        for index, owner in enumerate(owners):
            if owner is None or start <= owner < stop:
                owned.append(index)
            else:
                kinds.setdefault(_kind(entries[index]), []).append(index)
        stand_ins = {max(owners[index] or 0 for index in group): tuple(group) for group in kinds.values()}
        return cls(entries, tuple(owned), stand_ins)

    @classmethod
    def merge(cls, caches: Sequence[Self]) -> Self:
        """One batch of several single sequences, in order. Only for caches that `can_batch`."""
        first = caches[0]
        if len(caches) == 1:
            return first.replaced(
                lambda _, entry: batch_of_one(entry) if type(entry) is KVCache else entry.merge([entry])
            )
        return first.replaced(lambda index, entry: entry.merge([cache.entries[index] for cache in caches]))

    def extract(self, index: int) -> Self:
        """Sequence `index` of a batch, as a cache of its own."""
        return self.replaced(lambda _, entry: _row(entry, index))

    def view(self, index: int) -> Self:
        """As `extract`, to read from only: shares the batch's memory where it can."""
        return self.replaced(
            lambda _, entry: row_view(entry, index) if type(entry) is BatchKVCache else entry.extract(index)
        )

    def extend(self, other: Self) -> None:
        """Appends the sequences of another batch."""
        for index in self.distinct():
            self.entries[index].extend(other.entries[index])

    def filter(self, indices: Sequence[int]) -> None:
        """Keeps the given sequences of a batch, in that order."""
        kept = mx.array(list(indices), mx.int32)
        for index in self.distinct():
            self.entries[index].filter(kept)

    def prepare(self, *, lengths: Sequence[int], right_padding: Sequence[int]) -> None:
        """Before chunks of right-padded sequences: tokens and padding of each sequence in what follows."""
        for index in self.distinct():
            self.entries[index].prepare(lengths=list(lengths), right_padding=list(right_padding))

    def finalize(self) -> None:
        """After the chunks that `prepare` announced: the padding goes."""
        for index in self.distinct():
            self.entries[index].finalize()

    def is_trimmable(self) -> bool:
        return all(self.entries[index].is_trimmable() for index in self.distinct())

    def trim(self, num_tokens: int) -> None:
        """Forgets the last tokens. Only when `is_trimmable`."""
        for index in self.distinct():
            self.entries[index].trim(num_tokens)

    def clear(self) -> None:
        """Forgets every token and gives the memory back. Only for caches that `SplitModel.make_cache` made."""
        assert self.renew is not None
        self.entries[:] = self.renew().entries

    def fork(self) -> Self:
        """Another sequence with the same tokens so far. Memory is shared until one of the two writes."""
        return self.replaced(lambda _, entry: copy.deepcopy(entry))

    def save(self) -> list[Any]:
        """A copy of a sequence with tokens, as caches of mlx-lm's own classes (its prompt-cache files take them)."""
        entries = [self.entries[index] for index in self.distinct()]
        return [rows.cut(entry, 0, entry.offset) if _is_readable(entry) else copy.deepcopy(entry) for entry in entries]

    def load(self, saved: Sequence[Any]) -> Self:
        """An empty sequence's cache like this one, with what `save` gave for one of the same layers and kind.

        Raises ValueError when it does not fit.
        """
        if len(saved) != len(self.distinct()):
            raise ValueError(f"{len(saved)} saved caches do not fit {len(self.distinct())}")
        kept = dict(zip(self.distinct(), saved, strict=True))
        return self.replaced(lambda index, entry: _loaded(copy.deepcopy(entry), kept[index]))

    @property
    def nbytes(self) -> int:
        return sum(_num_bytes(self.entries[index]) for index in self.distinct())

    def states(self) -> list[Any]:
        """What to evaluate after a pass, so that nothing of it stays a pending graph."""
        return [self.entries[index].state for index in self.distinct()]

    def pass_over(self, layer: int, shape: tuple[int, ...]) -> None:
        """Moves a stand-in on by tokens of shape (batch, n), when the last of the layers it stands in for is skipped."""
        group = self._stand_ins.get(layer)
        if group is not None:
            _advance(self.entries[group[0]], *shape)

    def distinct(self) -> tuple[int, ...]:
        return self.owned + tuple(group[0] for group in self._stand_ins.values())

    def sharing(self, index: int) -> tuple[int, ...]:
        """The indices at which the object at `index` stands; the first of them is in `distinct`."""
        return next((group for group in self._stand_ins.values() if index in group), (index,))

    def replaced(self, change: Callable[[int, Any], Any]) -> Self:
        """A cache of the same layout whose objects are `change(index, object)`."""
        entries: list[Any] = [None] * len(self.entries)
        for index in self.distinct():
            entries[index] = change(index, self.entries[index])
        return type(self)(entries, self.owned, self._stand_ins, self.renew)


def can_batch(entries: Sequence[Any]) -> bool:
    """Whether mlx-lm can put sequences with these caches into one batch."""
    return all(
        can_batch(entry.caches) if isinstance(entry, CacheList) else hasattr(entry, "merge") for entry in entries
    )


def _row(entry: Any, index: int) -> Any:
    if type(entry) is BatchKVCache and entry.keys is None:  # of a layer that keeps nothing, as some of nemotron-nas
        return KVCache()
    return entry.extract(index)


def _sharing(entries: list[Any], groups: Iterable[tuple[int, ...]]) -> list[Any]:
    shared = list(entries)
    for group in groups:
        for index in group:
            shared[index] = entries[group[0]]
    return shared


def _num_bytes(entry: Any) -> int:
    if isinstance(entry, QuantizedKVCache) and entry.empty():  # mlx-lm cannot count an empty one
        return 0
    num_bytes: int = entry.nbytes
    return num_bytes


def _is_readable(entry: Any) -> bool:
    return not isinstance(entry, CacheList) and rows.can_read(entry)


def _loaded(entry: Any, saved: Any) -> Any:
    if type(saved) is type(entry):
        return copy.deepcopy(saved)
    if type(saved) is not ArraysCache or not _is_readable(entry):
        raise ValueError(f"a saved {type(saved).__name__} does not fit a {type(entry).__name__}")
    rows.join(entry, [saved])
    return entry


def _kind(entry: Any) -> Hashable:
    """Equal for fresh caches that behave alike when only lengths matter."""
    if isinstance(entry, CacheList):
        return (CacheList, *map(_kind, entry.caches))
    if isinstance(entry, ArraysCache):
        return (type(entry), len(entry.cache))
    sizes = (item for item in vars(entry).items() if isinstance(item[1], bool | int | float | str))
    return (type(entry), *sizes)


def _advance(entry: Any, batch_size: int, num_tokens: int) -> None:
    if isinstance(entry, CacheList):
        for part in entry.caches:
            _advance(part, batch_size, num_tokens)
    elif isinstance(entry, ArraysCache):
        for slot in range(len(entry.cache)):
            entry[slot] = mx.zeros((batch_size, 1))
        entry.advance(num_tokens)
    elif hasattr(entry, "update_and_fetch"):
        nothing = mx.zeros((batch_size, 1, num_tokens, 1))
        entry.update_and_fetch(nothing, nothing)
    else:  # DeepSeek V4.1's cache, whose window's length the model reads
        entry.update_window(mx.zeros((batch_size, num_tokens, 1)))
