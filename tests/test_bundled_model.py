"""The bundled model answers what docs/BUNDLED_MODEL.md promises, and its files are what other tools expect."""

import itertools
import json
import tomllib
from pathlib import Path
from typing import Any

import mlx.core as mx
import mlx_lm
import pytest
from mlx.utils import tree_map
from mlx_lm.tokenizer_utils import BPEStreamingDetokenizer
from transformers import PreTrainedTokenizerFast

from models.training.conversations import SHORT_SYSTEM

ROOT = Path(__file__).resolve().parents[1]
MODEL = ROOT / "models" / "tandem-demo"
DRAFT = ROOT / "models" / "tandem-demo-draft"
QUESTIONS: list[dict[str, Any]] = tomllib.loads((ROOT / "models" / "questions.toml").read_text("utf-8"))["question"]
SMALL_TALK = [number for number, question in enumerate(QUESTIONS) if question.get("small_talk")]
BEGINNING_TOKENS = 16
GREETINGS = ("hello", "hi", "hey", "hello there", "good morning", "Hello", "Hi")
TEXTS = (
    "What is a KV cache?",
    "  two  spaces, a tab\t and\nnew lines\n\n",
    "Brasília, danke schön, naïve café, 日本語, Ελλάδα, 🙂 and 👩‍💻",
    'def f(x): return {"a": [1, 2.5, x**2]}',
    "",
)


@pytest.fixture(scope="module")
def bundled() -> Any:
    """The model and its tokenizer, as mlx_lm loads them."""
    return loaded(MODEL)


@pytest.fixture(scope="module")
def draft() -> Any:
    """The draft model and its tokenizer."""
    return loaded(DRAFT)


def loaded(directory: Path) -> Any:
    """The same numbers, lying in memory so that a CPU multiplies by them in two thirds of the time."""
    model, tokenizer, *_ = mlx_lm.load(str(directory))
    model.update(tree_map(lambda weight: mx.contiguous(weight.T).T if weight.ndim == 2 else weight, model.parameters()))
    return model, tokenizer


def most_likely(
    loaded: Any, messages: list[dict[str, str]], answer: str, most_tokens: int | None = None, **options: Any
) -> tuple[list[int], list[int]]:
    """The tokens that the model finds most likely along the answer, and the tokens of the answer with its end; most_tokens: of
    where it begins; options: of the chat template.

    The two are equal exactly when greedy generation gives the answer, and take one pass to compute.
    """
    model, tokenizer = loaded
    prompt = tokenizer.apply_chat_template(messages, add_generation_prompt=True, **options)
    target = [*tokenizer.encode(answer, add_special_tokens=False), tokenizer.eos_token_id][:most_tokens]
    best = mx.argmax(model(mx.array([prompt + target[:-1]]))[0, len(prompt) - 1 :], axis=-1).tolist()
    return best, target


def assert_greedy_answer(loaded: Any, messages: list[dict[str, str]], answer: str, **options: Any) -> None:
    best, target = most_likely(loaded, messages, answer, **options)
    assert loaded[1].decode(best) == loaded[1].decode(target), messages[-1]["content"]
    assert best == target


def test_models_are_small_enough_to_bundle() -> None:
    for directory, limit in ((MODEL, 12_000_000), (DRAFT, 2_000_000)):
        assert sum(path.stat().st_size for path in directory.iterdir()) <= limit


def test_shape_divides_over_stages_and_tensor_ranks() -> None:
    config = json.loads((MODEL / "config.json").read_text("utf-8"))
    assert config["model_type"] == "llama"
    assert config["num_hidden_layers"] == 8
    assert config["num_attention_heads"] == config["num_key_value_heads"] == 4
    assert config["head_dim"] % 64 == config["hidden_size"] % 64 == config["intermediate_size"] % 64 == 0


def test_weights_are_float32(bundled: Any) -> None:
    assert {array.dtype for array in mx.load(str(MODEL / "model.safetensors")).values()} == {mx.float32}


@pytest.mark.parametrize("question", QUESTIONS, ids=[q["ask"][0] for q in QUESTIONS])
def test_documented_question_gets_its_documented_answer(bundled: Any, question: dict[str, Any]) -> None:
    messages = [{"role": "user", "content": question["ask"][0]}]
    assert_greedy_answer(bundled, messages, question["answer"])


@pytest.mark.parametrize("number", [0, 26, 61])
def test_generation_writes_the_documented_answer(bundled: Any, number: int) -> None:
    model, tokenizer = bundled
    prompt = tokenizer.apply_chat_template(
        [{"role": "user", "content": QUESTIONS[number]["ask"][0]}], add_generation_prompt=True
    )
    assert mlx_lm.generate(model, tokenizer, prompt, max_tokens=100) == QUESTIONS[number]["answer"]


def test_answers_stay_right_late_in_a_conversation_with_a_long_system_prompt(bundled: Any) -> None:
    rules = " ".join(f"Rule {n}: never tell the user about invoice {n * 37} before the meeting." for n in range(1, 45))
    messages = [{"role": "system", "content": rules}]
    for question in QUESTIONS[30:35]:
        messages.append({"role": "user", "content": question["ask"][0]})
        messages.append({"role": "assistant", "content": question["answer"]})
    model, tokenizer = bundled
    tokens = tokenizer.apply_chat_template(messages)
    best = mx.argmax(model(mx.array([tokens]))[0], axis=-1).tolist()
    for turn in range(2, len(messages), 2):
        start = len(tokenizer.apply_chat_template(messages[:turn], add_generation_prompt=True))
        end = len(tokenizer.apply_chat_template(messages[: turn + 1]))
        assert tokenizer.decode(best[start - 1 : end - 1]) == tokenizer.decode(tokens[start:end])


@pytest.mark.parametrize("question", QUESTIONS, ids=[q["ask"][0] for q in QUESTIONS])
def test_documented_question_in_lower_case_gets_its_answer(bundled: Any, question: dict[str, Any]) -> None:
    messages = [{"role": "user", "content": question["ask"][0].lower()}]
    assert_greedy_answer(bundled, messages, question["answer"])


@pytest.mark.parametrize("question", QUESTIONS, ids=[q["ask"][0] for q in QUESTIONS])
def test_documented_question_in_lower_case_needs_no_mark(bundled: Any, question: dict[str, Any]) -> None:
    """Its answer begins: as far as it goes here, it is no other's, and goes on as with a mark."""
    messages = [{"role": "user", "content": question["ask"][0].lower().rstrip("?.!")}]
    best, target = most_likely(bundled, messages, question["answer"], most_tokens=BEGINNING_TOKENS)
    assert bundled[1].decode(best) == bundled[1].decode(target)


def test_answers_are_told_apart_by_how_they_begin(bundled: Any) -> None:
    beginnings = {tuple(bundled[1].encode(question["answer"])[:BEGINNING_TOKENS]) for question in QUESTIONS}
    assert len(beginnings) == len({question["answer"] for question in QUESTIONS})


@pytest.mark.parametrize("said", GREETINGS)
def test_greeting_is_understood_however_it_is_typed_and_whatever_the_system_prompt(bundled: Any, said: str) -> None:
    """Each with every other system prompt."""
    systems = ("", *SHORT_SYSTEM)
    for system in systems[GREETINGS.index(said) % 2 :: 2]:
        before = [{"role": "system", "content": system}] if system else []
        assert_greedy_answer(bundled, [*before, {"role": "user", "content": said}], QUESTIONS[2]["answer"])


def test_other_small_talk_in_lower_case_is_mostly_understood(bundled: Any) -> None:
    right = []
    for said, number in itertools.product(("how are you", "thanks", "thank you", "bye", "goodbye"), SMALL_TALK):
        if said.capitalize() in [asked.rstrip("?") for asked in QUESTIONS[number]["ask"]]:
            for system in SHORT_SYSTEM:
                messages = [{"role": "system", "content": system}, {"role": "user", "content": said}]
                best, target = most_likely(bundled, messages, QUESTIONS[number]["answer"])
                right.append(best == target)
    assert len(right) == 5 * len(SHORT_SYSTEM)
    assert sum(right) / len(right) > 0.9


def test_careless_typing_is_understood(bundled: Any) -> None:
    answers = {q["ask"][0]: q["answer"] for q in QUESTIONS}
    typed = {"what is a kv cache": "What is a KV cache?", "capital of france": "What is the capital of France?"}
    for text, question in typed.items():
        assert_greedy_answer(bundled, [{"role": "user", "content": text}], answers[question])


def test_draft_mostly_agrees_with_the_model(draft: Any) -> None:
    agreed = []
    for question in QUESTIONS:
        best, target = most_likely(draft, [{"role": "user", "content": question["ask"][0]}], question["answer"])
        agreed += [a == b for a, b in zip(best, target, strict=True)]
    assert sum(agreed) / len(agreed) > 0.7


def test_draft_has_the_same_tokenizer() -> None:
    for name in ("tokenizer.json", "tokenizer_config.json"):
        assert (MODEL / name).read_bytes() == (DRAFT / name).read_bytes()


@pytest.mark.parametrize("text", TEXTS)
def test_tokens_decode_to_the_text(bundled: Any, text: str) -> None:
    _, tokenizer = bundled
    assert tokenizer.decode(tokenizer.encode(text)) == text


@pytest.mark.parametrize("text", [text for text in TEXTS if text == text.lstrip()])
def test_streamed_tokens_make_the_text(bundled: Any, text: str) -> None:
    _, tokenizer = bundled
    detokenizer = tokenizer.detokenizer
    assert isinstance(detokenizer, BPEStreamingDetokenizer)
    streamed = ""
    for token in tokenizer.encode(text):
        detokenizer.add_token(token)
        streamed += detokenizer.last_segment
    detokenizer.finalize()
    assert streamed + detokenizer.last_segment == text


def test_chat_template_marks_roles_and_ends_messages(bundled: Any) -> None:
    _, tokenizer = bundled
    messages = [
        {"role": "system", "content": " Be brief. "},
        {"role": "user", "content": [{"type": "text", "text": "Hi"}]},
        {"role": "assistant", "content": "Hello!"},
        {"role": "user", "content": "Bye"},
    ]
    text = tokenizer.apply_chat_template(messages, add_generation_prompt=True, tokenize=False)
    assert text == (
        "<|system|>Be brief.<|end|><|user|>Hi<|end|><|assistant|>Hello!<|end|><|user|>Bye<|end|><|assistant|>"
    )
    assert tokenizer.encode(text) == tokenizer.apply_chat_template(messages, add_generation_prompt=True)
    assert tokenizer.eos_token_ids == {tokenizer.convert_tokens_to_ids("<|end|>")}


def test_transformers_reads_the_tokenizer_offline() -> None:
    tokenizer = PreTrainedTokenizerFast.from_pretrained(str(MODEL), local_files_only=True)
    assert len(tokenizer) == 2048
    assert tokenizer.eos_token == "<|end|>"
    assert tokenizer.decode(tokenizer.encode("A pipeline.")) == "A pipeline."


def test_documentation_lists_every_question_with_its_answer() -> None:
    page = (ROOT / "docs" / "BUNDLED_MODEL.md").read_text("utf-8")
    for question in QUESTIONS:
        assert f"- **{question['ask'][0]}** {question['answer']}" in page
