"""Which part of a row of equal things each rank gets: features, groups of a quantization, heads.

Pure arithmetic. A span is half open; the spans of all ranks follow one another and cover everything, but for key heads, which
several ranks may hold where there are fewer of them than ranks. Where a number does not divide, the first ranks get more.
"""

from itertools import pairwise
from typing import NamedTuple

Span = tuple[int, int]

# Rows in multiples that the fast kernels of matrix products take, where there are enough of them.
_GRAINS = (64, 32, 16, 8, 4, 2, 1)
_PARTS_PER_RANK = 8


class HeadSpans(NamedTuple):
    """Of one rank: its query heads, and the key heads that those read."""

    queries: Span
    keys: Span


def spans(total: int, size: int) -> list[Span]:
    """Of so many things, in contiguous parts that differ by one at most."""
    least, more = divmod(total, size)
    starts = [rank * least + min(rank, more) for rank in range(size + 1)]
    return list(pairwise(starts))


def feature_spans(total: int, size: int, unit: int = 1) -> list[Span] | None:
    """Of features, cut at multiples of `unit` alone and at larger ones where that costs no balance; None: too few of them."""
    if total % unit or total // unit < size:
        return None
    for grain in _GRAINS:
        step = max(unit, grain) if max(unit, grain) % unit == 0 else unit
        even = total % (step * size) == 0
        if total % step == 0 and (even or total // step >= _PARTS_PER_RANK * size):
            return [(start * step, stop * step) for start, stop in spans(total // step, size)]
    return [(start * unit, stop * unit) for start, stop in spans(total // unit, size)]


def head_spans(queries: int, keys: int, size: int, unit: int = 1) -> list[HeadSpans] | None:
    """Whole groups of query heads with the key head that they share; where there are fewer key heads than ranks, parts of such
    groups. unit: multiples of query heads at which cuts are allowed. None when some rank would get nothing.
    """
    if queries % keys:
        return None
    shared = queries // keys
    if keys >= size:
        together = next(count for count in range(1, unit + 1) if count * shared % unit == 0)
        if keys % together or keys // together < size:
            return None
        found = [(start * together, stop * together) for start, stop in spans(keys // together, size)]
        return [HeadSpans((start * shared, stop * shared), (start, stop)) for start, stop in found]
    found_heads: list[HeadSpans] = []
    for key, (first, last) in enumerate(spans(size, keys)):
        if shared % unit or shared // unit < last - first:
            return None
        found_heads += [
            HeadSpans((key * shared + start * unit, key * shared + stop * unit), (key, key + 1))
            for start, stop in spans(shared // unit, last - first)
        ]
    return found_heads
