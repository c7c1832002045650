"""What a neighbour keeps of past sequences, held as copies, serves a stage that takes over the neighbour's layers."""

import mlx.core as mx
import numpy as np
import pytest
from mlx_lm.models.cache import ArraysCache, KVCache

from protocol.errors import WireError
from protocol.values import KvSettings, LayerRange, Route
from strategy.prefix import KEY_BYTES
from tests.support.loaded_stages import executor_of, load, loader_for, ran, same
from workers.cache.kv_parts import KvPart, decode, encode
from workers.cache.prefix_store import PrefixLost, can_cut
from workers.model.split_model import SplitModel
from workers.zoo import make_tiny_model

# Plain attention shares blocks; windows and state-space layers keep snapshots; nemotron_h has fewer caches than layers.
BLOCKS, SNAPSHOTS = ("llama", "gpt2"), ("gemma3_text", "mamba2", "nemotron_h", "qwen3_next")
PROMPT = [(7 * index) % 290 + 5 for index in range(150)]
MORE = [11, 12, 13]
SPANS = [(0, 64), (64, 128), (128, 150)]
KEYS = [bytes([number]) * KEY_BYTES for number in range(len(SPANS))]
FRONT, BACK, WHOLE = LayerRange(0, 3), LayerRange(3, 6), LayerRange(0, 6)
ROOM = 8 << 20


@pytest.fixture(scope="module")
def models(tmp_path_factory):
    root = tmp_path_factory.mktemp("models")
    made = {name: make_tiny_model(name, root / name, num_hidden_layers=6) for name in BLOCKS + SNAPSHOTS}
    return made | {"wide": make_tiny_model("llama", root / "wide", num_hidden_layers=6, hidden_size=128)}


@pytest.fixture
def stage_of(models, tmp_path):
    """A loader with a stage of some layers, and that stage's executor."""

    def make(model, layers, kv=None):
        loader = loader_for(models, tmp_path)
        return loader, executor_of(load(loader, model, *layers, 6, kv=kv, copies=1, memory=ROOM))

    return make


def kv_of(executor):
    return executor._kv


def undisturbed(path, kv):
    """What the whole model makes of MORE after PROMPT."""
    split = SplitModel.load(path)
    cache = split.make_cache(WHOLE, kv)
    ran(split, WHOLE, PROMPT, cache)
    return ran(split, WHOLE, MORE, cache)


def keep(executor, layers, payload=None):
    """Run PROMPT through a stage and keep all of it; returns the keys that stand for it, and what the stage hands on."""
    cache = executor.prefixes.begin((), kv_of(executor))
    output = ran(executor._model, layers, PROMPT, cache, payload)
    spans, keys = (SPANS, KEYS) if can_cut(cache) else ([(0, len(PROMPT))], KEYS[-1:])
    executor.prefixes.keep(cache, spans, keys)
    return keys, output


def copy(source, layers, target, keys):
    for key in keys:
        spec, buffers = source.prefixes.export(key)
        target.prefixes.adopt(layers, key, spec, [bytes(buffer) for buffer in buffers])


def goes_on(executor, layers, keys, payload=None):
    cache = executor.prefixes.begin(keys, kv_of(executor))
    return ran(executor._model, layers, MORE, cache, payload)


@pytest.mark.parametrize("architecture", BLOCKS + SNAPSHOTS)
def test_stage_that_takes_over_its_neighbours_layers_goes_on_from_the_copies(architecture, models, stage_of):
    (_, front), (loader, back) = stage_of(architecture, FRONT), stage_of(architecture, BACK)
    keys, payload = keep(front, FRONT)
    keep(back, BACK, payload)
    copy(front, FRONT, back, keys)
    own_bytes = back.prefixes.num_bytes
    grown = executor_of(load(loader, architecture, *WHOLE, 6, copies=1, memory=ROOM))
    assert [key for key, _ in grown.prefixes.known] == keys[::-1]
    assert dict(grown.prefixes.known)[keys[-1]] == len(PROMPT)
    assert own_bytes == pytest.approx(grown.prefixes.num_bytes, rel=0.1)
    assert same(goes_on(grown, WHOLE, keys), undisturbed(models[architecture], None))


@pytest.mark.parametrize(
    "kv",
    [
        KvSettings(kind="quantized", bits=8, group_size=32),
        KvSettings(kind="paged"),
        KvSettings(kind="static"),
        KvSettings(kind="keys-only"),
        KvSettings(kind="rotating", max_tokens=64),
    ],
    ids=lambda kv: kv.kind,
)
def test_copies_serve_every_kind_of_cache(kv, models, stage_of):
    (_, front), (loader, back) = stage_of("wide", FRONT, kv), stage_of("wide", BACK, kv)
    keys, payload = keep(front, FRONT)
    keep(back, BACK, payload)
    copy(front, FRONT, back, keys)
    grown = executor_of(load(loader, "wide", *WHOLE, 6, kv=kv, copies=1, memory=ROOM))
    assert same(goes_on(grown, WHOLE, keys), undisturbed(models["wide"], kv_of(grown)))


@pytest.mark.parametrize("architecture", BLOCKS + SNAPSHOTS)
def test_middle_stage_that_grows_and_shrinks_goes_on_from_what_covers_its_layers(architecture, models, stage_of):
    ranges = [LayerRange(0, 2), LayerRange(2, 3), LayerRange(3, 5)]
    (_, first), (loader, middle), (_, behind) = (stage_of(architecture, layers) for layers in ranges)
    keys, received = keep(first, ranges[0])
    _, payload = keep(middle, ranges[1], received)
    keep(behind, ranges[2], payload)
    copy(behind, ranges[2], middle, keys)
    begun = goes_on(first, ranges[0], keys)
    for layers in (LayerRange(2, 5), LayerRange(2, 4)):
        changed = executor_of(load(loader, architecture, *layers, 6, copies=1, memory=ROOM))
        split = SplitModel.load(models[architecture])
        cache = split.make_cache(layers)
        ran(split, layers, PROMPT, cache, received)
        assert same(goes_on(changed, layers, keys, begun), ran(split, layers, MORE, cache, begun))


def test_layers_of_which_there_are_no_copies_are_not_known(stage_of):
    loader, back = stage_of("llama", BACK)
    keep(back, BACK, keep(stage_of("llama", FRONT)[1], FRONT)[1])
    grown = executor_of(load(loader, "llama", *WHOLE, 6))
    assert grown.prefixes.known == []
    assert grown.prefixes.num_bytes == 0
    with pytest.raises(PrefixLost):
        grown.prefixes.begin(KEYS, None)


def test_copies_go_when_the_directory_gives_their_key_up(stage_of):
    (_, front), (_, back) = stage_of("llama", FRONT), stage_of("llama", BACK)
    keys, _ = keep(front, FRONT)
    copy(front, FRONT, back, keys)
    assert back.prefixes.num_bytes == front.prefixes.num_bytes
    back.prefixes.drop(keys)
    assert back.prefixes.num_bytes == 0


def test_copies_stay_within_their_own_budget_least_recently_used_first(stage_of):
    (_, front), (_, back) = stage_of("llama", FRONT), stage_of("llama", BACK)
    keys, payload = keep(front, FRONT)
    keep(back, BACK, payload)
    own_bytes, part_bytes = back.prefixes.num_bytes, front.prefixes.bytes_of(keys[:1])
    copy(front, FRONT, back, keys)
    back.prefixes.begin(keys[:1], None)  # so that the first block is in use
    back.prefixes.limit(memory_bytes=ROOM, copy_bytes=part_bytes)
    assert back.prefixes.num_bytes == own_bytes + part_bytes
    assert [key for key, parts in back.prefixes.in_memory() if FRONT in parts] == keys[:1]


def test_copies_from_before_need_no_others_to_go_and_are_the_first_to(stage_of):
    (_, front), (_, back) = stage_of("llama", FRONT), stage_of("llama", BACK)
    keys, _ = keep(front, FRONT)
    part_bytes = front.prefixes.bytes_of(keys[:1])
    back.prefixes.limit(memory_bytes=ROOM, copy_bytes=2 * part_bytes)
    for key, is_earlier in ((keys[1], False), (keys[0], True), (keys[2], True)):  # the last one has no room
        spec, buffers = front.prefixes.export(key)
        back.prefixes.adopt(FRONT, key, spec, buffers, is_earlier=is_earlier)
    assert [key for key, _ in back.prefixes.in_memory()] == [keys[0], keys[1]]
    back.prefixes.limit(memory_bytes=ROOM, copy_bytes=part_bytes)
    assert [key for key, _ in back.prefixes.in_memory()] == [keys[1]]


def test_whole_model_that_is_loaded_already_gets_what_its_stage_and_the_copies_make_together(models, stage_of):
    (_, front), (loader, _) = stage_of("llama", FRONT), stage_of("llama", BACK)
    both = load(loader, "llama", *BACK, 6, full=True, copies=1, memory=ROOM)
    back, whole = (both.executors[route] for route in (Route(("before", "own")), Route(("own",))))
    keys, payload = keep(front, FRONT)
    keep(back, BACK, payload)
    copy(front, FRONT, back, keys)
    assert whole.prefixes.known == []
    grown = load(loader, "llama", *WHOLE, 6, full=True, copies=1, memory=ROOM)
    assert grown.executors == {Route(("own",)): whole}
    assert [key for key, _ in whole.prefixes.known] == keys[::-1]
    assert same(goes_on(whole, WHOLE, keys), undisturbed(models["llama"], None))


def test_without_neighbours_that_copy_there_is_no_room_for_copies(models, tmp_path, stage_of):
    _, front = stage_of("llama", FRONT)
    alone = executor_of(load(loader_for(models, tmp_path), "llama", *BACK, 6, memory=ROOM))
    copy(front, FRONT, alone, keep(front, FRONT)[0])
    assert alone.prefixes.num_bytes == 0


@pytest.mark.parametrize("layers", [(0, 7), (-1, 3), (3, 3), (4, 2)])
def test_copies_of_layers_that_the_model_does_not_have_are_refused(layers, stage_of):
    (_, front), (_, back) = stage_of("llama", FRONT), stage_of("llama", BACK)
    keys, _ = keep(front, FRONT)
    with pytest.raises(WireError):
        copy(front, LayerRange(*layers), back, keys)


# --- on the wire


def block():
    entry = ArraysCache(2)
    entry[0], entry[1] = mx.ones((1, 2, 3, 4), mx.bfloat16), mx.zeros((1, 2, 3, 4))
    return entry


def test_buffers_of_a_block_are_views_of_its_arrays():
    entry = block()
    mx.eval(entry.cache)
    _, buffers = encode(KvPart(3, {0: entry}))
    assert [np.frombuffer(buffer, np.uint8).ctypes.data for buffer in buffers] == [
        np.asarray(array.view(mx.uint8)).ctypes.data for array in entry.cache
    ]


def test_part_comes_back_from_its_buffers():
    spec, buffers = encode(KvPart(3, {0: block(), 5: block()}))
    part = decode(spec, [bytes(buffer) for buffer in buffers])
    assert (part.end, list(part.entries)) == (3, [0, 5])
    assert all(mx.array_equal(a, b).item() for a, b in zip(part.entries[5].cache, block().cache, strict=True))


class OwnCache(KVCache):
    """A model's own class."""


def test_cache_of_a_class_that_is_not_mlx_lms_is_not_sent():
    assert encode(KvPart(3, {0: OwnCache()})) is None


@pytest.mark.parametrize(
    "spec",
    [
        None,
        ["list"],
        ["list", 3, ["list"], ["list", ["list", "ArraysCache", None]]],
        ["list", 0, ["list"], ["list"]],
        ["list", 2**40, ["list"], ["list"]],
        ["list", True, ["list", 0], ["list", None]],
        ["list", 3, ["list", -1], ["list", ["list", "ArraysCache", ["tuple", ["list"], None, None]]]],
        ["list", 3, ["list", "0"], ["list", ["list", "ArraysCache", ["tuple", ["list"], None, None]]]],
        ["list", 3, ["list", 0], ["list", ["list", "LRUPromptCache", None]]],
        ["list", 3, ["list", 0], ["list", ["list", "ArraysCache", None]]],
        ["list", 3, ["list", 0], ["list", ["list", "ArraysCache", ["tuple", 1, 2, 3]]]],
        ["list", 3, ["list", 0], ["list", ["list", "KVCache", ["tuple", "a", "b", 3]]]],
        ["list", 3, ["list", 0], ["list", ["list", "CacheList", ["list", ["list", "eval", None]]]]],
    ],
    ids=str,
)
def test_what_is_no_part_is_refused(spec):
    with pytest.raises(WireError):
        decode(spec, [])
