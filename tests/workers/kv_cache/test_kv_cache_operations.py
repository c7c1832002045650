"""Random appends, roll-backs, forks, cuts and clears on every kind of cache, against plain lists of arrays."""

import copy
import itertools

import mlx.core as mx
import numpy as np
import pytest
from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, rule
from mlx import nn
from mlx_lm.models.cache import KVCache, QuantizedKVCache

from workers.kv_cache import rows
from workers.kv_cache.keys_only import KeysOnlyCache, ValuesFromKeys, _unrotate
from workers.kv_cache.paged import PagedKVCache
from workers.kv_cache.quantized import UnpackingKVCache
from workers.kv_cache.static import StaticKVCache

HEADS, WIDTH, ROOM = 2, 32, 640
ROPE = nn.RoPE(WIDTH)
_generator = np.random.default_rng(5)
MATRIX = np.linalg.qr(_generator.normal(size=(HEADS * WIDTH, HEADS * WIDTH)))[0].astype(np.float32)
INVERSE = ValuesFromKeys(mx.array(MATRIX), mx.full((HEADS * WIDTH,), 0.5), ROPE, _unrotate(ROPE))


def plain_pair(numbers, offset):
    return tuple(mx.array(part) for part in numbers)


def linear_pair(numbers, offset):
    """Rotated keys, and values that follow from the keys before rotation."""
    keys = mx.array(numbers[0])
    side_by_side = keys.swapaxes(1, 2).reshape(1, keys.shape[2], -1)
    values = INVERSE.values(side_by_side).reshape(1, keys.shape[2], HEADS, WIDTH).swapaxes(1, 2)
    return ROPE(keys, offset=offset), values


def as_is(keys, values):
    return np.array(keys), np.array(values)


def packed(keys, values, bits=(8, 8)):
    groups = {"group_size": 32}
    return tuple(
        np.array(mx.dequantize(*mx.quantize(array, bits=width, **groups), bits=width, **groups))
        for array, width in zip((keys, values), bits, strict=True)
    )


def unpacked(cache, fetched):
    if not isinstance(cache, QuantizedKVCache):
        return fetched
    return tuple(mx.dequantize(*triple, group_size=32, bits=8) for triple in fetched)


class Operations(RuleBasedStateMachine):
    """caches: each beside the keys and values that it should hand out. Subclasses say of which kind."""

    make = staticmethod(KVCache)
    pair = staticmethod(plain_pair)
    kept = staticmethod(as_is)
    tolerance = 0.0

    @initialize()
    def begin(self):
        empty = np.zeros((1, HEADS, 0, WIDTH), np.float32)
        self.caches = [(self.make(), empty, empty)]

    def choose(self, which):
        return which % len(self.caches)

    @rule(
        which=st.integers(0, 5), num_tokens=st.sampled_from([1, 1, 1, 2, 17, 63, 64, 65, 130]), seed=st.integers(0, 99)
    )
    def append(self, which, num_tokens, seed):
        index = self.choose(which)
        cache, keys, values = self.caches[index]
        num_tokens = min(num_tokens, ROOM - keys.shape[2])
        if num_tokens == 0:
            return
        numbers = np.random.default_rng(seed).normal(size=(2, 1, HEADS, num_tokens, WIDTH)).astype(np.float32)
        new = self.pair(numbers, keys.shape[2])
        fetched = unpacked(cache, cache.update_and_fetch(*new))
        new_keys, new_values = self.kept(*new)
        keys, values = np.concatenate([keys, new_keys], axis=2), np.concatenate([values, new_values], axis=2)
        self.caches[index] = cache, keys, values
        self.check(fetched, keys, values)
        mx.eval(cache.state)

    @rule(which=st.integers(0, 5), num_tokens=st.integers(0, 200))
    def trim(self, which, num_tokens):
        index = self.choose(which)
        cache, keys, values = self.caches[index]
        left = keys.shape[2] - cache.trim(num_tokens)
        assert left == max(0, keys.shape[2] - num_tokens)
        self.caches[index] = cache, keys[:, :, :left], values[:, :, :left]

    @rule(which=st.integers(0, 5))
    def fork(self, which):
        cache, keys, values = self.caches[self.choose(which)]
        if len(self.caches) < 4:
            self.caches.append((copy.deepcopy(cache), keys, values))

    @rule(which=st.integers(0, 5))
    def forget(self, which):
        if len(self.caches) > 1:
            del self.caches[self.choose(which)]

    @rule(which=st.integers(0, 5), cuts=st.lists(st.integers(1, ROOM), max_size=3))
    def continue_from_cuts(self, which, cuts):
        """Another sequence of the same beginning, put together from ranges taken out of this one."""
        index = self.choose(which)
        cache, keys, values = self.caches[index]
        bounds = sorted({min(cut, keys.shape[2]) for cut in cuts} | {0})
        blocks = [rows.cut(cache, start, stop) for start, stop in itertools.pairwise(bounds)]
        other, end = self.make(), bounds[-1]
        rows.join(other, blocks)
        self.caches[index] = other, keys[:, :, :end], values[:, :, :end]

    @invariant()
    def tokens_are_counted(self):
        for cache, keys, _ in self.caches:
            assert cache.offset == keys.shape[2]

    @invariant()
    def everything_is_still_there(self):
        for cache, keys, values in self.caches:
            if cache.offset:
                self.check(unpacked(cache, cache.keys_and_values()), keys, values)

    def check(self, fetched, keys, values):
        for found, expected in zip(fetched, (keys, values), strict=True):
            assert found.shape == expected.shape
            assert np.abs(np.array(found) - expected).max() <= self.tolerance


class StaticOperations(Operations):
    make = staticmethod(lambda: StaticKVCache(ROOM))


class PagedOperations(Operations):
    make = staticmethod(PagedKVCache)


class QuantizedOperations(Operations):
    make = staticmethod(lambda: QuantizedKVCache(32, 8))
    kept = staticmethod(packed)


class MixedOperations(Operations):
    make = staticmethod(lambda: UnpackingKVCache(8, 4, 32))
    kept = staticmethod(lambda keys, values: packed(keys, values, (8, 4)))


class KeysOnlyOperations(Operations):
    make = staticmethod(lambda: KeysOnlyCache(lambda: INVERSE))
    pair = staticmethod(linear_pair)
    tolerance = 1e-4

    @invariant()
    def everything_is_still_there(self):
        """Heads are only known again with the next token of a sequence put together from parts."""


KINDS = [Operations, StaticOperations, PagedOperations, QuantizedOperations, MixedOperations, KeysOnlyOperations]
for _kind in KINDS:
    _kind.TestCase.settings = settings(
        max_examples=60, stateful_step_count=30, deadline=None, suppress_health_check=list(HealthCheck)
    )


@pytest.mark.parametrize("kind", KINDS)
def test_any_order_of_operations_leaves_each_sequence_with_exactly_its_tokens(kind):
    kind.TestCase("runTest").runTest()
