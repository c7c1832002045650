"""What caches will take, said before a model is loaded, beside what they take once it runs."""

import json

import mlx.core as mx
import pytest

from protocol.values import KvSettings, LayerRange
from strategy.memory import sequence_bytes
from workers.cache.kv_memory import kv_needs
from workers.model.planned_caches import planned_caches
from workers.model.split_model import SplitModel
from workers.zoo import make_tiny_model, tiny_config

TOKENS = 700
PLAIN = KvSettings()


def planned_bytes(path, kv=PLAIN):
    config = json.loads((path / "config.json").read_text())
    return [sequence_bytes(needs, TOKENS) for needs in planned_caches(config, kv)]


def seen_bytes(path, layers, kv=PLAIN):
    cache, _ = SplitModel.load(path).warm_up(layers, kv)
    return sequence_bytes(kv_needs(cache), TOKENS)


@pytest.mark.parametrize(
    ("architecture", "dtype"),
    [
        ("llama", "bfloat16"),
        ("gemma3_text", "float16"),
        ("qwen3_moe", "float32"),
        ("mamba2", "float32"),
        ("deepseek_v3", "float32"),
        ("gpt_oss", "float32"),
        ("jamba", "float32"),
        ("gemma3n", "float32"),
    ],
)
def test_every_layers_caches_are_known_before_it_is_loaded(tmp_path, architecture, dtype):
    path = make_tiny_model(architecture, tmp_path / "model", dtype=dtype)
    config = path / "config.json"
    config.write_text(json.dumps({**json.loads(config.read_text()), "torch_dtype": dtype}))
    planned = planned_bytes(path)
    num_layers = SplitModel.load(path).num_layers
    assert len(planned) == num_layers
    assert sum(planned) == seen_bytes(path, LayerRange(0, num_layers)) > 0


@pytest.mark.parametrize(
    "kv", [KvSettings(kind="quantized", bits=4, group_size=32), KvSettings(kind="rotating", max_tokens=256)]
)
def test_the_kind_of_cache_counts(tmp_path, kv):
    path = make_tiny_model("llama", tmp_path / "model", head_dim=32)
    planned = planned_bytes(path, kv)
    assert sum(planned) == seen_bytes(path, LayerRange(0, len(planned)), kv) < sum(planned_bytes(path))


def test_nothing_of_the_model_is_computed():
    """Of a model that would not fit this machine: 405 billion parameters, 1 MB of caches for two tokens."""
    config = tiny_config("llama") | {
        "num_hidden_layers": 126,
        "hidden_size": 16384,
        "intermediate_size": 53248,
        "num_attention_heads": 128,
        "num_key_value_heads": 8,
        "head_dim": 128,
        "vocab_size": 128256,
        "torch_dtype": "bfloat16",
    }
    before = mx.get_peak_memory()
    found = planned_caches(config, KvSettings())
    assert [needs.growth[0].token_bytes for needs in found] == [2 * 8 * 128 * 2] * 126
    assert mx.get_peak_memory() - before < 1 << 20


def test_architecture_that_computes_while_it_is_looked_at_is_left_alone():
    assert planned_caches(tiny_config("dbrx"), KvSettings()) == ()


def test_settings_that_no_cache_can_have_are_told_when_it_is_loaded():
    assert planned_caches(tiny_config("llama"), KvSettings(kind="static")) == ()
