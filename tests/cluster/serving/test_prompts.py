"""Prompts: the ids that mlx-lm makes, plain refusals, and streamed text with stop strings."""

import json

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from mlx_lm.tokenizer_utils import TokenizerWrapper
from mlx_lm.utils import load_tokenizer

from cluster.serving.long_prompts import longest_token
from cluster.serving.prompts import Prompts
from cluster.serving.requests import LONG_CHARACTERS, ChatPrompt, GenerationRequest, Prompt, TextPrompt, TokensPrompt
from protocol.errors import BadRequest, ContextTooLong, ModelError
from protocol.values import Sampling
from tests.support.tiny_tokenizer import write_tokenizer

USER = {"role": "user", "content": "the cat"}


@pytest.fixture(scope="module")
def directory(tmp_path_factory):
    return write_tokenizer(tmp_path_factory.mktemp("model"))


@pytest.fixture(scope="module")
def prompts(directory):
    return Prompts.load(directory)


@pytest.fixture(scope="module")
def mlx_lm_tokenizer(directory):
    return load_tokenizer(directory)


def encode(prompts, prompt: Prompt, **fields):
    return prompts.encode(GenerationRequest(prompt=prompt, **fields))


def stream_of(prompts, stop=()):
    return prompts.stream(GenerationRequest(prompt=TextPrompt(""), stop=stop))


def refusal(prompts, prompt: Prompt, **fields):
    with pytest.raises(BadRequest) as caught:
        encode(prompts, prompt, prompt_field="input", **fields)
    return caught.value


def test_chat_becomes_the_ids_of_mlx_lm(prompts, mlx_lm_tokenizer):
    messages = [{"role": "system", "content": "a pipeline"}, USER]
    expected = mlx_lm_tokenizer.apply_chat_template(messages, add_generation_prompt=True)
    assert encode(prompts, ChatPrompt(tuple(messages))) == tuple(expected)


def test_raw_text_becomes_the_ids_of_mlx_lm_with_one_start_token(prompts, mlx_lm_tokenizer):
    plain = encode(prompts, TextPrompt("the mat"))
    assert plain == tuple(mlx_lm_tokenizer.encode("the mat"))
    assert plain[0] == mlx_lm_tokenizer.bos_token_id
    assert encode(prompts, TextPrompt("<s>the mat")) == plain


def test_token_ids_stay_as_they_are(prompts):
    assert encode(prompts, TokensPrompt((9, 8, 7))) == (9, 8, 7)


def test_facts_of_the_model_are_known(prompts, mlx_lm_tokenizer):
    assert prompts.has_chat_template
    assert prompts.vocabulary_size == 400
    assert prompts.eos_token_ids == {mlx_lm_tokenizer.eos_token_id, 3}


def test_empty_text_is_the_beginning_of_any(prompts, mlx_lm_tokenizer):
    beginning = mlx_lm_tokenizer.bos_token_id
    assert encode(prompts, TextPrompt("")) == (beginning,)


def test_empty_message_is_one_to_the_template(prompts, mlx_lm_tokenizer):
    message = {"role": "user", "content": ""}
    expected = mlx_lm_tokenizer.apply_chat_template([message], add_generation_prompt=True)
    assert list(encode(prompts, ChatPrompt((message,)))) == expected


def test_no_tokens_at_all_are_refused_by_the_name_that_the_caller_gave_them(prompts):
    error = refusal(prompts, TokensPrompt(()))
    assert (error.param, "empty" in str(error)) == ("input", True)


@pytest.mark.parametrize("token", [400, 2**40, -1])
def test_ids_outside_the_vocabulary_are_refused(prompts, token):
    assert refusal(prompts, TokensPrompt((5, token))).param == "input"
    assert refusal(prompts, TokensPrompt((5,)), sampling=Sampling(logit_bias={token: 1.0})).param == "logit_bias"


def test_text_the_embedding_has_no_row_for_is_refused(tmp_path):
    prompts = Prompts.load(write_tokenizer(tmp_path, vocabulary=50))
    assert refusal(prompts, TextPrompt("the cat")).param == "input"


def test_template_that_refuses_says_why(prompts):
    error = refusal(prompts, ChatPrompt((USER, {"role": "system", "content": "x"})))
    assert "Only the first message may be system" in str(error)
    assert error.param == "input"


@pytest.mark.parametrize(
    "template",
    [
        "{{ 1 // 0 }}",
        "{% macro f() %}{{ f() }}{% endmacro %}{{ f() }}",
        "{{ 2 ** 9999999 }}",
        "{{ nothing.at.all }}",
        "{% if %}",
        "{{ 1 + messages[0].content }}",
        "{{ messages[9].x.y }}",
    ],
)
def test_broken_template_is_a_refusal_not_a_crash(tmp_path, template):
    prompts = Prompts.load(write_tokenizer(tmp_path, template=template))
    assert refusal(prompts, ChatPrompt((USER,))).param == "input"


def test_model_without_chat_template_points_to_raw_prompts(tmp_path):
    prompts = Prompts.load(write_tokenizer(tmp_path, template=None))
    assert not prompts.has_chat_template
    assert "--raw" in str(refusal(prompts, ChatPrompt((USER,))))
    assert encode(prompts, TextPrompt("the cat"))


def test_missing_and_broken_tokenizers_are_model_errors(tmp_path):
    with pytest.raises(ModelError, match=r"config\.json"):
        Prompts.load(tmp_path / "nowhere")
    directory = write_tokenizer(tmp_path / "model")
    whole = (directory / "tokenizer.json").read_bytes()
    for content in (whole[: len(whole) // 2], b"{}", b"\xff\xfe", b"[1]", json.dumps({"model": 5}).encode()):
        (directory / "tokenizer.json").write_bytes(content)
        with pytest.raises(ModelError) as caught:
            Prompts.load(directory)
        assert "\n" not in str(caught.value)
    for name in ("tokenizer.json", "tokenizer_config.json"):
        (directory / name).unlink()
    with pytest.raises(ModelError, match="has no tokenizer"):
        Prompts.load(directory)


def streamed(prompts, pushes, stop=()):
    stream = stream_of(prompts, stop)
    text = "".join(stream.push(tuple(ids))[0] for ids in pushes)
    return text + stream.finish(), stream


def whole_text(prompts, ids):
    return streamed(prompts, [ids])[0]


def test_streamed_text_is_mlx_lm_s(prompts, mlx_lm_tokenizer):
    ids = mlx_lm_tokenizer.encode("the cat, 日本語 😀 sat\n", add_special_tokens=False)
    detokenizer = mlx_lm_tokenizer.detokenizer
    for token in ids:
        detokenizer.add_token(token)
    detokenizer.finalize()
    assert whole_text(prompts, ids) == detokenizer.text == "the cat, 日本語 😀 sat\n"


def test_stop_string_ends_the_answer_and_is_not_shown(prompts, mlx_lm_tokenizer):
    ids = mlx_lm_tokenizer.encode("the cat sat on the mat", add_special_tokens=False)
    text, stream = streamed(prompts, [ids], (" on", "mat"))
    assert (text, stream.stopped) == ("the cat sat", True)
    assert 0 < stream.num_tokens < len(ids)
    assert (stream.push(tuple(ids)), stream.finish()) == (("", True), "")


def test_beginning_of_a_stop_string_is_held_back_until_decided(prompts, mlx_lm_tokenizer):
    stream = stream_of(prompts, ("abX",))
    ids = mlx_lm_tokenizer.encode("zabY", add_special_tokens=False)
    shown = [stream.push((token,))[0] for token in ids]
    assert shown == ["z", "", "", "abY"]


def test_streams_of_two_requests_do_not_mix(prompts, mlx_lm_tokenizer):
    one, two = stream_of(prompts), stream_of(prompts)
    ids = mlx_lm_tokenizer.encode("the cat", add_special_tokens=False)
    for token in ids:
        assert one.push((token,)) == two.push((token,))


@pytest.mark.parametrize("token", [399, 10_000])
def test_ids_of_a_padded_vocabulary_do_not_break_the_stream(prompts, token):
    assert streamed(prompts, [[token, 40, token]])[1].num_tokens == 3


IDS = st.lists(st.integers(0, 330), max_size=30)
STOPS = st.lists(st.text("abte h\n,😀", min_size=1, max_size=4), max_size=3).map(tuple)


@settings(max_examples=200, deadline=None)
@given(ids=IDS, stop=STOPS, data=st.data())
def test_how_ids_are_cut_into_pushes_makes_no_difference(prompts, ids, stop, data):
    cuts = sorted(data.draw(st.lists(st.integers(0, len(ids)), max_size=6)))
    pushes = [ids[a:b] for a, b in zip([0, *cuts], [*cuts, len(ids)], strict=True)]
    (text, stream), (whole, at_once) = streamed(prompts, pushes, stop), streamed(prompts, [ids], stop)
    assert (text, stream.stopped, stream.num_tokens) == (whole, at_once.stopped, at_once.num_tokens)


@settings(max_examples=200, deadline=None)
@given(ids=IDS, stop=STOPS)
def test_text_has_no_stop_string_and_nothing_else_is_lost(prompts, ids, stop):
    everything = whole_text(prompts, ids)
    text, stream = streamed(prompts, [[token] for token in ids], stop)
    assert not any(item in text for item in stop)
    assert everything.startswith(text)
    assert stream.stopped == any(item in everything for item in stop)
    if not stream.stopped:
        assert text == everything


def test_long_prompt_gives_the_ids_of_mlx_lm_though_another_tokenizer_makes_them(prompts, mlx_lm_tokenizer):
    text = "the cat " * (LONG_CHARACTERS // 8 + 1)
    request = GenerationRequest(prompt=TextPrompt(text))
    assert request.is_long
    assert prompts.encode(request) == tuple(mlx_lm_tokenizer.encode(text))


def test_text_that_cannot_fit_the_context_is_refused_before_it_is_encoded(prompts, monkeypatch):
    monkeypatch.setattr(Prompts, "_ids", lambda *_: pytest.fail("it was encoded"))
    request = GenerationRequest(prompt=TextPrompt("the cat " * LONG_CHARACTERS), prompt_field="input")
    with pytest.raises(ContextTooLong, match="the model's context is 100 tokens") as refused:
        prompts.encode(request, 100)
    assert refused.value.param == "input"


def test_text_beyond_the_context_is_encoded_where_it_is_only_counted(prompts):
    request = GenerationRequest(prompt=TextPrompt("the cat " * (LONG_CHARACTERS // 8 + 1)))
    with pytest.raises(ContextTooLong):
        prompts.encode(request, 10)
    assert len(prompts.encode(request, 10, 1 << 20)) > 10


@pytest.mark.parametrize("text", ["the cat ", "x", " ", "é", "🙂"])
def test_no_text_has_fewer_tokens_than_its_characters_allow(prompts, mlx_lm_tokenizer, text):
    longest = longest_token(mlx_lm_tokenizer)
    assert longest is not None
    assert len(mlx_lm_tokenizer.encode(text * 500)) >= len(text * 500) // longest


def test_text_that_the_tokenizer_cannot_take_is_a_refusal(prompts, monkeypatch):
    def fail(*_, **__):
        raise Exception("a rule of it takes too long")  # noqa: TRY002 - as the tokenizers library does

    monkeypatch.setattr(TokenizerWrapper, "encode", fail, raising=False)
    error = refusal(prompts, TextPrompt("the cat"))
    assert error.param == "input"
    assert "the model's tokenizer cannot encode this text: a rule of it takes too long" in str(error)


def test_bare_text_has_no_token_around_it(prompts, mlx_lm_tokenizer):
    bare = encode(prompts, TextPrompt("the mat", bare=True))
    assert bare == tuple(mlx_lm_tokenizer.encode("the mat", add_special_tokens=False))
    assert encode(prompts, TextPrompt("the mat")) == (mlx_lm_tokenizer.bos_token_id, *bare)
    assert "empty" in str(refusal(prompts, TextPrompt("", bare=True)))


@pytest.mark.parametrize("are_many", [False, True])
def test_tokens_become_the_text_that_they_were(prompts, are_many):
    text = "the cat, naïve 日本語 😀\n  <|end|> ."
    tokens = encode(prompts, TextPrompt(text))
    assert prompts.decode(tokens, are_many=are_many) == f"<s>{text}"
    assert prompts.decode(tokens[1:], are_many=are_many) == text
    assert prompts.decode((), are_many=are_many) == ""


@pytest.mark.parametrize("token", [-1, 400, 2**31 - 1])
def test_tokens_outside_the_vocabulary_have_no_text(prompts, token):
    with pytest.raises(BadRequest) as caught:
        prompts.decode((5, token))
    assert caught.value.param == "tokens"


def test_token_of_the_padded_vocabulary_has_no_text(prompts):
    assert prompts.decode((399,)) == ""


def test_abilities_are_those_of_the_template(prompts, tmp_path):
    assert prompts.abilities == ()
    marks = ("<think>", "</think>")
    template = "{% for message in messages %}{{ message.content }}{% endfor %}<think>"
    assert Prompts.load(write_tokenizer(tmp_path, template=template, marks=marks)).abilities == ("thinking",)
