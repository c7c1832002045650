"""What prefill chunks cost on this worker, by the layers that they pass through.

Measured for the first range of a model; for any other scaled by the number of layers, since people wait while a plan
changes.
"""

from collections.abc import Callable

from protocol.values import LayerRange
from strategy.chunking import ChunkCost

# Chunks tried at load, smallest first: two, and more until they took this long.
_TRIED_CHUNKS = (16, 32, 64, 128, 256, 512)
_TRIED_CHUNKS_S = 0.4


class ChunkCosts:
    """Of one model. measure: runs a chunk of so many tokens through a range and gives its seconds."""

    def __init__(self, measure: Callable[[LayerRange, int], float]):
        self._measure = measure
        self._measured: tuple[LayerRange, ChunkCost] | None = None

    def __repr__(self) -> str:
        return f"ChunkCosts({self._measured})"

    def of(self, layers: LayerRange) -> ChunkCost:
        """The cost of a range whose weights are in memory."""
        if self._measured is None:
            self._measured = layers, chunk_cost(lambda num_tokens: self._measure(layers, num_tokens))
        (start, stop), cost = self._measured
        share = (layers[1] - layers[0]) / (stop - start)
        return ChunkCost(cost.fixed_s * share, cost.token_s * share)


def chunk_cost(measure: Callable[[int], float]) -> ChunkCost:
    """What chunks cost here, from a few short runs. measure: runs a chunk of so many tokens and gives its seconds.

    Each size is tried twice, some time apart, and its faster run counts: other workers load at the same time.
    """
    measure(_TRIED_CHUNKS[0])  # the first run of all is never like the others
    first: dict[int, float] = {}
    for num_tokens in _TRIED_CHUNKS:
        first[num_tokens] = measure(num_tokens)
        if len(first) > 1 and sum(first.values()) > _TRIED_CHUNKS_S:
            break
    return ChunkCost.fit([(num_tokens, min(seconds, measure(num_tokens))) for num_tokens, seconds in first.items()])
