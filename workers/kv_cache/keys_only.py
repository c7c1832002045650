"""`keys-only`: stores the keys and computes the values from them, in half the memory.

Where keys and values are linear in the same input, k = Wk x + bk and v = Wv x + bv, and Wk has an inverse from the left,
L Wk = 1 (it makes no fewer numbers than it gets), v = Wv L (k - bk) + bv. Keys are kept before rotation: turning them by
the negative angle is exact. Only plain multi-head attention is like that; every layer is tried on its own weights before
it is believed.
"""

from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import mlx.core as mx
import numpy as np
from mlx import nn
from mlx_lm.models.cache import make_prompt_cache
from mlx_lm.models.rope_utils import Llama3RoPE

from workers.kv_cache.kind import KvSettings, is_plain, with_plain_replaced
from workers.kv_cache.probe import Recorder, observed_shapes
from workers.kv_cache.rows import RowsCache

# In the 1-norm; values are right to about 7 digits less those of the condition number, and usually better.
MAX_CONDITION = 1e6
_TRIAL_TOLERANCE = 1e-4
_TRIAL_TOKENS = 5
_TRIAL_OFFSET = 7


class KeysOnly:
    """See the module. Inverts each layer's projection once, when its first sequence or `why_not` asks."""

    shapes_masks = False

    def __init__(self, model: nn.Module):
        self._layers: list[nn.Module] = list(model.layers)
        self._entries = make_prompt_cache(model)
        self._model = model
        self._inverses: dict[int, ValuesFromKeys | str] = {}

    def why_not(self, settings: KvSettings, layers: tuple[int, int] | None = None) -> str | None:  # noqa: ARG002
        start, stop = layers or (0, len(self._layers))
        return self._why_structure_not or next(
            (found for index in range(start, stop) if isinstance(found := self._inverse(index), str)), None
        )

    def make(self, entries: list[Any], settings: KvSettings) -> list[Any]:  # noqa: ARG002
        if reason := self._why_structure_not:
            raise ValueError(reason)
        return with_plain_replaced(entries, lambda index: KeysOnlyCache(lambda: self._usable(index)))

    def batches(self, settings: KvSettings) -> bool:  # noqa: ARG002
        return False

    @cached_property
    def _why_structure_not(self) -> str | None:
        """Without reading a weight."""
        if len(self._entries) != len(self._layers):
            return "its caches are not one for each layer"
        shapes = observed_shapes(self._model)
        if not shapes:
            return "it has no layer with a plain cache of keys and values"
        for index, shape in shapes.items():
            attention = _attention(self._layers[index])
            if attention is None:
                return "its attention has no separate projections of keys and values"
            if reason := _why_projection_not(attention, shape.heads * shape.key_dim, shape.heads * shape.value_dim):
                return reason
        return None

    def _inverse(self, index: int) -> "ValuesFromKeys | str":
        if index not in self._inverses:
            self._inverses[index] = _invert(self._layers[index]) if is_plain(self._entries[index]) else _NOTHING
        return self._inverses[index]

    def _usable(self, index: int) -> "ValuesFromKeys":
        found = self._inverse(index)
        if isinstance(found, str):
            raise ValueError(found)  # noqa: TRY004  not a wrong type but a layer that does not allow it
        return found


@dataclass(frozen=True)
class ValuesFromKeys:
    """matrix: (width of keys, width of values), float32; constant: (width of values,). rotate: positions from 0 on;
    unrotate: its inverse, from an offset on.
    """

    matrix: mx.array
    constant: mx.array
    rotate: Callable[[mx.array], mx.array]
    unrotate: Callable[[mx.array, int], mx.array]

    def values(self, keys: mx.array) -> mx.array:
        """(batch, tokens, width of values) from keys before rotation, (batch, tokens, width of keys)."""
        return keys @ self.matrix + self.constant


_NOTHING = ValuesFromKeys(mx.zeros((1, 1)), mx.zeros((1,)), lambda keys: keys, lambda keys, _: keys)


class KeysOnlyCache(RowsCache):
    """rows: keys before rotation (batch, tokens, heads * width of a head). inverse: asked for at the first token."""

    num_arrays = 1

    def __init__(self, inverse: Callable[[], ValuesFromKeys]):
        super().__init__()
        self._inverse = inverse
        self._heads = 1

    def update_and_fetch(self, keys: mx.array, values: mx.array) -> tuple[mx.array, mx.array]:
        self._heads, before = keys.shape[1], self.offset
        plain = self._inverse().unrotate(keys, before)
        self.append((_side_by_side(plain),))
        return self.keys_and_values() if before else (keys, values)

    def keys_and_values(self) -> tuple[mx.array, mx.array]:
        """(batch, heads, tokens, width of a head) each."""
        (plain,) = self.stored()
        inverse = self._inverse()
        return inverse.rotate(_by_head(plain, self._heads)), _by_head(inverse.values(plain), self._heads)


def _side_by_side(by_head: mx.array) -> mx.array:
    batch, heads, num_tokens, width = by_head.shape
    return by_head.swapaxes(1, 2).reshape(batch, num_tokens, heads * width)


def _by_head(side_by_side: mx.array, heads: int) -> mx.array:
    batch, num_tokens, _ = side_by_side.shape
    return side_by_side.reshape(batch, num_tokens, heads, -1).swapaxes(1, 2)


def _attention(layer: nn.Module) -> nn.Module | None:
    children = [child for child in layer.children().values() if isinstance(child, nn.Module)]
    return next((child for child in children if "k_proj" in child and "v_proj" in child), None)


def _why_projection_not(attention: nn.Module, key_width: int, value_width: int) -> str | None:
    keys, values = attention.k_proj, attention.v_proj
    if type(keys) is not nn.Linear or type(values) is not nn.Linear:
        return "its projections are quantized or special, so that their inverse is not exact"
    made, of = keys.weight.shape
    if made < of:
        return f"its key projection makes {made} numbers of {of} and has no inverse"
    if (key_width, value_width) != (made, values.weight.shape[0]):
        return "its cache does not hold what the projections make"
    if keys.weight.dtype != mx.float32:
        return f"its weights are {str(keys.weight.dtype).rpartition('.')[2]}, too coarse for an exact inverse"
    if not isinstance(attention.get("rope"), nn.RoPE | Llama3RoPE):
        return "its keys are not rotated in the standard way"
    return None


def _invert(layer: nn.Module) -> ValuesFromKeys | str:
    attention = _attention(layer)
    assert attention is not None
    keys, values = _double(attention.k_proj.weight), _double(attention.v_proj.weight)
    orthogonal, triangle = np.linalg.qr(keys)
    try:
        inverse = np.linalg.inv(triangle)
    except np.linalg.LinAlgError:
        return "a key projection of it has no inverse"
    condition = float(np.linalg.norm(triangle, 1) * np.linalg.norm(inverse, 1))
    if not condition <= MAX_CONDITION:
        return f"the inverse of a key projection of it is not exact enough (condition number {condition:.3g})"
    matrix = (values @ inverse @ orthogonal.T).T
    constant = _bias(attention.v_proj) - _bias(attention.k_proj) @ matrix
    found = ValuesFromKeys(
        mx.array(matrix.astype(np.float32)),
        mx.array(constant.astype(np.float32)),
        attention.rope,
        _unrotate(attention.rope),
    )
    reason = _why_wrong(attention, found, keys.shape[1])
    return f"{reason} (condition number {condition:.3g})" if reason else found


def _bias(projection: nn.Linear) -> np.ndarray:
    return _double(projection.bias) if "bias" in projection else np.zeros(projection.weight.shape[0])


def _double(array: mx.array) -> np.ndarray:
    return np.array(array).astype(np.float64)


def _unrotate(rope: nn.RoPE | Llama3RoPE) -> Callable[[mx.array, int], mx.array]:
    special = isinstance(rope, Llama3RoPE)

    def turn_back(keys: mx.array, offset: int) -> mx.array:
        return mx.fast.rope(
            keys,
            rope.dims,
            traditional=rope.traditional,
            base=None if special else rope.base,
            scale=-1.0 if special else -rope.scale,
            offset=offset,
            freqs=rope._freqs if special else None,  # noqa: SLF001  mlx-lm gives no other access
        )

    return turn_back


def _why_wrong(attention: nn.Module, found: ValuesFromKeys, inputs: int) -> str | None:
    """Runs the attention itself on noise: values that do not come out show norms, clips or another order of heads."""
    seen = Recorder(_TRIAL_OFFSET)
    noise = 10 * mx.random.normal((1, _TRIAL_TOKENS, inputs), key=mx.random.key(0))
    try:
        attention(noise, mask=None, cache=seen)
    except (ValueError, TypeError, AttributeError, RuntimeError) as error:
        return f"its attention cannot be tried alone ({error})"
    assert seen.keys is not None
    assert seen.values is not None
    wanted = _side_by_side(seen.values)
    difference = found.values(_side_by_side(found.unrotate(seen.keys, _TRIAL_OFFSET))) - wanted
    share = float(mx.abs(difference).max() / mx.abs(wanted).max())
    if not share <= _TRIAL_TOLERANCE:
        return f"values computed from its keys differ by {share:.2g} of their size"
    return None
