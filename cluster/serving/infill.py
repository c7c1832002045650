"""Prompts for text between other text, for models that were trained to fill in: their marks, and the order that they want."""

from collections.abc import Sequence
from typing import Any

# What stands before the text that comes first, the text that comes last, and the answer; by family.
_MARKS = (
    ("<|fim_prefix|>", "<|fim_suffix|>", "<|fim_middle|>"),  # Qwen, Gemma
    ("<fim_prefix>", "<fim_suffix>", "<fim_middle>"),  # StarCoder
    ("<fim-prefix>", "<fim-suffix>", "<fim-middle>"),  # SantaCoder
    ("<｜fim▁begin｜>", "<｜fim▁hole｜>", "<｜fim▁end｜>"),  # DeepSeek  # noqa: RUF001 - its own bars
    ("▁<PRE>", "▁<SUF>", "▁<MID>"),  # CodeLlama
    ("<PRE>", "<SUF>", "<MID>"),
)

InfillMarks = tuple[int, int, int]


def infill_marks(tokenizer: Any) -> InfillMarks | None:
    """The ids of a tokenizer's marks before the beginning, the end and the middle; None where it has none."""
    known = tokenizer.get_added_vocab()
    found = next((marks for marks in _MARKS if all(mark in known for mark in marks)), None)
    return None if found is None else (known[found[0]], known[found[1]], known[found[2]])


def infilled(marks: InfillMarks, before: Sequence[int], after: Sequence[int], tokenizer: Any) -> tuple[int, ...]:
    """The ids of a prompt for what stands between, begun as this tokenizer begins a text."""
    beginning = [tokenizer.bos_token_id]
    begun = beginning if tokenizer.encode("")[:1] == beginning else []
    first, last, middle = marks
    return (*begun, first, *before, last, *after, middle)
