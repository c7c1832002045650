"""SplitModel: one model serves any range of its layers in turn, and stays what mlx-lm made it."""

import json
import struct

import mlx.core as mx
import mlx_lm
import pytest
from mlx.utils import tree_flatten
from mlx_lm.generate import generate_step
from mlx_lm.models.cache import make_prompt_cache
from mlx_lm.utils import load_model

from protocol.errors import ModelError
from protocol.values import LayerRange
from workers.cache.stage_cache import StageCache, can_batch
from workers.model.payload import without
from workers.model.split_model import CannotSplit, SplitModel
from workers.zoo import make_tiny_model

PROMPT = [5, 77, 130, 9, 41, 260, 3, 88, 14, 62, 7]
WHOLE = (0, 6)


@pytest.fixture(scope="module")
def directory(tmp_path_factory):
    return make_tiny_model("llama", tmp_path_factory.mktemp("models") / "llama")


@pytest.fixture
def split(directory):
    return SplitModel.load(directory)


def greedy(model, count=8):
    return [token for token, _ in generate_step(mx.array(PROMPT), model, max_tokens=count)]


def through(split, cuts, caches, ids):
    payload = None
    for layers, cache in zip(cuts, caches, strict=True):
        payload = split.forward(mx.array(ids, mx.int32), layers=layers, cache=cache, payload=payload)
        split.evaluate(payload, cache)
    return payload


def test_generation_by_mlx_lm_is_undisturbed_between_passes_of_a_stage(directory, split):
    expected = greedy(load_model(directory)[0])
    cache = split.make_cache((0, 3))
    found = []
    for token, _ in generate_step(mx.array(PROMPT), split.model, max_tokens=8):
        found.append(token)
        split.evaluate(split.forward(mx.array([[1, 2]], mx.int32), layers=(0, 3), cache=cache), cache)
    assert found == expected


def test_mlx_lms_own_tools_load_the_tiny_model(directory):
    model, tokenizer = mlx_lm.load(str(directory))
    assert tokenizer.decode(tokenizer.encode("a worker, naïve 日本語")) == "a worker, naïve 日本語"
    assert isinstance(mlx_lm.generate(model, tokenizer, "a worker", max_tokens=3), str)


def test_one_model_serves_different_ranges_in_turn(split):
    cuts = [(0, 2), (2, 6)]
    other = [(0, 5), (5, 6)]
    caches, others = [split.make_cache(layers) for layers in cuts], [split.make_cache(layers) for layers in other]
    whole = split.make_cache(WHOLE)
    for ids in ([PROMPT], [[4, 8]], [[15]]):
        expected = through(split, [WHOLE], [whole], ids)
        assert mx.array_equal(through(split, cuts, caches, ids), expected).item()
        assert mx.array_equal(through(split, other, others, ids), expected).item()


def test_the_last_position_alone_has_the_same_logits(split):
    tokens = mx.array([PROMPT, PROMPT[::-1]], mx.int32)
    for layers, payload in ((WHOLE, None), ((4, 6), split.forward(tokens, layers=(0, 4), cache=None))):
        every = split.forward(tokens, layers=layers, cache=None, payload=payload)
        last = split.forward(tokens, layers=layers, cache=None, payload=payload, last_positions=1)
        assert last.shape == (2, 1, every.shape[-1])
        assert mx.allclose(last, every[:, -1:], atol=1e-5).item()


def test_nothing_is_left_redirected_when_a_pass_fails(split):
    expected = split.model(mx.array([PROMPT]))
    with pytest.raises(Exception, match=r".+"):
        split.forward(mx.array([PROMPT]), layers=(3, 6), cache=None, payload=mx.zeros((1, len(PROMPT), 7)))
    assert mx.array_equal(split.model(mx.array([PROMPT])), expected).item()


def test_a_model_that_runs_its_layers_twice_is_refused(tmp_path):
    split = SplitModel.load(make_tiny_model("nanbeige", tmp_path, num_loops=2))
    with pytest.raises(CannotSplit):
        split.forward(mx.array([PROMPT]), layers=(0, 3), cache=None)
    assert split.forward(mx.array([PROMPT]), layers=WHOLE, cache=None).shape[1] == len(PROMPT)


def test_warming_up_reads_the_weights_of_the_range_and_no_others(tmp_path):
    directory = make_tiny_model("llama", tmp_path, hidden_size=512, intermediate_size=1024, num_hidden_layers=8)
    layer_bytes = load_layer_bytes(directory)
    active = {}
    for layers in ((0, 8), (0, 4), (4, 8), (2, 4)):
        split = SplitModel.load(directory)
        before = mx.get_active_memory()
        split.warm_up(layers)
        active[layers] = mx.get_active_memory() - before
        del split
    ends = 2 * 320 * 512 * 4
    assert active[0, 8] == pytest.approx(8 * layer_bytes + ends, rel=0.1)
    assert active[0, 4] == pytest.approx(4 * layer_bytes + ends / 2, rel=0.1)
    assert active[4, 8] == pytest.approx(4 * layer_bytes + ends / 2, rel=0.1)
    assert active[2, 4] == pytest.approx(2 * layer_bytes, rel=0.1)


def load_layer_bytes(directory):
    model, _ = load_model(directory, lazy=True)
    return sum(weight.nbytes for _, weight in tree_flatten(model.layers[0].parameters()))


def test_a_model_of_more_than_a_thousand_weights_is_read_layer_by_layer(tmp_path):
    path = make_tiny_model("llama", tmp_path, num_hidden_layers=120)
    split = SplitModel.load(path)
    split.warm_up(LayerRange(118, 120))
    assert split.weights.held_layers() == [118, 119]
    split.warm_up(LayerRange(0, 120))
    assert split.weights.held_layers() == list(range(120))


def test_parts_left_out_become_none_and_the_rest_stays():
    payload = (mx.zeros((1,)), (mx.ones((2,)), 3), {"kept": 1, "gone": 2})
    found = without(payload, ((1, 0), (2, "gone")))
    assert found[0] is payload[0]
    assert found[1:] == ((None, 3), {"kept": 1, "gone": None})


@pytest.mark.parametrize("architecture", ["llama", "gemma3_text", "nemotron_h", "falcon_h1", "deepseek_v3"])
def test_a_batch_on_two_stages_gives_what_its_sequences_give_alone(tmp_path, architecture):
    split = SplitModel.load(make_tiny_model(architecture, tmp_path))
    cuts = [(0, 3), (3, 6)]
    prompts = [PROMPT, PROMPT[:4], PROMPT[2:9]]
    alone = [[split.make_cache(layers) for layers in cuts] for _ in prompts]
    for prompt, caches in zip(prompts, alone, strict=True):
        through(split, cuts, caches, [prompt])
    batch = [StageCache.merge([caches[stage] for caches in alone[:2]]) for stage in range(2)]
    for cache, third in zip(batch, alone[2], strict=True):
        cache.extend(StageCache.merge([third]))
    expected = mx.concatenate([through(split, cuts, caches, [[7]]) for caches in alone])
    assert mx.allclose(through(split, cuts, batch, [[7]] * 3), expected, atol=1e-4).item()
    for cache in batch:
        cache.filter([0, 2])
    single = [cache.extract(1) for cache in batch]
    expected = mx.concatenate([through(split, cuts, alone[index], [[21]]) for index in (0, 2)])
    assert mx.allclose(through(split, cuts, batch, [[21]] * 2), expected, atol=1e-4).item()
    assert mx.allclose(through(split, cuts, single, [[21]]), expected[1:], atol=1e-4).item()


def test_padded_prompts_of_different_lengths_prefill_together(split):
    cuts, prompts = [(0, 3), (3, 6)], [PROMPT, PROMPT[:4]]
    lengths, padding = [11, 4], [0, 7]
    batch = [StageCache.merge([split.make_cache(layers) for _ in prompts]) for layers in cuts]
    for cache in batch:
        cache.prepare(lengths=lengths, right_padding=padding)
    through(split, cuts, batch, [PROMPT, PROMPT[:4] + [0] * 7])
    for cache in batch:
        cache.finalize()
    found = through(split, cuts, batch, [[7], [7]])
    for row, prompt in enumerate(prompts):
        expected = split.model(mx.array([[*prompt, 7]]))[:, -1:]
        assert mx.allclose(found[row : row + 1], expected, atol=1e-4).item()


def test_trimming_forgets_the_last_tokens_on_every_stage(split):
    cuts = [(0, 3), (3, 6)]
    caches = [split.make_cache(layers) for layers in cuts]
    through(split, cuts, caches, [[*PROMPT, 1, 2, 3]])
    for cache in caches:
        assert cache.is_trimmable()
        cache.trim(3)
    expected = split.model(mx.array([[*PROMPT, 9]]))[:, -1:]
    assert mx.allclose(through(split, cuts, caches, [[9]]), expected, atol=1e-5).item()


def test_a_stage_holds_content_for_its_own_layers_only(split):
    caches = {layers: split.make_cache(layers) for layers in ((0, 1), (0, 6))}
    for layers, cache in caches.items():
        split.evaluate(split.forward(mx.array([PROMPT]), layers=layers, cache=cache), cache)
    assert len({id(entry) for entry in caches[0, 1].entries}) == 2
    assert caches[0, 1].nbytes < caches[0, 6].nbytes / 4


def test_caches_that_mlx_lm_cannot_merge_do_not_batch(tmp_path):
    assert can_batch(make_prompt_cache(SplitModel.load(make_tiny_model("falcon_h1", tmp_path / "a")).model))
    assert not can_batch(make_prompt_cache(SplitModel.load(make_tiny_model("llama4", tmp_path / "b")).model))


def damaged(directory, tmp_path, damage):
    copy = tmp_path / "model"
    copy.mkdir()
    for file in directory.iterdir():
        (copy / file.name).write_bytes(file.read_bytes())
    damage(copy)
    return copy


def change_config(**changes):
    def damage(path):
        config = json.loads((path / "config.json").read_text())
        (path / "config.json").write_text(json.dumps(config | changes))

    return damage


def cut_off(path):
    weights = path / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:-100])


def overwrite(content):
    return lambda path: (path / "model.safetensors").write_bytes(content)


@pytest.mark.parametrize(
    ("damage", "says"),
    [
        (lambda path: (path / "config.json").unlink(), "has no config.json"),
        (lambda path: (path / "config.json").write_text("{"), "is not valid JSON"),
        (lambda path: (path / "config.json").write_bytes(b"\xff\xfe"), "is not valid JSON"),
        (lambda path: (path / "config.json").write_text("[]"), "names no model_type"),
        (lambda path: (path / "model.safetensors").unlink(), "has no model"),
        (cut_off, "model.safetensors has"),
        (overwrite(b""), "model.safetensors is not"),
        (overwrite(struct.pack("<Q", 2**60) + b"{}"), "truncated or corrupt"),
        (overwrite(struct.pack("<Q", 2) + b"[]"), "model.safetensors is not"),
        (change_config(model_type="no_such_model"), "no architecture 'no_such_model'"),
        (change_config(model_type="olmo"), "olmo"),
        (change_config(hidden_size=128), "do not match"),
        (change_config(num_hidden_layers=7), "do not match"),
        (change_config(num_hidden_layers="many"), "cannot use"),
    ],
)
def test_a_directory_that_cannot_be_used_is_one_plain_sentence(directory, tmp_path, damage, says):
    path = damaged(directory, tmp_path, damage)
    with pytest.raises(ModelError) as raised:
        SplitModel.load(path)
    assert says in str(raised.value)
    assert "\n" not in str(raised.value)
    assert len(str(raised.value)) < 500
