"""Each kind of cache on a small model: what it keeps, what it costs, what it refuses, and batches and copies of it."""

from typing import get_args

import mlx.core as mx
import pytest
from mlx_lm.models.cache import load_prompt_cache, save_prompt_cache

from protocol.errors import ModelError
from protocol.values import KvKind
from workers.cache.stage_cache import StageCache
from workers.kv_cache import KINDS, CacheFull, KvSettings
from workers.kv_cache.paged import BLOCK_TOKENS, PagedKVCache
from workers.kv_cache.static import StaticKVCache
from workers.model.split_model import SplitModel
from workers.zoo import make_tiny_model

WHOLE, STAGES = (0, 6), ((0, 3), (3, 6))
PROMPT = [(11 * place) % 240 + 3 for place in range(150)]
SETTINGS = {
    "dynamic": KvSettings(),
    "static": KvSettings(kind="static", max_tokens=170),
    "rotating": KvSettings(kind="rotating", max_tokens=256),
    "quantized": KvSettings(kind="quantized"),
    "keys-only": KvSettings(kind="keys-only"),
    "paged": KvSettings(kind="paged"),
}


@pytest.fixture(scope="module")
def split(tmp_path_factory):
    directory = tmp_path_factory.mktemp("models") / "llama"
    return SplitModel.load(make_tiny_model("llama", directory, hidden_size=128))


def advance(split, cache, ids, layers=WHOLE, payload=None):
    output = split.forward(mx.array([ids]), layers=layers, cache=cache, payload=payload)
    split.evaluate(output, cache)
    return output


def filled(split, kv, ids=PROMPT):
    cache = split.make_cache(WHOLE, kv)
    advance(split, cache, ids)
    return cache


def test_every_kind_has_a_name_in_the_settings_and_settings_here():
    assert set(SETTINGS) == set(KINDS) == set(get_args(KvKind))


def test_an_unknown_kind_is_refused_with_the_known_ones(split):
    with pytest.raises(ModelError, match="no kind of KV cache 'elastic'; take one of dynamic, static"):
        split.make_cache(WHOLE, KvSettings(kind="elastic"))


@pytest.mark.parametrize("kind", KINDS)
def test_clearing_forgets_everything_and_gives_the_memory_back(split, kind):
    kv = SETTINGS[kind]
    cache = filled(split, kv)
    cache.clear()
    assert cache.nbytes == 0
    expected = advance(split, split.make_cache(WHOLE, kv), PROMPT[:7])
    assert mx.array_equal(advance(split, cache, PROMPT[:7]), expected).item()


@pytest.mark.parametrize("kind", KINDS)
def test_rolling_back_is_as_if_the_tokens_had_never_come(split, kind):
    cache, shorter = filled(split, SETTINGS[kind]), filled(split, SETTINGS[kind], PROMPT[:100])
    cache.trim(50)
    expected = advance(split, shorter, [17])
    assert mx.allclose(advance(split, cache, [17]), expected, atol=1e-5).item()


@pytest.mark.parametrize("kind", KINDS)
def test_a_saved_sequence_goes_on_in_another_process_through_mlx_lms_own_file(split, kind, tmp_path):
    kv = SETTINGS[kind]
    caches = [split.make_cache(layers, kv) for layers in STAGES]
    between = advance(split, caches[0], PROMPT, STAGES[0])
    advance(split, caches[1], PROMPT, STAGES[1], between)
    loaded = []
    for layers, cache in zip(STAGES, caches, strict=True):
        file = str(tmp_path / f"{layers[0]}.safetensors")
        save_prompt_cache(file, cache.save())
        loaded.append(split.make_cache(layers, kv).load(load_prompt_cache(file)))
    expected = advance(split, caches[1], [17], STAGES[1], advance(split, caches[0], [17], STAGES[0]))
    found = advance(split, loaded[1], [17], STAGES[1], advance(split, loaded[0], [17], STAGES[0]))
    assert mx.array_equal(found, expected).item()


def test_a_saved_sequence_of_another_kind_or_range_is_refused(split):
    saved = filled(split, SETTINGS["keys-only"]).save()
    with pytest.raises(ValueError, match="another kind"):
        split.make_cache(WHOLE, SETTINGS["dynamic"]).load(saved)
    with pytest.raises(ValueError, match="do not fit"):
        split.make_cache(STAGES[0], SETTINGS["keys-only"]).load(saved)


@pytest.mark.parametrize("kind", ["static", "paged"])
def test_a_batch_gives_what_its_sequences_give_alone_and_rows_leave_it_as_they_were(split, kind):
    kv, prompts = SETTINGS[kind], [PROMPT, PROMPT[:70], PROMPT[5:140]]
    assert split.kv_kind(kind).batches(kv)
    caches = [filled(split, kv, prompt) for prompt in prompts]
    batch = StageCache.merge([caches[0].fork(), caches[1].fork()])
    batch.extend(StageCache.merge([caches[2].fork()]))
    expected = mx.concatenate([advance(split, cache, [7]) for cache in caches])
    output = split.forward(mx.array([[7]] * 3), layers=WHOLE, cache=batch)
    split.evaluate(output, batch)
    assert mx.allclose(output, expected, atol=1e-4).item()
    batch.filter([2, 0])
    single = batch.extract(1)
    assert type(single.entries[0]) is type(caches[0].entries[0])
    assert mx.allclose(advance(split, single, [21]), advance(split, caches[0], [21]), atol=1e-4).item()


def test_no_batch_of_a_kind_that_cannot(split):
    assert not split.kv_kind("keys-only").batches(SETTINGS["keys-only"])
    assert not split.kv_kind("quantized").batches(SETTINGS["quantized"])
    assert not split.kv_kind("rotating").batches(SETTINGS["rotating"])
    assert split.kv_kind("rotating").batches(KvSettings(kind="rotating", max_tokens=64, keep=0))


# --- static


def test_static_appends_allocate_nothing_after_the_first_token():
    cache = StaticKVCache(256)
    append_noise(cache, 60)
    for num_tokens in [1] * 100 + [5, 64]:
        noise = [mx.random.normal((1, 2, num_tokens, 16)) for _ in range(2)]
        mx.eval(noise)
        before = mx.get_active_memory()
        mx.reset_peak_memory()
        mx.eval(cache.update_and_fetch(*noise), cache.state)
        assert mx.get_active_memory() == before
        assert mx.get_peak_memory() <= before + 64  # indices, at most


def append_noise(cache, num_tokens):
    mx.eval(cache.update_and_fetch(*mx.random.normal((2, 1, 2, num_tokens, 16))), cache.state)


def test_memory_of_a_sequence_stays_what_the_first_token_made_it(split):
    cache = filled(split, SETTINGS["static"], PROMPT[:3])
    advance(split, cache, [5])
    before, of_cache = mx.get_active_memory(), cache.nbytes
    for token in range(20, 60):
        advance(split, cache, [token])
    assert cache.nbytes == of_cache
    assert mx.get_active_memory() <= before


def test_a_static_cache_refuses_what_it_has_no_room_for():
    cache = StaticKVCache(64)
    append_noise(cache, 60)
    with pytest.raises(CacheFull, match="65 tokens and its static cache room for 64"):
        append_noise(cache, 5)
    append_noise(cache, 4)


def test_static_needs_to_know_how_long_a_sequence_gets(split):
    assert "max_tokens" in split.kv_kind("static").why_not(KvSettings(kind="static"))
    with pytest.raises(ValueError, match="max_tokens"):
        split.make_cache(WHOLE, KvSettings(kind="static"))


# --- rotating


def test_a_rotating_cache_stays_within_its_tokens_and_keeps_the_first(split):
    kv = KvSettings(kind="rotating", max_tokens=32, keep=4)
    cache = filled(split, kv, PROMPT[:20])
    first = mx.array(cache.entries[0].keys[:, :, :4])
    for token in range(20, 90):
        advance(split, cache, [token])
    assert cache.entries[0].keys.shape[2] == 32
    assert mx.array_equal(cache.entries[0].keys[:, :, :4], first).item()
    assert not cache.is_trimmable()


def test_a_rotating_cache_on_two_stages_masks_as_on_one(split):
    kv = KvSettings(kind="rotating", max_tokens=32)
    whole, stages = split.make_cache(WHOLE, kv), [split.make_cache(layers, kv) for layers in STAGES]
    for ids in (PROMPT[:20], PROMPT[20:60], [7], [8], PROMPT[60:64]):
        expected = advance(split, whole, ids)
        found = advance(split, stages[1], ids, STAGES[1], advance(split, stages[0], ids, STAGES[0]))
        assert mx.array_equal(found, expected).item()


def test_a_rotating_cache_without_room_is_refused(split):
    assert "(max_tokens)" in split.kv_kind("rotating").why_not(KvSettings(kind="rotating"))
    assert "no room" in split.kv_kind("rotating").why_not(KvSettings(kind="rotating", max_tokens=5))


# --- quantized


@pytest.mark.parametrize(("key_bits", "value_bits", "share"), [(8, 8, 0.5), (4, 4, 0.4), (8, 4, 0.45)])
def test_quantized_memory_follows_the_widths(split, key_bits, value_bits, share):
    kv = KvSettings(kind="quantized", key_bits=key_bits, value_bits=value_bits)
    assert filled(split, kv).nbytes <= share * filled(split, KvSettings()).nbytes


@pytest.mark.parametrize(
    ("settings", "says"),
    [({"bits": 3}, "8 or 4 bits"), ({"group_size": 20}, "32, 64 or 128"), ({"group_size": 64}, "32 numbers wide")],
)
def test_quantization_that_cannot_be_is_refused(split, settings, says):
    assert says in split.kv_kind("quantized").why_not(KvSettings(kind="quantized", **settings))


# --- keys-only


def test_keys_only_takes_half_the_memory(split):
    assert 2 * filled(split, SETTINGS["keys-only"]).nbytes == filled(split, SETTINGS["dynamic"]).nbytes


@pytest.mark.parametrize(
    ("changes", "says"),
    [
        ({"num_key_value_heads": 2}, "makes 32 numbers of 64"),
        ({"dtype": "bfloat16"}, "bfloat16, too coarse"),
        ({"bits": 4}, "quantized"),
    ],
)
def test_a_model_whose_keys_do_not_give_the_values_is_refused(tmp_path, changes, says):
    model = SplitModel.load(make_tiny_model("llama", tmp_path, **changes))
    assert says in model.kv_kind("keys-only").why_not(KvSettings(kind="keys-only"))


def test_a_key_projection_without_an_exact_inverse_is_refused_with_its_condition_number(tmp_path):
    model = SplitModel.load(make_tiny_model("llama", tmp_path))
    weight = model.layers[4].self_attn.k_proj.weight
    weight[3] = weight[2] + 1e-5 * weight[1]
    why_not = model.kv_kind("keys-only").why_not
    assert "condition number" in why_not(KvSettings(kind="keys-only"))
    assert why_not(KvSettings(kind="keys-only"), (0, 4)) is None


# --- paged


def test_forks_share_their_full_blocks_and_nothing_else():
    cache = PagedKVCache()
    append_noise(cache, 2 * BLOCK_TOKENS + 10)
    other = cache.fork()
    assert [block is theirs for block, theirs in zip(cache.blocks, other.blocks, strict=True)] == [True, True]
    alone = mx.array(other.keys_and_values()[0])
    append_noise(cache, 3)
    cache.trim(BLOCK_TOKENS)
    append_noise(cache, 3)
    assert mx.array_equal(other.keys_and_values()[0], alone).item()
    assert cache.blocks[0] is other.blocks[0]


def test_blocks_given_to_another_sequence_take_no_memory_of_their_own():
    cache, other = PagedKVCache(), PagedKVCache()
    append_noise(cache, 3 * BLOCK_TOKENS)
    blocks = [cache.read_tokens(at, at + BLOCK_TOKENS) for at in range(0, 3 * BLOCK_TOKENS, BLOCK_TOKENS)]
    mx.eval(blocks)
    before = mx.get_active_memory()
    other.append_tokens(blocks)
    assert mx.get_active_memory() == before
    assert mx.array_equal(other.keys_and_values()[1], cache.keys_and_values()[1]).item()


def test_rows_that_leave_a_batch_have_their_shared_blocks_again(split):
    caches = [filled(split, SETTINGS["paged"]) for _ in range(2)]
    blocks = [cache.entries[0].read_tokens(0, BLOCK_TOKENS) for cache in caches]
    left = StageCache.merge(caches).extract(1)
    assert left.entries[0].blocks[0] is blocks[1]
    assert left.entries[0].offset == len(PROMPT)
