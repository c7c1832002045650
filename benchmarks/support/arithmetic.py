"""Summaries of measured values and ratios between two sides that were measured in turn. Pure functions."""

import itertools
import math
import statistics
from collections.abc import Sequence

import msgspec


class Summary(msgspec.Struct, frozen=True, kw_only=True):
    """Of one list of values, in the unit of the values."""

    count: int
    median: float
    p99: float
    smallest: float
    largest: float


def percentile(values: Sequence[float], share: float) -> float:
    """The value below which `share` (0 to 1) of the values lie, interpolated linearly between neighbours.

    Raises ValueError without values.
    """
    if not values:
        raise ValueError("no values")
    ordered = sorted(values)
    place = share * (len(ordered) - 1)
    below = math.floor(place)
    above = min(below + 1, len(ordered) - 1)
    return ordered[below] + (ordered[above] - ordered[below]) * (place - below)


def summarize(values: Sequence[float]) -> Summary | None:
    """None without values."""
    if not values:
        return None
    return Summary(
        count=len(values),
        median=statistics.median(values),
        p99=percentile(values, 0.99),
        smallest=min(values),
        largest=max(values),
    )


def paired_ratios(ours: Sequence[float | None], theirs: Sequence[float | None]) -> Summary | None:
    """ours / theirs round by round; a round in which either side has no value, or theirs is 0, does not count.

    Raises ValueError when the sides have different numbers of rounds.
    """
    ratios = [
        our / their
        for our, their in zip(ours, theirs, strict=True)
        if our is not None and their is not None and their != 0
    ]
    return summarize(ratios)


def turns(names: Sequence[str], num_rounds: int) -> list[list[str]]:
    """The order of each round: every other round runs backwards, so that a drift of the machine favours nobody."""
    return [list(names) if number % 2 == 0 else list(reversed(names)) for number in range(num_rounds)]


def gaps(times: Sequence[float]) -> list[float]:
    """The differences between successive times."""
    return [later - earlier for earlier, later in itertools.pairwise(times)]


def gaps_within(times: Sequence[float], begin: float, end: float) -> list[float]:
    """The differences between successive times of which the later lies in [begin, end]; so the first gap, which began
    before, counts as a whole.
    """
    return [later - earlier for earlier, later in itertools.pairwise(times) if begin <= later <= end]


def chunk_seconds(processed_at: Sequence[tuple[float, int]]) -> float | None:
    """Seconds between the completions of a prompt's chunks, as a median; None with fewer than two reports.

    processed_at: (time, prompt tokens taken in so far). Chunks shorter than the largest (the last one) do not count.
    """
    steps = [
        (later - earlier, after - before) for (earlier, before), (later, after) in itertools.pairwise(processed_at)
    ]
    largest = max((tokens for _, tokens in steps), default=0)
    whole = [seconds for seconds, tokens in steps if tokens == largest]
    return statistics.median(whole) if whole else None


def longest_wait(times: Sequence[float], since: float) -> float | None:
    """The longest time without an event from `since` on, which counts as one; None when no event came after it."""
    later = [moment for moment in times if moment > since]
    return max(gaps([since, *later])) if later else None
