"""`quantized`: keys and values in 8 or 4 bits from the first token on, also at different widths.

With one width for both it is mlx-lm's QuantizedKVCache, whose attention multiplies the packed numbers. Different widths,
and attention code that takes only plain arrays (sinks, latent keys), get a cache that unpacks what it hands out.
"""

import math
from collections.abc import Callable
from typing import Any

import mlx.core as mx
from mlx import nn
from mlx_lm.models.cache import QuantizedKVCache, make_prompt_cache

from workers.kv_cache.kind import KvSettings, with_plain_replaced
from workers.kv_cache.probe import observed_shapes, refusal
from workers.kv_cache.rows import Rows, RowsCache

WIDTHS = (8, 4)
GROUP_SIZES = (64, 32, 128)
DEFAULT_BITS = 8
_ARRAYS = 3  # packed numbers, scales, biases


class Quantized:
    """See the module. Groups of 64 unless the heads' width asks for smaller ones."""

    shapes_masks = False

    def __init__(self, model: nn.Module):
        self._model = model
        self._factories: dict[tuple[int, int, int | None], Callable[[], Any] | str] = {}

    def why_not(self, settings: KvSettings, layers: tuple[int, int] | None = None) -> str | None:  # noqa: ARG002
        found = self._factory(settings)
        return found if isinstance(found, str) else None

    def make(self, entries: list[Any], settings: KvSettings) -> list[Any]:
        found = self._factory(settings)
        if isinstance(found, str):
            raise ValueError(found)  # noqa: TRY004  not a wrong type but a model that does not allow it
        return with_plain_replaced(entries, lambda _: found())

    def batches(self, settings: KvSettings) -> bool:  # noqa: ARG002
        return False

    def _factory(self, settings: KvSettings) -> Callable[[], Any] | str:
        """What makes an entry, or the reason why there is none. Found out once for the same settings."""
        bits = settings.bits or DEFAULT_BITS
        wanted = (settings.key_bits or bits, settings.value_bits or bits, settings.group_size)
        if wanted not in self._factories:
            self._factories[wanted] = self._find_factory(*wanted)
        return self._factories[wanted]

    def _find_factory(self, key_bits: int, value_bits: int, group_size: int | None) -> Callable[[], Any] | str:
        if key_bits not in WIDTHS or value_bits not in WIDTHS:
            return "keys and values are quantized to 8 or 4 bits"
        group = self._group_size(group_size)
        if isinstance(group, str):
            return group
        unpacking = lambda: UnpackingKVCache(key_bits, value_bits, group)  # noqa: E731
        factories: list[Callable[[], Any]] = [unpacking]
        if key_bits == value_bits:
            factories.insert(0, lambda: QuantizedKVCache(group, key_bits))
        reasons = []
        for factory in factories:
            reason = self._refusal(factory)
            if reason is None:
                return factory
            reasons.append(reason)
        return f"the architecture does not run with a quantized cache ({reasons[-1]})"

    def _refusal(self, factory: Callable[[], Any]) -> str | None:
        return refusal(self._model, with_plain_replaced(make_prompt_cache(self._model), lambda _: factory()))

    def _group_size(self, wanted: int | None) -> int | str:
        if wanted is not None and wanted not in GROUP_SIZES:
            return f"a group has 32, 64 or 128 numbers, not {wanted}"
        shapes = set(observed_shapes(self._model).values())
        width = math.gcd(*(size for shape in shapes for size in (shape.key_dim, shape.value_dim)))
        fitting = [size for size in ((wanted,) if wanted else GROUP_SIZES) if width % size == 0]
        if fitting:
            return fitting[0]
        widths = sorted({size for shape in shapes for size in (shape.key_dim, shape.value_dim)})
        return f"keys and values are {' or '.join(map(str, widths))} numbers wide, which no group of {wanted or 32} divides"


class UnpackingKVCache(RowsCache):
    """Keys and values each in its own width, unpacked for the attention as plain arrays of the model's type."""

    num_arrays = 2 * _ARRAYS

    def __init__(self, key_bits: int, value_bits: int, group_size: int):
        super().__init__()
        self.key_bits = key_bits
        self.value_bits = value_bits
        self.group_size = group_size

    def update_and_fetch(self, keys: mx.array, values: mx.array) -> tuple[mx.array, mx.array]:
        packed_keys = mx.quantize(keys, group_size=self.group_size, bits=self.key_bits)
        packed_values = mx.quantize(values, group_size=self.group_size, bits=self.value_bits)
        self.append((*packed_keys, *packed_values))
        return self.keys_and_values()

    def keys_and_values(self) -> tuple[mx.array, mx.array]:
        """(batch, heads, tokens, width) each."""
        stored = self.stored()
        return self._unpacked(stored[:_ARRAYS], self.key_bits), self._unpacked(stored[_ARRAYS:], self.value_bits)

    def _unpacked(self, rows: Rows, bits: int) -> mx.array:
        packed, scales, biases = rows
        return mx.dequantize(packed, scales, biases, group_size=self.group_size, bits=bits)
