"""Prompts with text before and after the answer, for models whose tokenizer has marks for that."""

import pytest

from cluster.serving.prompts import Prompts
from cluster.serving.requests import GenerationRequest, TextPrompt
from protocol.errors import BadRequest
from tests.support.tiny_tokenizer import write_tokenizer


def encoded(prompts, prompt):
    return prompts.encode(GenerationRequest(prompt=prompt))


@pytest.mark.parametrize(
    "marks",
    [
        ("<|fim_prefix|>", "<|fim_suffix|>", "<|fim_middle|>"),
        ("<fim_prefix>", "<fim_suffix>", "<fim_middle>"),
        ("<PRE>", "<SUF>", "<MID>"),
    ],
)
def test_text_before_and_after_stand_between_the_marks_of_the_model(tmp_path, marks):
    prompts = Prompts.load(write_tokenizer(tmp_path, marks=marks))
    assert prompts.abilities == ("insert",)
    before, after = (encoded(prompts, TextPrompt(text, bare=True)) for text in ("the cat", "the mat"))
    start, *ids = encoded(prompts, TextPrompt("the cat", suffix="the mat"))
    assert prompts.decode([start]) == "<s>"
    first, last, middle = (encoded(prompts, TextPrompt(mark, bare=True)) for mark in marks)
    assert ids == [*first, *before, *last, *after, *middle]
    assert encoded(prompts, TextPrompt("", suffix="the mat")) == (start, *first, *last, *after, *middle)


def test_model_without_marks_refuses_a_suffix(tmp_path):
    prompts = Prompts.load(write_tokenizer(tmp_path, marks=("<fim_prefix>",)))
    with pytest.raises(BadRequest, match="leave it out") as refused:
        encoded(prompts, TextPrompt("a", suffix="z"))
    assert refused.value.param == "suffix"
