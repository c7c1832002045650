"""Random qwen2-like models in the Hugging Face layout, made once and kept under TANDEM_HOME/cache/models.

Qwen2, because mlx-lm's own pipeline takes it and does not take llama. Their weights are random, so what they say means
nothing and their speed everything. The tokenizer is a byte-level BPE over made-up words, all of plain ASCII, so that each
token is text at once; its end token lies beyond the model's vocabulary, so that an answer has exactly the length asked for.
"""

import itertools
import json
import random
import shutil
from pathlib import Path
from typing import Any

import msgspec
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers

VOCABULARY = 2048
CONTEXT_TOKENS = 8192
# A token of one character that neither JSON nor HTTP uses: stand-ins for workers send it, and clients count it.
MARK = "~"
FORMATS = ("float32", "bfloat16", "float16", "4bit")
_ASCII = [chr(code) for code in range(33, 127)]
_GROUP_SIZE = 64
_BITS = 4


class Size(msgspec.Struct, frozen=True, kw_only=True):
    """Widths of a model."""

    hidden: int
    layers: int
    feed_forward: int
    heads: int
    kv_heads: int


SIZES = {
    "25m": Size(hidden=512, layers=8, feed_forward=1536, heads=8, kv_heads=4),
    "160m": Size(hidden=1024, layers=12, feed_forward=3200, heads=16, kv_heads=8),
    "500m": Size(hidden=1536, layers=16, feed_forward=5632, heads=12, kv_heads=4),
}


def known_models() -> list[str]:
    """Every name that `ensure_model` takes, SIZE-FORMAT. 500m-float16 is the one of 1 GB."""
    return [f"{size}-{kind}" for size, kind in itertools.product(SIZES, FORMATS)]


def ensure_model(name: str, folder: Path) -> Path:
    """The directory of a model, made first where it is not there yet. Raises ValueError for an unknown name."""
    if name not in known_models():
        raise ValueError(f"there is no model {name!r}; there are: {', '.join(known_models())}")
    target = folder / name
    if not target.is_dir():
        unfinished = folder / f"{name}.unfinished"
        shutil.rmtree(unfinished, ignore_errors=True)
        unfinished.mkdir(parents=True)
        size, _, kind = name.partition("-")
        _write(SIZES[size], kind, unfinished)
        unfinished.rename(target)
    return target


def num_parameters(size: Size, vocabulary: int = VOCABULARY) -> int:
    """Weights of a model of this size, biases and norms included; embedding and head are two matrices."""
    kv_width = size.hidden // size.heads * size.kv_heads
    attention = 2 * size.hidden**2 + 2 * size.hidden * kv_width + size.hidden + 2 * kv_width
    layer = attention + 3 * size.hidden * size.feed_forward + 2 * size.hidden
    return size.layers * layer + 2 * vocabulary * size.hidden + size.hidden


def configuration(size: Size, vocabulary: int) -> dict[str, Any]:
    """config.json of a model."""
    return {
        "model_type": "qwen2",
        "architectures": ["Qwen2ForCausalLM"],
        "hidden_size": size.hidden,
        "num_hidden_layers": size.layers,
        "intermediate_size": size.feed_forward,
        "num_attention_heads": size.heads,
        "num_key_value_heads": size.kv_heads,
        "rms_norm_eps": 1e-6,
        "vocab_size": vocabulary,
        "max_position_embeddings": CONTEXT_TOKENS,
        "rope_theta": 10000.0,
        "tie_word_embeddings": False,
    }


def write_tokenizer(directory: Path) -> int:
    """tokenizer.json and tokenizer_config.json; returns the vocabulary's size, the end token not counted."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(vocab_size=VOCABULARY, initial_alphabet=_ASCII, show_progress=False)
    tokenizer.train_from_iterator(_made_up_text(), trainer)
    vocabulary = tokenizer.get_vocab_size()
    tokenizer.add_special_tokens(["</s>"])
    tokenizer.save(str(directory / "tokenizer.json"))
    settings = {
        "tokenizer_class": "PreTrainedTokenizerFast",
        "eos_token": "</s>",
        "clean_up_tokenization_spaces": False,
    }
    (directory / "tokenizer_config.json").write_text(json.dumps(settings))
    return vocabulary


def _made_up_text() -> list[str]:
    generator = random.Random(7)
    syllables = [consonant + vowel for consonant in "bcdfghjklmnpqrstvwxyz" for vowel in "aeiou"]
    words = ["".join(generator.choices(syllables, k=generator.randint(1, 3))) for _ in range(4000)]
    return [" ".join(["", *generator.choices(words, k=40)]) for _ in range(1500)]


def _write(size: Size, kind: str, directory: Path) -> None:
    import mlx.core as mx
    from mlx import nn
    from mlx.utils import tree_flatten
    from mlx_lm.models import qwen2

    config = configuration(size, write_tokenizer(directory))
    mx.random.seed(0)
    model = qwen2.Model(qwen2.ModelArgs.from_dict(config))
    if kind == "4bit":  # scales in float32: in 16 bits this arithmetic is ten times slower on a CPU
        nn.quantize(model, group_size=_GROUP_SIZE, bits=_BITS)
        config["quantization"] = {"group_size": _GROUP_SIZE, "bits": _BITS}
    else:
        model.set_dtype(getattr(mx, kind))
    weights = dict(tree_flatten(model.parameters()))
    mx.save_safetensors(str(directory / "model.safetensors"), weights, metadata={"format": "mlx"})
    index = {"metadata": {}, "weight_map": dict.fromkeys(weights, "model.safetensors")}  # mlx-lm's pipeline wants one
    (directory / "model.safetensors.index.json").write_text(json.dumps(index))
    (directory / "config.json").write_text(json.dumps(config))
