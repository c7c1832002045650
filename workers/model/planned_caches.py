"""What the caches of a sequence will take, layer by layer, of a model that nobody has loaded.

Taken from the shapes of MLX's own graph: the model's code runs on one token, and nothing of it is ever computed. An architecture
that looks at values while it runs would compute them, weights and all; of it nothing is known beforehand.
"""

from collections.abc import Mapping
from typing import Any

import mlx.core as mx
from mlx.utils import tree_map

from protocol.values import KvSettings
from strategy.memory import KvNeeds
from workers import zoo
from workers.cache.kv_memory import kv_needs
from workers.model.split_model import SplitModel

_DTYPES = {"float16": mx.float16, "bfloat16": mx.bfloat16, "float32": mx.float32}


def planned_caches(config: Mapping[str, Any], kv: KvSettings) -> tuple[KvNeeds, ...]:
    """The needs of each layer of the model with this config.json; () where they are not known before it is loaded."""
    try:
        if _computes(_unloaded(zoo.shrunk(config))):
            return ()
        return _needs(_unloaded(config), kv)
    except Exception:  # noqa: BLE001  the boundary between us and any model's code, which is told when it is loaded
        return ()


def _unloaded(config: Mapping[str, Any]) -> SplitModel:
    """With weights that nothing else is computed from: a graph is looked at here, and another thread may compute its own."""
    text = config.get("text_config")
    said = [each.get(key) for each in (config, text or {}) for key in ("torch_dtype", "dtype")]
    dtype = next((_DTYPES[name] for name in said if name in _DTYPES), mx.float32)
    model = zoo.random_model(config)
    model.update(tree_map(lambda weight: mx.zeros(weight.shape, _kind(weight, dtype)), model.parameters()))
    return SplitModel(model)


def _kind(weight: mx.array, dtype: mx.Dtype) -> mx.Dtype:
    return dtype if mx.issubdtype(weight.dtype, mx.floating) else weight.dtype


def _computes(model: SplitModel) -> bool:
    """Whether some weight is needed for the shapes alone."""
    before = model.weights.num_bytes
    _needs(model, KvSettings())
    return model.weights.num_bytes > before


def _needs(model: SplitModel, kv: KvSettings) -> tuple[KvNeeds, ...]:
    return tuple(kv_needs(cache) for cache in model.caches_by_layer(kv))
