"""Finds out what an architecture's attention gives to its caches and whether it can use other ones.

Builds passes of the real model without evaluating them: shapes and types show, and no weight is read (but for the few
architectures that look at values while they run).
"""

from typing import Any, NamedTuple

import mlx.core as mx
from mlx import nn
from mlx_lm.models.cache import KVCache, make_prompt_cache

from workers.kv_cache.kind import with_plain_replaced
from workers.tensor.exchange import silent

_PASSES = (3, 1)


class Shapes(NamedTuple):
    """What one layer gives to its cache for each token: keys (heads, key_dim) and values (heads, value_dim)."""

    heads: int
    key_dim: int
    value_dim: int
    dtype: mx.Dtype


class Recorder(KVCache):
    """Notes what is stored and hands it back. No pass after it sees more than its own tokens.

    offset: the position that the first token shall have.
    """

    def __init__(self, offset: int = 0) -> None:
        super().__init__()
        self.offset = offset
        self.keys: mx.array | None = None
        self.values: mx.array | None = None

    def update_and_fetch(self, keys: mx.array, values: mx.array) -> tuple[mx.array, mx.array]:
        self.keys, self.values = keys, values
        self.offset += keys.shape[2]
        return keys, values

    def keys_and_values(self) -> tuple[mx.array | None, mx.array | None]:
        return self.keys, self.values

    @property
    def shapes(self) -> Shapes | None:
        if self.keys is None or self.values is None:
            return None
        return Shapes(self.keys.shape[1], self.keys.shape[3], self.values.shape[3], self.keys.dtype)


def observed_shapes(model: nn.Module) -> dict[int, Shapes]:
    """By index in the model's list of caches, what each plain entry is given."""
    entries = with_plain_replaced(make_prompt_cache(model), lambda _: Recorder())
    with silent(model):
        model(mx.zeros((1, 1), mx.int32), cache=entries)
    recorders = {index: entry for index, entry in enumerate(entries) if isinstance(entry, Recorder)}
    return {index: entry.shapes for index, entry in recorders.items() if entry.shapes is not None}


def refusal(model: nn.Module, entries: list[Any]) -> str | None:
    """What the model's code says when it gets these fresh caches, in one line; None when it takes them."""
    try:
        with silent(model):
            for num_tokens in _PASSES:
                model(mx.zeros((1, num_tokens), mx.int32), cache=entries)
    except (ValueError, TypeError, AttributeError, RuntimeError, IndexError, KeyError) as error:
        return " ".join(f"{type(error).__name__}: {error}".split())
    return None
