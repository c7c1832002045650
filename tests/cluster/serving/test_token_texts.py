"""Single tokens as bytes: one behind the other they are the text of all."""

import json

import pytest
from hypothesis import assume, given
from hypothesis import strategies as st
from tokenizers import AddedToken, Tokenizer, decoders, models, normalizers
from transformers import PreTrainedTokenizerFast

from cluster.serving.prompts import Prompts
from cluster.serving.requests import GenerationRequest, TextPrompt
from cluster.serving.token_texts import TokenTexts
from tests.support.tiny_tokenizer import SPECIAL, write_tokenizer

MARKS = ("<think>", "<\uff5cmark\uff5c>")
VOCABULARY = 400


@pytest.fixture(scope="module")
def prompts(tmp_path_factory):
    return Prompts.load(write_tokenizer(tmp_path_factory.mktemp("model"), marks=MARKS, vocabulary=VOCABULARY))


@pytest.fixture(scope="module")
def sentencepiece(tmp_path_factory):
    """Few whole words, every byte, and a word that begins with a space."""
    pieces = ["<unk>", "<s>", "</s>", *(f"<0x{byte:02X}>" for byte in range(256)), "\u2581", "a", "b", "\u2581a", "é"]
    tokenizer = Tokenizer(
        models.BPE(
            vocab={piece: number for number, piece in enumerate(pieces)},
            merges=[("\u2581", "a")],
            unk_token="<unk>",
            byte_fallback=True,
        )
    )
    tokenizer.normalizer = normalizers.Replace(" ", "\u2581")
    tokenizer.decoder = decoders.Sequence(
        [decoders.Replace("\u2581", " "), decoders.ByteFallback(), decoders.Fuse(), decoders.Strip(" ", 1, 0)]
    )
    tokenizer.add_special_tokens(["<s>", "</s>"])
    tokenizer.add_tokens([AddedToken("\u2581\u2581", special=False, normalized=False)])
    folder = tmp_path_factory.mktemp("model")
    tokenizer.save(str(folder / "tokenizer.json"))
    (folder / "tokenizer_config.json").write_text(json.dumps({"tokenizer_class": "PreTrainedTokenizerFast"}))
    (folder / "config.json").write_text(json.dumps({"model_type": "llama", "vocab_size": len(pieces) + 1}))
    return Prompts.load(folder)


def ids_of(prompts, words):
    return prompts.encode(GenerationRequest(prompt=TextPrompt(words, bare=True)))


def joined(prompts, ids):
    return b"".join(map(prompts.text_of, ids))


@given(words=st.text(min_size=1, max_size=30))
def test_bytes_of_byte_level_tokens_are_those_of_the_text(prompts, words):
    assert joined(prompts, ids_of(prompts, words)) == words.encode()


@given(words=st.text(st.sampled_from("ab é日😀\n"), min_size=1, max_size=20))
def test_bytes_of_sentencepiece_tokens_are_those_of_the_text(sentencepiece, words):
    assert joined(sentencepiece, ids_of(sentencepiece, words)) == words.encode()


@given(ids=st.lists(st.integers(5, VOCABULARY - 1), min_size=1, max_size=12))
def test_bytes_of_any_answer_are_what_its_stream_shows_but_for_a_space_at_its_beginning(prompts, ids):
    stream = prompts.stream(GenerationRequest(prompt=TextPrompt("")))
    shown = stream.push(tuple(ids))[0] + stream.finish()
    text = joined(prompts, ids).decode(errors="replace")
    assume("\0" not in text)  # for which mlx-lm shows the letter that stands for it
    assert shown.rstrip("\ufffd") in (text.rstrip("\ufffd"), text.removeprefix(" ").rstrip("\ufffd"))


def test_part_of_a_character_is_its_bytes(prompts, sentencepiece):
    for each in (prompts, sentencepiece):
        ids = ids_of(each, "😀")
        assert len(ids) > 1
        assert len(each.text_of(ids[0])) < len("😀".encode())
        assert joined(each, ids).decode() == "😀"


def test_marks_are_written_as_they_are_called(prompts, sentencepiece):
    tokenizer = prompts._tokenizer
    for mark in (*SPECIAL, *MARKS):
        assert prompts.text_of(tokenizer.convert_tokens_to_ids(mark)) == mark.encode()
    assert sentencepiece.text_of(1) == b"<s>"
    assert sentencepiece.text_of(sentencepiece.vocabulary_size - 1) == b"  "


def test_id_that_stands_for_nothing_has_no_text(prompts, sentencepiece):
    assert prompts.text_of(-1) == sentencepiece.text_of(-1) == sentencepiece.text_of(10**9) == b""


def test_other_tokenizers_are_asked_for_the_text_of_each():
    tokenizer = Tokenizer(models.WordPiece(vocab={"[UNK]": 0, "play": 1, "##ing": 2}, unk_token="[UNK]"))
    tokenizer.decoder = decoders.WordPiece()
    text_of = TokenTexts(PreTrainedTokenizerFast(tokenizer_object=tokenizer))
    assert (text_of(1), text_of(2)) == (b"play", b"##ing")
