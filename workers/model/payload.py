"""What one stage hands to the next: any structure of arrays, as a plain specification and raw buffers, and back.

Owns the translation and its validation. A payload is an array, None, a scalar, a tuple, list or dict of payloads, a
`Carried`, or an object of a type in `OBJECTS`. The specification consists of what msgpack carries; the buffers are the
arrays' own bytes, not copied. Knows nothing of messages, sockets or models. Decoding trusts nothing: whatever the bytes,
the result is a payload or a `WireError`, and nothing but the listed types is ever built.
"""

import importlib
import math
from collections.abc import Callable, Iterator, Sequence
from typing import Any, NamedTuple, cast

import mlx.core as mx
import numpy as np

from protocol.errors import WireError

Spec = None | bool | int | float | str | list[Any]
Payload = Any
Buffer = bytes | bytearray | memoryview
Part = tuple[str | int, ...]  # where something stands in a payload: indices and names, outermost first

MAX_DEPTH = 8
MAX_NODES = 65_536
MAX_DIMENSIONS = 16

_DTYPES = {
    str(dtype).removeprefix("mlx.core."): dtype
    for dtype in (
        mx.bool_, mx.uint8, mx.uint16, mx.uint32, mx.uint64, mx.int8, mx.int16, mx.int32, mx.int64,
        mx.float16, mx.bfloat16, mx.float32, mx.complex64,
    )
}  # fmt: skip
_NAMES = {dtype: name for name, dtype in _DTYPES.items()}
_EMPTY = memoryview(b"")

# Objects that layers of some architectures hand on, with exactly the attributes that make one up.
OBJECTS: dict[str, tuple[str, ...]] = {
    "mlx_lm.models.kimi_k3.ResidualBlocks": ("eps", "raw", "inv_rms"),
}


class Carried(NamedTuple):
    """A layer's return value, and what layers up to the cut changed in the dicts they were called with.

    changes: by the argument's name or position, the entries of that dict which are new or replaced.
    """

    output: Payload
    changes: dict[str | int, dict[Any, Payload]]


def map_arrays(change: Callable[[mx.array], Any], payload: Payload) -> Payload:
    """The payload with each array replaced by `change(array)`; containers and objects are new, scalars are kept."""
    if isinstance(payload, mx.array):
        return change(payload)
    if payload is None or isinstance(payload, bool | int | float | str):
        return payload
    if isinstance(payload, tuple | list):
        return like(payload, [map_arrays(change, item) for item in payload])
    if isinstance(payload, dict):
        return {key: map_arrays(change, item) for key, item in payload.items()}
    name = _object_name(payload)
    return _build(name, {key: map_arrays(change, getattr(payload, key)) for key in OBJECTS[name]})


def like(payload: tuple[Payload, ...] | list[Payload], items: list[Payload]) -> Payload:
    """The items in a container of the payload's kind."""
    return Carried(*items) if isinstance(payload, Carried) else type(payload)(items)


def arrays(payload: Payload) -> Iterator[mx.array]:
    """Every array of the payload, in the order of `encode`'s buffers."""
    found: list[mx.array] = []
    map_arrays(found.append, payload)
    return iter(found)


def without(payload: Payload, paths: tuple[Part, ...]) -> Payload:
    """The payload with None in place of the given parts."""
    for path in paths:
        payload = _replaced(payload, path)
    return payload


def _replaced(payload: Payload, path: Part) -> Payload:
    if not path:
        return None
    head, *rest = path
    if isinstance(payload, dict):
        return {**payload, head: _replaced(payload[head], tuple(rest))} if head in payload else payload
    if isinstance(payload, tuple | list):
        items = [_replaced(item, tuple(rest)) if index == head else item for index, item in enumerate(payload)]
        return like(payload, items)
    return payload


def noise_like(payload: Payload) -> Payload:
    """A payload of this one's structure, with numbers between -1 and 1 that are always the same; integers are zeros."""
    numbers = np.random.default_rng(0)

    def fill(array: mx.array) -> mx.array:
        if not mx.issubdtype(array.dtype, mx.floating):
            return mx.zeros(array.shape, array.dtype)
        return mx.array(numbers.uniform(-1, 1, array.shape).astype(np.float32)).astype(array.dtype)

    return map_arrays(fill, payload)


def are_numbers(payload: Payload) -> bool:
    """Whether nothing in the payload is NaN or infinite, but for minus infinity, by which some models mask logits."""
    floats = [array for array in arrays(payload) if mx.issubdtype(array.dtype, mx.floating)]
    return not any((mx.isnan(array) | mx.isposinf(array)).any().item() for array in floats)


def encode(payload: Payload) -> tuple[Spec, list[memoryview]]:
    """The specification of an evaluated payload, and one view of bytes for each array in it.

    The views are of the arrays' own memory and keep it alive. Arrays must be row contiguous, as `SplitModel.forward`
    makes them. Raises TypeError for a structure that no stage hands on: an error of ours, not of the wire.
    """
    buffers: list[memoryview] = []
    return _encode(payload, buffers), buffers


def decode(spec: Spec, buffers: Sequence[Buffer]) -> Payload:
    """The payload of a specification and buffers that came from another process; one copy of the bytes.

    Raises WireError for anything that `encode` does not produce.
    """
    return _Decoder(buffers).payload(spec)


def _encode(payload: Payload, buffers: list[memoryview]) -> Spec:
    if isinstance(payload, mx.array):
        buffers.append(memoryview(cast("Buffer", payload)).cast("B") if payload.size else _EMPTY)
        return ["array", _NAMES[payload.dtype], list(payload.shape)]
    if payload is None or isinstance(payload, bool | int | float | str):
        return payload
    if isinstance(payload, Carried):
        return ["carried", _encode(payload.output, buffers), _encode(payload.changes, buffers)]
    if isinstance(payload, tuple | list):
        kind = "tuple" if isinstance(payload, tuple) else "list"
        return [kind, *[_encode(item, buffers) for item in payload]]
    if isinstance(payload, dict):
        return ["dict", *[[key, _encode(item, buffers)] for key, item in payload.items()]]
    name = _object_name(payload)
    return ["object", name, *[_encode(getattr(payload, key), buffers) for key in OBJECTS[name]]]


def _object_name(value: Any) -> str:
    name = f"{type(value).__module__}.{type(value).__qualname__}"
    if name not in OBJECTS:
        raise TypeError(f"a layer hands on an object of type {name}, which stages cannot send")
    return name


def _build(name: str, attributes: dict[str, Any]) -> Any:
    module, _, class_name = name.rpartition(".")
    kind = getattr(importlib.import_module(module), class_name)
    built = kind.__new__(kind)
    for key, value in attributes.items():
        setattr(built, key, value)
    return built


class _Decoder:
    """Reads one specification; every buffer must be used once, in order."""

    def __init__(self, buffers: Sequence[Buffer]):
        self._buffers = buffers
        self._used = 0
        self._nodes = 0

    def payload(self, spec: Spec) -> Payload:
        decoded = self._node(spec, 0)
        if self._used != len(self._buffers):
            raise WireError(f"a payload names {self._used} arrays and comes with {len(self._buffers)} buffers")
        return decoded

    def _node(self, spec: Any, depth: int) -> Payload:
        self._nodes += 1
        if depth > MAX_DEPTH or self._nodes > MAX_NODES:
            raise WireError("a payload is nested too deeply or has too many parts")
        if spec is None or isinstance(spec, bool | int | float | str):
            return spec
        if not isinstance(spec, list | tuple) or not spec:
            raise WireError("a payload has a part that is neither a scalar nor a described structure")
        kind, *parts = spec
        read = _READERS.get(kind) if isinstance(kind, str) else None
        if read is None:
            raise WireError("a payload has a part of an unknown kind")
        return read(self, parts, depth + 1)

    def array(self, parts: list[Any], _depth: int) -> mx.array:
        if len(parts) != 2 or not isinstance(parts[0], str) or parts[0] not in _DTYPES:
            raise WireError("a payload has an array of an unknown type")
        dtype, shape = _DTYPES[parts[0]], _shape(parts[1])
        if self._used >= len(self._buffers):
            raise WireError("a payload names more arrays than it has buffers")
        data = memoryview(self._buffers[self._used])
        self._used += 1
        if not data.contiguous or data.nbytes != math.prod(shape) * dtype.size:
            raise WireError(f"a payload's array of shape {shape} does not have the {data.nbytes} bytes of its buffer")
        return from_bytes(data, dtype, shape)

    def items(self, parts: list[Any], depth: int) -> list[Payload]:
        return [self._node(part, depth) for part in parts]

    def dict(self, parts: list[Any], depth: int) -> dict[Any, Payload]:
        decoded: dict[Any, Payload] = {}
        for part in parts:
            if not isinstance(part, list | tuple) or len(part) != 2 or type(part[0]) not in (str, int):
                raise WireError("a payload has a dict with an entry that is not a name and a value")
            decoded[part[0]] = self._node(part[1], depth)
        return decoded

    def carried(self, parts: list[Any], depth: int) -> Carried:
        items = self.items(parts, depth)
        if len(items) != 2 or not isinstance(items[1], dict):
            raise WireError("a payload has side values of the wrong form")
        if not all(isinstance(entries, dict) for entries in items[1].values()):
            raise WireError("a payload has side values of the wrong form")
        return Carried(*items)

    def object(self, parts: list[Any], depth: int) -> Any:
        name = parts[0] if parts and isinstance(parts[0], str) else ""
        if name not in OBJECTS or len(parts) != 1 + len(OBJECTS[name]):
            raise WireError("a payload has an object of a type that is not allowed")
        return _build(name, dict(zip(OBJECTS[name], self.items(parts[1:], depth), strict=True)))


_READERS: dict[str, Callable[[_Decoder, list[Any], int], Payload]] = {
    "array": _Decoder.array,
    "tuple": lambda decoder, parts, depth: tuple(decoder.items(parts, depth)),
    "list": _Decoder.items,
    "dict": _Decoder.dict,
    "carried": _Decoder.carried,
    "object": _Decoder.object,
}


def _shape(value: Any) -> tuple[int, ...]:
    if not isinstance(value, list | tuple) or len(value) > MAX_DIMENSIONS:
        raise WireError("a payload has an array without a shape")
    if not all(type(size) is int and 0 <= size < 2**31 for size in value):
        raise WireError("a payload has an array with an impossible shape")
    return tuple(value)


def from_bytes(data: memoryview, dtype: mx.Dtype, shape: tuple[int, ...]) -> mx.array:
    """An array of a type that stages send, of a copy of its bytes."""
    if not data.nbytes:
        return mx.zeros(shape, dtype)
    if dtype == mx.bfloat16:  # NumPy lacks it: copy the 16 bits and name them anew
        return mx.array(np.frombuffer(data, np.uint16).reshape(shape)).view(mx.bfloat16)
    if dtype == mx.bool_:  # any byte but 0 is true, so that no byte is invalid
        return mx.array(np.frombuffer(data, np.uint8).reshape(shape) != 0)
    return mx.array(np.frombuffer(data, np.dtype(_NAMES[dtype])).reshape(shape))
