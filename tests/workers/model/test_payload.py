"""Payloads: what is encoded decodes to the same, and nothing but a payload or a WireError comes of any bytes."""

import contextlib
import json
import math

import mlx.core as mx
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from mlx_lm.models.kimi_k3 import ResidualBlocks

from protocol.errors import WireError
from workers.model.payload import OBJECTS, Carried, arrays, decode, encode

DTYPES = (
    mx.bool_, mx.uint8, mx.uint16, mx.uint32, mx.uint64, mx.int8, mx.int16, mx.int32, mx.int64,
    mx.float16, mx.bfloat16, mx.float32, mx.complex64,
)  # fmt: skip


def same(a, b):
    if isinstance(a, mx.array):
        return isinstance(b, mx.array) and a.dtype == b.dtype and a.shape == b.shape and mx.array_equal(a, b).item()
    if isinstance(a, tuple | list):
        return type(a) is type(b) and len(a) == len(b) and all(map(same, a, b))
    if isinstance(a, dict):
        return isinstance(b, dict) and list(a) == list(b) and all(same(a[key], b[key]) for key in a)
    return type(a) is type(b) and a == b


def through_the_wire(payload):
    mx.eval(list(arrays(payload)))
    spec, buffers = encode(payload)
    return decode(json.loads(json.dumps(spec)), [bytes(buffer) for buffer in buffers])


@st.composite
def array(draw):
    shape = draw(st.lists(st.integers(0, 4), max_size=4))
    numbers = draw(st.lists(st.integers(0, 99), min_size=math.prod(shape), max_size=math.prod(shape)))
    return mx.array(numbers, mx.float32).reshape(shape).astype(draw(st.sampled_from(DTYPES)))


scalars = st.none() | st.booleans() | st.integers(-(2**53), 2**53) | st.floats(allow_nan=False) | st.text(max_size=5)
names = st.text(max_size=5)
payloads = st.recursive(
    scalars | array(),
    lambda inner: (
        st.lists(inner, max_size=3) | st.lists(inner, max_size=3).map(tuple) | st.dictionaries(names, inner, max_size=3)
    ),
    max_leaves=8,
).filter(lambda payload: depth(payload) < 7)


def depth(payload):
    inner = payload.values() if isinstance(payload, dict) else payload if isinstance(payload, tuple | list) else ()
    return 1 + max(map(depth, inner), default=0)


@settings(max_examples=150, deadline=None)
@given(payloads)
def test_a_payload_of_any_structure_comes_back_the_same(payload):
    assert same(payload, through_the_wire(payload))


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_every_type_of_array_comes_back_bit_for_bit(dtype):
    original = mx.random.normal((3, 1, 5)).astype(dtype)
    assert same(original, through_the_wire(original))


def test_not_a_number_survives_in_bfloat16():
    found = through_the_wire(mx.array([mx.nan, 1.5, -mx.inf], mx.bfloat16))
    assert mx.array_equal(found, mx.array([mx.nan, 1.5, -mx.inf], mx.bfloat16), equal_nan=True).item()


def test_changed_arguments_come_back_beside_the_output():
    found = through_the_wire(Carried((mx.ones((1, 2)), None), {"shared": {"kv": mx.zeros((2,))}}))
    assert isinstance(found, Carried)
    assert same(found.changes, {"shared": {"kv": mx.zeros((2,))}})


def test_an_allowed_object_comes_back_with_its_attributes():
    blocks = ResidualBlocks(1e-5)
    blocks.append(mx.ones((1, 2, 4)))
    _, found = through_the_wire((mx.zeros((1,)), blocks))
    assert isinstance(found, ResidualBlocks)
    assert same(found.raw, blocks.raw)
    assert found.eps == blocks.eps


def test_an_object_that_is_not_listed_cannot_be_encoded():
    with pytest.raises(TypeError, match="cannot send"):
        encode(object())


def test_buffers_are_views_of_the_array_and_not_copies():
    original = mx.zeros((1, 8, 64), mx.bfloat16)
    mx.eval(original)
    _, (first,) = encode(original)
    _, (second,) = encode(original)
    assert first.nbytes == original.nbytes
    assert first.obj is original
    assert second.obj is original


ANYTHING = st.recursive(
    scalars
    | st.sampled_from(["array", "tuple", "list", "dict", "carried", "object", "float32", "bfloat16", "bool", *OBJECTS])
    | st.binary(max_size=3),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(names, inner, max_size=2),
    max_leaves=15,
)
ALMOST = st.tuples(
    st.sampled_from(["array", "tuple", "dict", "object", "carried"]),
    st.sampled_from(["float32", "bool", "float64", *OBJECTS]) | ANYTHING,
    st.lists(st.integers(-1, 2**40), max_size=3) | ANYTHING,
).map(list)


@settings(max_examples=300, deadline=None)
@given(ANYTHING | ALMOST, st.lists(st.binary(max_size=16), max_size=2))
def test_untrusted_bytes_give_a_payload_or_a_wire_error(spec, buffers):
    with contextlib.suppress(WireError):
        decode(spec, buffers)


@pytest.mark.parametrize(
    ("spec", "buffers"),
    [
        (["array", "float32", [2]], [b"1234"]),
        (["array", "float32", [2]], []),
        (["array", "float32", [1]], [b"1234", b"5678"]),
        (["array", "float32", [-1]], [b"1234"]),
        (["array", "float32", [0, 2**40]], [b""]),
        (["array", "float32", [1] * 40], [b"1234"]),
        (["array", "object", [1]], [b"12345678"]),
        (["object", "os.system", "true"], []),
        (["object", "mlx_lm.models.kimi_k3.ResidualBlocks"], []),
        (["eval", "1"], []),
    ],
)
def test_a_payload_that_does_not_fit_its_buffers_is_a_wire_error(spec, buffers):
    with pytest.raises(WireError):
        decode(spec, buffers)


def test_deep_nesting_is_a_wire_error():
    spec = None
    for _ in range(2_000):
        spec = ["list", spec]
    with pytest.raises(WireError):
        decode(spec, [])
