"""The caches of the sequences on one stage: alone, or merged with others into a slot's batch; and their way back.

Prompts that are read in one step are merged for it, filled up behind their ends. They stay so until one of them goes on: where all do
in one slot, that is its batch.

A step whose guesses turned out wrong leaves tokens in the caches that are none of the sequence's: the next one says where it
begins, and the caches go back to there. Those that keep every token forget the last of them, those of several steps, if these
followed each other; the others (sliding windows, state spaces) are copied before each step with guesses, and go back to where that
step began and nowhere else. Belongs to the MLX thread.
"""

import copy
from collections.abc import Callable, Collection, Iterable, Sequence
from dataclasses import dataclass, field
from itertools import chain
from typing import Any

from protocol.messages import Row, Step
from workers.cache.stage_cache import StageCache
from workers.kv_cache import rows


@dataclass(frozen=True)
class _ReturnPoint:
    """copies: by index, of the entries that cannot forget their last tokens, as they were after `num_tokens`."""

    num_tokens: int
    copies: dict[int, Any]

    @classmethod
    def of(cls, cache: StageCache, num_tokens: int) -> "_ReturnPoint":
        entries = {index: cache.entries[index] for index in cache.distinct()}
        return cls(
            num_tokens, {index: copy.deepcopy(entry) for index, entry in entries.items() if not rows.can_forget(entry)}
        )

    def reaches(self, num_tokens: int) -> bool:
        return num_tokens == self.num_tokens if self.copies else num_tokens >= self.num_tokens

    def returned(self, cache: StageCache, num_excess: int) -> StageCache:
        """The cache without its last tokens, in the same memory."""

        def entry_at(index: int, entry: Any) -> Any:
            if index in self.copies:
                return self.copies[index]
            entry.trim(num_excess)
            return entry

        return cache.replaced(entry_at)


@dataclass
class _OwnCache:
    cache: StageCache | None  # None while merged into a slot
    back: _ReturnPoint | None = None


@dataclass
class _SharedCache:
    rows: list[int] = field(default_factory=list)
    cache: StageCache | None = None


class SequenceCaches:
    """See the module."""

    def __init__(self) -> None:
        self._sequences: dict[int, _OwnCache] = {}
        self._slots: dict[int, _SharedCache] = {}
        self._read: list[_SharedCache] = []  # prompts of one step, of which none went on

    def __repr__(self) -> str:
        return f"SequenceCaches({len(self._sequences)} sequences in {len(self._slots)} slots)"

    @property
    def nbytes(self) -> int:
        """Of all caches here."""
        caches = [sequence.cache for sequence in self._sequences.values()]
        caches += [shared.cache for shared in self._shared]
        return sum(cache.nbytes for cache in caches if cache is not None)

    @property
    def _shared(self) -> Iterable[_SharedCache]:
        return chain(self._slots.values(), self._read)

    def open(self, sequence: int, cache: StageCache) -> None:
        """A sequence begins with this cache."""
        self._sequences[sequence] = _OwnCache(cache)

    def close(self, sequence: int) -> None:
        """A sequence ended; its row leaves its slot when the slot runs next, or now if it was the last."""
        self._sequences.pop(sequence, None)
        for number, slot in list(self._slots.items()):
            if not self._has_open(slot):
                del self._slots[number]
        self._read = [shared for shared in self._read if self._has_open(shared)]

    def clear(self) -> None:
        """Forget them all."""
        self._sequences.clear()
        self._slots.clear()
        self._read.clear()

    def can_return(self, sequence: int, num_tokens: int) -> bool:
        """Whether the cache of a sequence can go back to its first tokens alone."""
        back = self._sequences[sequence].back
        return back is not None and back.reaches(num_tokens)

    def of(self, step: Step, num_tokens_of: Callable[[int], int]) -> StageCache:
        """What a step runs in. num_tokens_of: how many tokens are in a sequence's cache, guesses included."""
        for row in step.rows:
            num_excess = num_tokens_of(row.sequence) - row.position
            if num_excess:
                self._return(row.sequence, num_excess)
        first = step.rows[0]
        if step.slot is None and len(step.rows) > 1:
            return self._merged_for(step)
        if step.slot is None or (len(step.rows) == 1 and (step.num_tokens > 1 or step.slot not in self._slots)):
            return self._alone(first, guesses=first.num_sampled > 1)
        slot = self._slots.setdefault(step.slot, _SharedCache())
        self._arrange(slot, step.rows)
        assert slot.cache is not None
        return slot.cache

    def _merged_for(self, step: Step) -> StageCache:
        sequences, padding = [row.sequence for row in step.rows], [row.padding for row in step.rows]
        merged = self._joined(None, sequences)
        self._read.append(_SharedCache(sequences, merged))
        merged.prepare(lengths=[step.num_tokens - count for count in padding], right_padding=padding)
        return merged

    def settle(self, step: Step) -> None:
        """What a step does is launched: what filled its prompts up goes."""
        if step.slot is None and len(step.rows) > 1:
            shared = self._read[-1]
            assert shared.cache is not None
            shared.cache.finalize()

    def read_only(self, sequence: int, num_excess: int = 0) -> StageCache:
        """The cache of one sequence, to copy from before the next step; it stays where it is. num_excess: of its last tokens,
        how many are to be left out where it cannot be cut.
        """
        state = self._sequences[sequence]
        own = state.cache
        if own is None:
            shared = next(shared for shared in self._shared if sequence in shared.rows)
            assert shared.cache is not None
            return shared.cache.view(shared.rows.index(sequence))
        if num_excess and state.back is not None and state.back.copies:
            return state.back.returned(own.fork(), num_excess)
        return own

    def _alone(self, row: Row, *, guesses: bool) -> StageCache:
        state = self._sequences[row.sequence]
        state.cache = own = self._own(row.sequence)
        for number, slot in list(self._slots.items()):
            if not slot.rows:
                del self._slots[number]
        if not guesses:
            state.back = None
        elif state.back is None or state.back.copies:
            state.back = _ReturnPoint.of(own, row.position)
        return own

    def _return(self, sequence: int, num_excess: int) -> None:
        state = self._sequences[sequence]
        assert state.cache is not None, "only who ran alone has guesses to forget"
        assert state.back is not None
        state.cache, state.back = state.back.returned(state.cache, num_excess), None

    def _own(self, sequence: int) -> StageCache:
        """The cache of one sequence alone; taken out of its slot's batch where it is in one."""
        for shared in [shared for shared in self._read if sequence in shared.rows]:
            self._read.remove(shared)
            assert shared.cache is not None
            for index, other in enumerate(shared.rows):
                if other in self._sequences:
                    self._sequences[other].cache = shared.cache.extract(index)
        own = self._sequences[sequence].cache
        if own is not None:
            return own
        slot = next(slot for slot in self._slots.values() if sequence in slot.rows)
        assert slot.cache is not None
        index = slot.rows.index(sequence)
        own = slot.cache.extract(index)
        del slot.rows[index]
        if self._has_open(slot):
            slot.cache.filter([other for other in range(len(slot.rows) + 1) if other != index])
        else:  # it may not run again for long: who ended must not keep memory until then
            slot.rows, slot.cache = [], None
        return own

    def _has_open(self, slot: _SharedCache) -> bool:
        return any(row in self._sequences for row in slot.rows)

    def _arrange(self, slot: _SharedCache, step_rows: tuple[Row, ...]) -> None:
        """Bring the slot's merged cache to exactly these rows: drop who left, append who came with a cache of its own."""
        wanted = [row.sequence for row in step_rows]
        if slot.rows == wanted:
            return
        stay = _in_order(slot.rows, wanted)
        for sequence in [row for row in slot.rows if row in self._sequences and row not in stay]:
            # On its way to another slot, or come back behind others before that ran.
            self._sequences[sequence].cache = self._own(sequence)
        keep = [index for index, sequence in enumerate(slot.rows) if sequence in stay]
        if slot.cache is not None and not keep:
            slot.cache = None
        elif slot.cache is not None and len(keep) < len(slot.rows):
            slot.cache.filter(keep)
        kept = [slot.rows[index] for index in keep]
        newcomers = wanted[len(kept) :]
        assert wanted == kept + newcomers, "rows keep their order; newcomers come last"
        if newcomers:
            slot.cache = self._joined(slot.cache, newcomers)
        slot.rows = wanted

    def _joined(self, cache: StageCache | None, newcomers: list[int]) -> StageCache:
        merged = self._read_as_one(newcomers) or StageCache.merge([self._own(sequence) for sequence in newcomers])
        for sequence in newcomers:
            self._sequences[sequence] = _OwnCache(None)
        if cache is None:
            return merged
        cache.extend(merged)
        return cache

    def _read_as_one(self, sequences: list[int]) -> StageCache | None:
        """What exactly these were merged into to be read."""
        for shared in self._read:
            if shared.rows == sequences:
                self._read.remove(shared)
                return shared.cache
        return None


def _in_order(here: Sequence[int], wanted: Sequence[int]) -> Collection[int]:
    """The first of `wanted`, as many as there are in `here` in that order."""
    last = -1
    for count, sequence in enumerate(wanted):
        if sequence not in here or here.index(sequence) <= last:
            return wanted[:count]
        last = here.index(sequence)
    return wanted
