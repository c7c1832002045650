"""How many of a pass's exchanges its caches depend on: what comes behind them is only for whoever wants to know what comes next.

Behind the last layer's keys and values, which a chunk of a prompt is read for, there are its output projection and all that follows.
Found by looking at passes that are never run.
"""

import math

import mlx.core as mx

from protocol.values import KvSettings, LayerRange
from workers.model.payload import arrays, noise_like
from workers.model.split_model import SplitModel
from workers.tensor.exchange import Exchange, silent

# Some architectures do something else with one token than with several, or with many at once.
_TRIED = (1, 3, 130)


def exchanges_for_caches(model: SplitModel, exchange: Exchange, layers: LayerRange, kv: KvSettings | None) -> float:
    """Of a pass through these layers, the last of the model; infinity where longer passes exchange more often. exchange: of that model."""
    tried = [_of_a_pass(model, exchange, layers, kv, num_tokens) for num_tokens in _TRIED]
    is_fixed = len({total for total, _ in tried}) == 1
    return max(needed for _, needed in tried) if is_fixed else math.inf


def _of_a_pass(
    model: SplitModel, exchange: Exchange, layers: LayerRange, kv: KvSettings | None, num_tokens: int
) -> tuple[int, int]:
    """How many there are, and up to which its caches need them."""
    tokens, cache = mx.zeros((1, num_tokens), mx.int32), model.make_cache(layers, kv)
    payload = noise_like(model.structure_before(layers.start, tokens))
    with silent(model.model), exchange.standing_in() as found:
        model.forward(tokens, layers=layers, cache=cache, payload=payload)
    numbered = {str(number): array for number, array in enumerate(found, 1)}
    needed = model.weights.made_from(numbered, list(arrays(cache.states())))
    return len(found), max(map(int, needed), default=0)
