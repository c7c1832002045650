"""A model of a gigabyte: each worker's memory is that of what it holds."""

import json
import shutil

import mlx.core as mx
import psutil
import pytest

from benchmarks.support.footprint import footprint_bytes
from workers.zoo import make_tiny_model

NUM_LAYERS = 16
HIDDEN = 1024
INTERMEDIATE = 4608
OVERHEAD_BYTES = 350_000_000
NEEDED_BYTES = 6_000_000_000


@pytest.fixture
def large_model(tmp_path):
    """A float32 llama of about 1.1 GB with random weights, 66 MB a layer."""
    if psutil.virtual_memory().available < NEEDED_BYTES or shutil.disk_usage(tmp_path).free < NEEDED_BYTES:
        pytest.skip("this machine has less than 6 GB of memory or disk free")
    path = make_tiny_model("llama", tmp_path / "large", num_hidden_layers=1)
    config = json.loads((path / "config.json").read_text()) | {
        "num_hidden_layers": NUM_LAYERS,
        "hidden_size": HIDDEN,
        "intermediate_size": INTERMEDIATE,
        "num_attention_heads": 16,
        "num_key_value_heads": 4,
        "head_dim": HIDDEN // 16,
        "torch_dtype": "float32",
    }
    (path / "config.json").write_text(json.dumps(config))
    weights = layer_weights()  # the same for every layer: random numbers are slow to make
    for layer in range(NUM_LAYERS):
        tensors = {f"model.layers.{layer}.{name}.weight": weight for name, weight in weights.items()}
        if layer == 0:
            rows = (config["vocab_size"], HIDDEN)
            tensors |= {"model.embed_tokens.weight": random(rows), "lm_head.weight": random(rows)}
            tensors["model.norm.weight"] = mx.ones(HIDDEN)
        mx.save_safetensors(str(path / f"model-{layer:05}.safetensors"), tensors, metadata={"format": "mlx"})
    (path / "model.safetensors").unlink()
    return path


def random(shape):
    return mx.random.normal(shape) * 0.02


def layer_weights():
    shapes = {
        "self_attn.q_proj": (HIDDEN, HIDDEN),
        "self_attn.k_proj": (HIDDEN // 4, HIDDEN),
        "self_attn.v_proj": (HIDDEN // 4, HIDDEN),
        "self_attn.o_proj": (HIDDEN, HIDDEN),
        "mlp.gate_proj": (INTERMEDIATE, HIDDEN),
        "mlp.up_proj": (INTERMEDIATE, HIDDEN),
        "mlp.down_proj": (HIDDEN, INTERMEDIATE),
    }
    norms = ("input_layernorm", "post_attention_layernorm")
    return {name: random(shape) for name, shape in shapes.items()} | {name: mx.ones(HIDDEN) for name in norms}


def test_worker_without_room_for_the_model_has_only_its_layers_in_memory(cluster, large_model, tmp_path):
    config = tmp_path / "limits.toml"
    config.write_text(
        f'[model]\npath = "{large_model}"\n[engine]\nprefill_chunk = 64\n'
        '[[workers]]\nname = "roomy"\nmemory_limit = "4GB"\n'
        '[[workers]]\nname = "tight"\nmemory_limit = "900MB"\n'
    )
    done = cluster.command("start", "--config", str(config), "--port", str(cluster.port))
    assert done.returncode == 0, done.stderr + cluster.logs()
    for mode in ("always", "never"):
        answer = cluster.complete([20, 21], 2, use_distributed_inference=mode)
        assert answer["tandem"]["workers"] == (["roomy", "tight"] if mode == "always" else ["roomy"])

    status = cluster.api_status()
    total = status["model"]["bytes"]
    assert total > 1_000_000_000
    roomy, tight = status["workers"]
    assert (roomy["holds_full_model"], tight["holds_full_model"]) == (True, False)
    own = (tight["layers"][1] - tight["layers"][0]) * total / NUM_LAYERS
    assert 0.4 * total < own < 0.6 * total
    for worker, held in ((roomy, total), (tight, own)):
        resident = footprint_bytes(psutil.Process(worker["pid"]))
        assert resident < held + OVERHEAD_BYTES, f"{worker['name']}: {resident:,} bytes for {held:,.0f} of weights"
        assert worker["memory"]["weights_bytes"] == pytest.approx(held, rel=0.02)
