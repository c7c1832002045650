"""The first pass of layers that a plan wants here: whether their caches can be had, and whether what they compute are numbers.

On the MLX thread.
"""

from collections.abc import Callable

from protocol.errors import ModelError
from protocol.values import KvSettings, LayerRange
from workers.cache.stage_cache import StageCache
from workers.model.payload import are_numbers
from workers.model.split_model import SplitModel


class NoNumbers(ModelError):
    """Some layers compute NaN or infinity, as with weights that are absent or damaged."""


def warmed_up(
    name: str, model: SplitModel, layers: LayerRange, kv: KvSettings | None, progress: Callable[[int], object]
) -> StageCache:
    """The caches after one token through the layers, of which what is missing is read. name: whose copy of the model it is, for people;
    progress: told the bytes after each layer.

    Raises:
        ModelError: the model does not allow the kind of cache.
        NoNumbers: see there.
    """
    if kv is not None and (reason := model.kv_kind(kv.kind).why_not(kv, layers)):
        raise ModelError(f"kv_cache.kind {kv.kind!r} cannot be had: {reason}")
    caches, output = model.warm_up(layers, kv, progress)
    if not are_numbers(output):
        start, stop = layers
        raise NoNumbers(
            f"{name} computes what is no number in layers {start} to {stop}: its copy of the model is damaged or not whole; "
            "get the model again there"
        )
    return caches
