"""What runs of rising size take on this worker, and from that what prefill chunks cost: measured while a model loads."""

from collections.abc import Callable, Sequence

from strategy.chunking import ChunkCost

# Chunks tried at load, smallest first: two, and more until they took this long.
_TRIED_CHUNKS = (16, 32, 64, 128, 256, 512)
_TRIED_CHUNKS_S = 0.4


def fastest_runs(
    measure: Callable[[int], float],
    sizes: Sequence[int],
    *,
    limit_s: float,
    is_over: Callable[[], bool] = lambda: False,
) -> list[tuple[int, float]]:
    """Sizes, rising, and seconds. measure: gives the seconds of a run of a size.

    Two sizes at least, in their order, and more until they took `limit_s` together. Each is tried twice, some time apart, and its
    faster run counts: other workers load at the same time. Once `is_over` there are no more sizes and no second runs. Where a
    larger size was faster, the smaller one was disturbed, and takes as long.
    """
    first: dict[int, float] = {}
    for size in sizes:
        if len(first) > 1 and (sum(first.values()) > limit_s or is_over()):
            break
        first[size] = measure(size)
    fastest = {size: seconds if is_over() else min(seconds, measure(size)) for size, seconds in first.items()}
    return [(size, min(s for other, s in fastest.items() if other >= size)) for size in sorted(fastest)]


def chunk_runs(
    measure: Callable[[int], float], *, limit_s: float = _TRIED_CHUNKS_S, is_over: Callable[[], bool] = lambda: False
) -> list[tuple[int, float]]:
    """Tokens and seconds of chunks, as `fastest_runs` finds them."""
    measure(_TRIED_CHUNKS[0])  # the first run of all is never like the others
    return fastest_runs(measure, _TRIED_CHUNKS, limit_s=limit_s, is_over=is_over)


def chunk_cost(measure: Callable[[int], float]) -> ChunkCost:
    """What chunks cost here, from a few short runs. measure: runs a chunk of so many tokens and gives its seconds."""
    return ChunkCost.fit(chunk_runs(measure))


def within_s(tokens: int, seconds: float, context_s: float) -> float:
    """What the tokens of a chunk take of its seconds for each other."""
    return min(tokens * tokens / 2 * context_s, seconds / 2)
