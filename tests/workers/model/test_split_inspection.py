"""The dry run that finds legal cuts: structure of the real configuration, refusals with reasons, results kept."""

import json

import pytest

from protocol.errors import ModelError
from workers.model import inspection
from workers.model.inspection import context_tokens, inspect, inspect_config
from workers.zoo import tiny_config

# As published, widths and all: the inspection must shrink them by itself.
LARGE = {
    "model_type": "llama", "hidden_size": 8192, "num_hidden_layers": 20, "intermediate_size": 28672,
    "num_attention_heads": 64, "num_key_value_heads": 8, "rms_norm_eps": 1e-5, "vocab_size": 128256,
    "rope_theta": 500000.0, "max_position_embeddings": 131072, "tie_word_embeddings": False,
}  # fmt: skip
SHARING = {
    "model_type": "gemma3n",
    "text_config": {
        "model_type": "gemma3n_text", "hidden_size": 2048, "intermediate_size": [16384] * 15, "num_hidden_layers": 15,
        "num_attention_heads": 8, "num_key_value_heads": 2, "head_dim": 256, "rms_norm_eps": 1e-6,
        "vocab_size": 262400, "num_kv_shared_layers": 5, "vocab_size_per_layer_input": 262144, "sliding_window": 512,
        "max_position_embeddings": 32768, "rope_local_base_freq": 10000.0, "rope_theta": 1e6,
        "final_logit_softcapping": 30.0, "layer_types": (["sliding_attention"] * 4 + ["full_attention"]) * 3,
        "activation_sparsity_pattern": [0.95] * 5 + [0.0] * 10, "hidden_size_per_layer_input": 256,
        "altup_num_inputs": 4, "altup_coef_clip": 120.0, "altup_correct_scale": True, "altup_active_idx": 0,
        "laurel_rank": 64,
    },
}  # fmt: skip
EXPERTS = LARGE | {
    "model_type": "qwen3_moe", "num_experts": 128, "num_experts_per_tok": 8, "decoder_sparse_step": 1,
    "mlp_only_layers": [], "moe_intermediate_size": 768, "norm_topk_prob": True, "head_dim": 128,
    "quantization": {"group_size": 64, "bits": 4},
}  # fmt: skip


@pytest.mark.parametrize("config", [LARGE, EXPERTS], ids=["llama", "qwen3_moe"])
def test_a_large_model_can_be_cut_at_every_layer(config):
    found = inspect_config(config)
    assert found.legal_cuts == tuple(range(1, 20))
    assert found.why_not is None
    assert found.batches
    assert found.last_position_only
    assert found.context_tokens == 131072


def test_layers_that_share_kv_stay_behind_their_source():
    found = inspect_config(SHARING)
    assert found.num_layers == 15
    assert found.legal_cuts == tuple(range(1, 9))  # layers 8 and 9 are the sources of layers 10 to 14
    assert found.context_tokens == 32768


def test_kv_that_nobody_reads_is_left_out_of_the_payload():
    found = inspect_config(tiny_config("gemma4_text"))
    assert found.unused[1] == ((1, 0), (1, 1))
    assert 3 not in found.unused


@pytest.mark.parametrize(
    ("architecture", "batches"),
    [("gemma3_text", True), ("nemotron_h", True), ("falcon_h1", True), ("gemma2", False), ("llama4", False)],
)
def test_only_what_gives_the_same_in_a_batch_is_batched(architecture, batches):
    assert inspect_config(tiny_config(architecture)).batches == batches


def test_an_architecture_that_bypasses_its_layers_is_refused_with_the_reason():
    found = inspect_config(tiny_config("iquestloopcoder"))
    assert found.legal_cuts == ()
    assert found.why_not == ("its layers cannot run apart from each other: it calls 0 layers in a pass instead of 6")


@pytest.mark.parametrize(
    ("architecture", "uncached_in_caches", "whole_prompts"),
    [("llama", False, False), ("gemma3n", True, False), ("plamo3", True, True), ("phi3small", True, True)],
)
def test_what_mlx_lm_computes_otherwise_without_caches_or_in_chunks_is_found(
    architecture, uncached_in_caches, whole_prompts
):
    found = inspect_config(tiny_config(architecture))
    assert (found.uncached_in_caches, found.whole_prompts) == (uncached_in_caches, whole_prompts)


def test_a_window_far_longer_than_the_dry_run_is_shrunk_with_the_rest():
    assert inspect_config(tiny_config("plamo3", sliding_window=2048, hidden_size=512)).whole_prompts


def test_a_mask_that_changes_nothing_on_a_short_sequence_is_still_handed_on():
    found = inspect_config(tiny_config("deepseek_v41"))
    assert (1, "shared", "index_k") in found.unused[2]
    assert (1, "shared", "candidates") not in found.unused[2]


def does_not_shrink(config, *, only_windows=False):
    return config if only_windows else tiny_config("llama", num_attention_heads=3)


def test_a_small_model_of_a_structure_that_does_not_shrink_is_tried_as_it_is(monkeypatch):
    monkeypatch.setattr(inspection.zoo, "shrunk", does_not_shrink)
    assert inspect_config(tiny_config("llama")).legal_cuts == (1, 2, 3, 4, 5)


def test_a_large_model_of_a_structure_that_does_not_shrink_is_refused(monkeypatch):
    monkeypatch.setattr(inspection.zoo, "shrunk", does_not_shrink)
    found = inspect_config(LARGE)
    assert found.legal_cuts == ()
    assert found.why_not.startswith("no small model of its structure can be tried: ")
    assert not found.batches
    assert found.uncached_in_caches
    assert found.whole_prompts


@pytest.mark.parametrize(
    "config",
    [LARGE | {"model_type": "no_such"}, {"model_type": "llama", "hidden_size": "many"}, {"model_type": "olmo"}],
)
def test_a_strange_configuration_is_refused_and_not_raised(config):
    found = inspect_config(config)
    assert found.legal_cuts == ()
    assert found.why_not


def test_a_single_layer_cannot_be_split():
    assert inspect_config(tiny_config("llama", num_hidden_layers=1)).why_not == "it has only one layer"


def test_the_result_is_kept_until_the_configuration_changes(tmp_path, monkeypatch):
    model, kept = tmp_path / "model", tmp_path / "kept"
    model.mkdir()
    (model / "config.json").write_text(json.dumps(tiny_config("gemma4_text")))
    first = inspect(model, kept)
    runs = []
    monkeypatch.setattr(inspection, "inspect_config", lambda config: runs.append(config) or first)
    assert inspect(model, kept) == first
    assert runs == []
    (model / "config.json").write_text(json.dumps(tiny_config("llama")))
    inspect(model, kept)
    assert len(runs) == 1


def test_a_damaged_result_is_made_again(tmp_path):
    (tmp_path / "config.json").write_text(json.dumps(tiny_config("llama")))
    first = inspect(tmp_path, tmp_path)
    for file in tmp_path.glob("inspection-*.json"):
        file.write_text("{")
    assert inspect(tmp_path, tmp_path) == first


def test_a_directory_without_configuration_is_an_error(tmp_path):
    with pytest.raises(ModelError, match=r"config\.json"):
        inspect(tmp_path, None)


def test_the_context_is_found_under_any_name_and_nested():
    assert context_tokens({"n_positions": 1024}) == 1024
    assert context_tokens({"text_config": {"max_position_embeddings": 4096}}) == 4096
    assert context_tokens({"max_position_embeddings": None}) is None
