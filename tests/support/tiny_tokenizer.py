"""A byte-level BPE tokenizer in the Hugging Face layout, trained on a few sentences in milliseconds."""

import json
from collections.abc import Sequence
from pathlib import Path

from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers, processors, trainers

CHAT_TEMPLATE = (
    "{% for m in messages %}"
    "{% if m.role == 'system' and not loop.first %}{{ raise_exception('Only the first message may be system') }}{% endif %}"
    "<|{{ m.role }}|>{{ m.content }}<|end|>"
    "{% endfor %}{% if add_generation_prompt %}<|assistant|>{% endif %}"
)
SPECIAL = ("<s>", "<|end|>", "<|system|>", "<|user|>", "<|assistant|>")
TEXT = (
    "the cat sat on the mat",
    "a pipeline of layers",
    "the KV cache holds keys and values",
    "café, naïve, 日本語, 😀",
)


def write_tokenizer(
    directory: Path, *, template: str | None = CHAT_TEMPLATE, vocabulary: int = 400, marks: Sequence[str] = ()
) -> Path:
    """config.json and tokenizer files; text gets <s> in front. The model's vocabulary is padded to `vocabulary`. marks: tokens that
    are part of the text, as those around thoughts.
    """
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    trainer = trainers.BpeTrainer(
        vocab_size=320, special_tokens=list(SPECIAL), initial_alphabet=alphabet, show_progress=False
    )
    tokenizer.train_from_iterator(TEXT, trainer)
    tokenizer.post_processor = processors.TemplateProcessing(
        single="<s> $A", special_tokens=[("<s>", tokenizer.token_to_id("<s>"))]
    )
    directory.mkdir(parents=True, exist_ok=True)
    tokenizer.add_tokens([AddedToken(mark, special=False) for mark in marks])
    tokenizer.save(str(directory / "tokenizer.json"))
    end = tokenizer.token_to_id("<|end|>")
    settings = {
        "tokenizer_class": "PreTrainedTokenizerFast",
        "bos_token": "<s>",
        "eos_token": "<|end|>",
        "clean_up_tokenization_spaces": False,
    } | ({} if template is None else {"chat_template": template})
    (directory / "tokenizer_config.json").write_text(json.dumps(settings))
    (directory / "config.json").write_text(
        json.dumps({"model_type": "llama", "vocab_size": vocabulary, "eos_token_id": [end, 3]})
    )
    return directory
