"""How few layers a tiny model needs, so that every architecture can be tried: most show all their kinds of layers in three, which is
a first stage, one in the middle and a last.
"""

from workers import zoo

NUM_LAYERS = 3
_COUNTS = {"num_hidden_layers", "num_layers", "n_layer", "n_layers", "num_transformer_layers"}
# In fewer layers than `zoo` gives them not all of their kinds appear, or none that uses keys of a layer far before it.
_DEEP = {
    "afm7", "afmoe", "bailing_hybrid", "bailing_moe_linear", "deepseek_v41", "gear", "gemma3n", "gemma4", "gemma4_text",
    "granitemoehybrid", "jamba", "kimi_k3", "muse_spark", "nemotron-nas", "nemotron_h", "olmo_hybrid", "prism_hadamard_qwen35",
}  # fmt: skip
# Those of which four layers are of all kinds, and three are not, or are no model.
_FOUR = {
    "gpt_oss", "laguna", "llama4", "llama4_text", "mimo_v2_flash", "muse_glimmer", "olmo3", "openelm", "spark2_5", "step3p5",
}  # fmt: skip


def shallow(architecture: str) -> dict[str, int]:
    """Fields for `make_tiny_model` that leave out layers of which there are more of the same kind."""
    if architecture in _DEEP:
        return {}
    config = zoo.tiny_config(architecture)
    num_layers = NUM_LAYERS + (architecture in _FOUR)
    return dict.fromkeys(_COUNTS & config.get("text_config", config).keys(), num_layers)
