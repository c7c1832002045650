"""Random models of any architecture: in memory, or as a directory that mlx-lm and every tool around it can load."""

import json
from collections.abc import Mapping
from functools import cache
from pathlib import Path
from typing import Any

import mlx.core as mx
from mlx import nn
from mlx.utils import tree_flatten, tree_map, tree_map_with_path
from mlx_lm.utils import quantize_model
from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers, trainers

from workers.zoo.configurations import architecture_of, arguments_class, model_class, tiny_config

_SPECIAL = ("<s>", "<|end|>", "<|system|>", "<|user|>", "<|assistant|>")
_END_ID = _SPECIAL.index("<|end|>")
_CHAT_TEMPLATE = (
    "{% for message in messages %}<|{{ message.role }}|>{{ message.content }}<|end|>{% endfor %}"
    "{% if add_generation_prompt %}<|assistant|>{% endif %}"
)
_TEXT = (
    "the worker sends the hidden states of its last layer to the next worker and the answer comes back as a token",
    "a stage keeps the keys and the values of its own layers, so that nothing else travels for a token",
    "the planner weighs the memory of each node, the time that a layer takes there and what a link costs",
)


def random_model(config: Mapping[str, Any]) -> nn.Module:
    """An unevaluated model of this config.json with noise on every weight: a zero or a one could hide a wrong result."""
    architecture = architecture_of(config)
    built: nn.Module = model_class(architecture)(arguments_class(architecture).from_dict(dict(config)))
    built.eval()
    built.update(tree_map_with_path(_noisy, built.parameters()))
    return built


def make_tiny_model(
    architecture: str,
    directory: Path,
    dtype: str = "float32",
    seed: int = 0,
    bits: int | None = None,
    **overrides: Any,
) -> Path:
    """Writes a random model with tokenizer and chat template in the Hugging Face layout; returns the directory.

    dtype: of the weights, and of the scales when `bits` asks for a quantized model (groups of 32). overrides: fields of
    config.json, which is how larger models are made. The same arguments give the same weights. Raises ModelError for
    an architecture of which there is no tiny model.
    """
    config = tiny_config(architecture, **overrides)
    mx.random.seed(seed)
    model = random_model(config)
    kind = getattr(mx, dtype)
    model.update(tree_map(lambda w: w.astype(kind) if mx.issubdtype(w.dtype, mx.floating) else w, model.parameters()))
    config |= {"eos_token_id": _END_ID, "bos_token_id": 0, "torch_dtype": dtype}
    if bits is not None:
        model, config = quantize_model(model, config, group_size=32, bits=bits)
    directory.mkdir(parents=True, exist_ok=True)
    weights = dict(tree_flatten(model.parameters()))
    mx.save_safetensors(str(directory / "model.safetensors"), weights, metadata={"format": "mlx"})
    (directory / "config.json").write_text(json.dumps(config, indent=2), "utf-8")
    _write_tokenizer(directory)
    return directory


def _noisy(path: str, weight: mx.array) -> mx.array:
    if not mx.issubdtype(weight.dtype, mx.floating) or path.endswith(".signs"):  # signs are checked to be 1 or -1
        return weight
    return weight + 0.02 * mx.random.normal(weight.shape, weight.dtype)


@cache
def _tokenizer() -> str:
    """Of every tiny model. Byte-level, at most 320 tokens, so that it encodes any text and fits every tiny vocabulary."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    special = [AddedToken(token, special=True, normalized=False) for token in _SPECIAL]
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    trainer = trainers.BpeTrainer(
        vocab_size=320, special_tokens=special, initial_alphabet=alphabet, show_progress=False
    )
    tokenizer.train_from_iterator(_TEXT, trainer)
    return tokenizer.to_str(pretty=True)


def _write_tokenizer(directory: Path) -> None:
    (directory / "tokenizer.json").write_text(_tokenizer(), "utf-8")
    settings = {
        "tokenizer_class": "PreTrainedTokenizerFast",
        "bos_token": "<s>",
        "eos_token": "<|end|>",
        "clean_up_tokenization_spaces": False,
        "chat_template": _CHAT_TEMPLATE,
    }
    (directory / "tokenizer_config.json").write_text(json.dumps(settings, indent=2), "utf-8")
