"""The last hour of the cluster in points of five seconds: how much it did and how long that took, whether or not anybody looks.

Each point is the difference of what is counted anyway, so that nothing is counted for it. `at` (Unix seconds) is an argument.
"""

import math
from collections import deque
from collections.abc import Sequence

import msgspec

from cluster.serving.ledger import Ledger
from cluster.serving.measures import Distribution

STEP_S = 5.0
_POINTS = round(3600 / STEP_S)


class Point(msgspec.Struct, frozen=True, kw_only=True):
    """The time that ends at `at`: tokens of answers and of prompts a second, requests that ended in it, and the rest; None where nothing
    happened. running, waiting: at its end; ttft: of requests that ended in it; gap: between two tokens; hit_rate: of the tokens of
    prompts that went to a cache.
    """

    at: float
    tokens_per_s: float
    prompt_tokens_per_s: float
    running: int
    waiting: int
    finished: int
    failed: int
    ttft_p50_s: float | None
    ttft_p99_s: float | None
    gap_p50_s: float | None
    gap_p99_s: float | None
    hit_rate: float | None


class _Totals(msgspec.Struct, frozen=True, kw_only=True):
    """What was counted until `at`."""

    at: float
    generated: int
    read: int
    finished: int
    failed: int
    asked_of_caches: int
    found_in_caches: int
    ttft: Distribution
    gap: Distribution


class History:
    """at: from when on."""

    def __init__(self, ledger: Ledger, at: float):
        self._ledger = ledger
        self._points: deque[Point] = deque(maxlen=_POINTS)
        self._last = self._totals(at)

    def __repr__(self) -> str:
        return f"History({len(self._points)} points)"

    @property
    def points(self) -> tuple[Point, ...]:
        """The oldest first."""
        return tuple(self._points)

    def note(self, at: float) -> Point:
        """What happened since it was called last."""
        before, after = self._last, self._totals(at)
        seconds = max(after.at - before.at, 1e-9)
        requests = self._ledger.counts.requests
        ttft, gap = _grown(before.ttft, after.ttft), _grown(before.gap, after.gap)
        asked = after.asked_of_caches - before.asked_of_caches
        point = Point(
            at=round(at, 3),
            tokens_per_s=round((after.generated - before.generated) / seconds, 2),
            prompt_tokens_per_s=round((after.read - before.read) / seconds, 2),
            running=requests.running,
            waiting=requests.waiting,
            finished=after.finished - before.finished,
            failed=after.failed - before.failed,
            ttft_p50_s=percentile(after.ttft, ttft, 0.5),
            ttft_p99_s=percentile(after.ttft, ttft, 0.99),
            gap_p50_s=percentile(after.gap, gap, 0.5),
            gap_p99_s=percentile(after.gap, gap, 0.99),
            hit_rate=round(min((after.found_in_caches - before.found_in_caches) / asked, 1.0), 4) if asked else None,
        )
        self._points.append(point)
        self._last = after
        return point

    def _totals(self, at: float) -> _Totals:
        counts = self._ledger.counts
        measures, requests, reuse = counts.measures, counts.requests, counts.reuse
        return _Totals(
            at=at,
            generated=measures.generated_tokens,
            read=self._ledger.read_tokens,
            finished=requests.finished,
            failed=requests.failed,
            asked_of_caches=reuse.prompt_tokens,
            found_in_caches=reuse.cached_tokens,
            ttft=measures.ttft,
            gap=measures.gap,
        )


def _grown(before: Distribution, after: Distribution) -> list[int]:
    return [later - earlier for earlier, later in zip(before.counts, after.counts, strict=True)]


def percentile(found: Distribution, counts: Sequence[int], share: float) -> float | None:
    """The value that this share of all does not exceed, as if those of each range were spread evenly in it; None without values.

    counts: values in each range of `found`. Above the last bound nothing is known but that bound.
    """
    num_values = sum(counts)
    if not num_values:
        return None
    rank, below, start = max(math.ceil(share * num_values), 1), 0, 0.0
    for bound, count in zip(found.bounds, counts, strict=False):
        if below + count >= rank:
            return round(start + (bound - start) * (rank - below - 0.5) / count, 6)
        below, start = below + count, bound
    return found.bounds[-1]
