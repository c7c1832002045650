"""The byte-level BPE tokenizer of the bundled model and its chat template, in the Hugging Face layout."""

import json
from collections.abc import Iterable
from pathlib import Path

from tokenizers import AddedToken, Regex, Tokenizer, decoders, models, pre_tokenizers, trainers

VOCAB_SIZE = 2048
PAD, END = "<|pad|>", "<|end|>"
ROLE_MARKS = {"system": "<|system|>", "user": "<|user|>", "assistant": "<|assistant|>"}
SPECIAL = (PAD, END, *ROLE_MARKS.values())

# A message is its role's mark, its text, and <|end|>, which is also what ends generation. Content may be a string or
# OpenAI's list of text parts. Roles without a mark of their own take the nearest one. Tools are a first message: of each its
# name and the parameters that it must have, the rest would be noise to so small a model. Calls are written as mlx-lm's parser
# `json_tools` reads them, which it takes for templates with these marks and `tool_call.name`.
CHAT_TEMPLATE = """\
{%- if tools -%}{{ '<|system|>You can call these tools:' }}
{%- for tool in tools -%}
{%- set function = tool.function or tool -%}{%- set schema = function.parameters or {} -%}
{{ '\\n' ~ function.name ~ '(' ~ (schema.required or schema.properties or []) | join(', ') ~ ')' }}
{%- endfor -%}{{ '<|end|>' }}
{%- endif -%}
{%- for message in messages -%}
{%- if message['role'] in ('system', 'developer') -%}{{ '<|system|>' }}
{%- elif message['role'] == 'assistant' -%}{{ '<|assistant|>' }}
{%- elif message['role'] in ('user', 'tool') -%}{{ '<|user|>' }}
{%- else -%}{{ raise_exception('A message has the unknown role ' ~ message['role']) }}
{%- endif -%}
{%- if message['role'] == 'tool' -%}{{ '<tool_response>\\n' }}{%- endif -%}
{%- if message['content'] is string -%}{{ message['content'] | trim }}
{%- elif message['content'] -%}
{%- for part in message['content'] -%}{{ part['text'] | trim }}{%- endfor -%}
{%- endif -%}
{%- if message['role'] == 'tool' -%}{{ '\\n</tool_response>' }}{%- endif -%}
{%- for call in message.tool_calls or [] -%}
{%- set tool_call = call.function or call -%}{%- set arguments = tool_call.arguments -%}
{{ ('\\n' if message['content'] or not loop.first else '') ~ '<tool_call>\\n{"name": ' ~ tool_call.name | tojson ~ ', "arguments": ' }}
{{- arguments if arguments is string else arguments | tojson }}{{ '}\\n</tool_call>' }}
{%- endfor -%}
{{ '<|end|>' }}
{%- endfor -%}
{%- if add_generation_prompt -%}{{ '<|assistant|>' }}{%- endif -%}
"""

# Words with the space before them; digits one by one; punctuation runs; other white space.
_WORDS = r"'(?:s|t|re|ve|m|ll|d)| ?\p{L}+| ?\p{N}| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+"


def train_tokenizer(texts: Iterable[str]) -> Tokenizer:
    """A tokenizer of VOCAB_SIZE entries whose first ids are SPECIAL; every byte has a token, so no text is unknown."""
    tokenizer = Tokenizer(models.BPE())
    split = pre_tokenizers.Split(Regex(_WORDS), behavior="isolated")
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [split, pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)]
    )
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=VOCAB_SIZE,
        special_tokens=[AddedToken(mark, special=True, normalized=False) for mark in SPECIAL],
        initial_alphabet=sorted(pre_tokenizers.ByteLevel.alphabet()),
        show_progress=False,
    )
    tokenizer.train_from_iterator(texts, trainer)
    return tokenizer


def token_id(tokenizer: Tokenizer, mark: str) -> int:
    """The id of a token that the tokenizer has, such as one of SPECIAL."""
    found = tokenizer.token_to_id(mark)
    assert found is not None, mark
    return found


def save_tokenizer(tokenizer: Tokenizer, directory: Path, context_length: int) -> None:
    """Writes tokenizer.json and tokenizer_config.json, which transformers' fast tokenizer reads offline."""
    tokenizer.save(str(directory / "tokenizer.json"), pretty=False)
    config = {
        "tokenizer_class": "PreTrainedTokenizerFast",
        "model_max_length": context_length,
        "eos_token": END,
        "pad_token": PAD,
        "additional_special_tokens": list(ROLE_MARKS.values()),
        "clean_up_tokenization_spaces": False,
        "chat_template": CHAT_TEMPLATE,
    }
    (directory / "tokenizer_config.json").write_text(json.dumps(config, indent=2) + "\n", encoding="utf-8")
