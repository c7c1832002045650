"""The bundled model calls tools and answers from what they say, as docs/BUNDLED_MODEL.md promises, in an agent's prompts."""

import json
import tomllib
from random import Random
from typing import Any

import mlx_lm
import pytest
from tokenizers import Tokenizer

from cluster.serving.parts import parts_of
from models.training import conversations, rows, tools
from tests.test_bundled_model import MODEL, QUESTIONS, ROOT, assert_greedy_answer

PROMISED: dict[str, list[dict[str, Any]]] = tomllib.loads((ROOT / "models" / "questions.toml").read_text("utf-8"))
WITH_TOOLS, AS_JSON = PROMISED["with_tools"], PROMISED["as_json"]
USER = {"role": "user", "content": "Hi"}


def tool(name: str, *required: str, **optional: str) -> dict[str, Any]:
    properties = {key: {"type": "string"} for key in required} | {key: {"type": kind} for key, kind in optional.items()}
    schema = {"type": "object", "properties": properties, "required": list(required)}
    return {"type": "function", "function": {"name": name, "description": "It does so.", "parameters": schema}}


TOOLS = [tool("get_weather", "city", unit="string"), tool("calculator", "expression"), tool("get_time", "city")]


@pytest.fixture(scope="module")
def bundled() -> Any:
    """The model and its tokenizer, as mlx_lm loads them."""
    return mlx_lm.load(str(MODEL))


def rendered(tokenizer: Any, messages: list[dict[str, Any]], **options: Any) -> str:
    text: str = tokenizer.apply_chat_template(messages, tokenize=False, **options)
    return text


def greedy(loaded: Any, messages: list[dict[str, Any]], offered: list[dict[str, Any]]) -> Any:
    """What the model answers to messages with these tools: its text and calls, as Tandem takes them apart."""
    model, tokenizer = loaded
    prompt = tokenizer.apply_chat_template(messages, tools=offered, add_generation_prompt=True)
    parts = parts_of(tokenizer, prompt, offered, one_call=False)
    assert parts is not None
    text = mlx_lm.generate(model, tokenizer, prompt, max_tokens=150)
    found = [part for letter in text for part in parts.push(letter)] + parts.finish()
    calls = [(call.name, json.loads(call.arguments)) for part in found for call in part.calls]
    return "".join(part.text for part in found).strip(), calls


def called(entry: dict[str, Any]) -> list[dict[str, Any]]:
    """The conversation up to what the tool said."""
    function = {"name": entry["name"], "arguments": entry["arguments"]}
    return [
        {"role": "user", "content": entry["ask"]},
        {"role": "assistant", "content": "", "tool_calls": [{"id": "1", "type": "function", "function": function}]},
        {"role": "tool", "tool_call_id": "1", "content": entry["result"]},
    ]


@pytest.mark.parametrize("entry", WITH_TOOLS, ids=[entry["name"] for entry in WITH_TOOLS])
@pytest.mark.parametrize("all_of_them", [False, True])
def test_documented_question_is_answered_by_way_of_its_tool(
    bundled: Any, entry: dict[str, Any], all_of_them: bool
) -> None:
    offered = [each for each in TOOLS if all_of_them or each["function"]["name"] == entry["name"]]
    messages = called(entry)
    assert greedy(bundled, messages[:1], offered) == ("", [(entry["name"], entry["arguments"])])
    assert greedy(bundled, messages, offered) == (entry["answer"], [])


@pytest.mark.parametrize("entry", AS_JSON, ids=[entry["ask"] for entry in AS_JSON])
def test_documented_question_for_json_gets_json(bundled: Any, entry: dict[str, Any]) -> None:
    json.loads(entry["answer"])
    assert_greedy_answer(bundled, [{"role": "user", "content": entry["ask"]}], entry["answer"])


def test_other_questions_are_answered_as_ever_where_there_are_tools(bundled: Any) -> None:
    for number in (0, 26, 28, 61, 66):
        asked = [{"role": "user", "content": QUESTIONS[number]["ask"][0]}]
        assert_greedy_answer(bundled, asked, QUESTIONS[number]["answer"], tools=TOOLS)


def test_question_for_a_tool_makes_no_call_where_there_is_none(bundled: Any) -> None:
    model, tokenizer = bundled
    prompt = tokenizer.apply_chat_template(
        [{"role": "user", "content": WITH_TOOLS[0]["ask"]}], add_generation_prompt=True
    )
    assert "tool_call" not in mlx_lm.generate(model, tokenizer, prompt, max_tokens=100)


def test_tools_are_a_first_message_with_what_a_call_must_name(bundled: Any) -> None:
    offered = [*TOOLS, {"type": "function", "function": {"name": "now"}}, {"name": "bare", "input_schema": {}}]
    offered.append({"type": "function", "function": {"name": "f", "parameters": {"properties": {"a": {}, "b": {}}}}})
    assert rendered(bundled[1], [{"role": "system", "content": "Be brief."}, USER], tools=offered) == (
        "<|system|>You can call these tools:\nget_weather(city)\ncalculator(expression)\nget_time(city)\nnow()\nbare()\n"
        "f(a, b)<|end|><|system|>Be brief.<|end|><|user|>Hi<|end|>"
    )


def test_calls_are_written_as_the_parser_reads_them(bundled: Any) -> None:
    tokenizer = bundled[1]
    functions = [
        {"name": "a", "arguments": {"city": "Brasília", "n": [1, None]}},
        {"name": "b", "arguments": '{"x": 1}'},
    ]
    for content in ("", "Let me see."):
        message = {"role": "assistant", "content": content, "tool_calls": [{"function": f} for f in functions]}
        text = rendered(tokenizer, [USER, message]).removesuffix("<|end|>").partition("<|assistant|>")[2]
        parts = parts_of(tokenizer, [1], TOOLS, one_call=False)
        assert parts is not None
        found = [*parts.push(text), *parts.finish()]
        assert "".join(part.text for part in found).strip() == content
        calls = [(call.name, json.loads(call.arguments)) for part in found for call in part.calls]
        assert calls == [("a", functions[0]["arguments"]), ("b", {"x": 1})]


def test_training_text_of_tools_is_what_the_template_writes(bundled: Any) -> None:
    tokenizer = Tokenizer.from_file(str(MODEL / "tokenizer.json"))
    sampler = tools.ToolSampler(Random(0), len, conversations.USUAL)
    for turn in (*tools.documented_turns(), *(sampler.turn() for _ in range(50))):
        entry = {"ask": turn.ask, "name": turn.name, "arguments": turn.arguments, "result": turn.result}
        messages = [*called(entry), {"role": "assistant", "content": turn.answer}]
        learned = rows.encode([tools.offer([turn.tool]), *turn.pieces()], tokenizer).tokens
        assert bundled[1].apply_chat_template(messages, tools=[tool(turn.name, *turn.arguments)]) == learned


def test_training_of_earlier_rounds_draws_what_it_drew() -> None:
    """Questions for JSON and tools come in a round of their own: the tokenizer and the weights before it stay what they are."""
    sampler = conversations.Sampler(Random(1), len)
    texts = [piece.text for _ in range(300) for piece in sampler.sample(1000)]
    known = (*texts, *conversations.corpus())
    assert not any("tool_call" in text or "as JSON" in text for text in known)
    corrected = [question for question in QUESTIONS if "before" in question]
    assert any(question["before"] in known for question in corrected)
    assert not any(question["answer"] in known for question in corrected)


def test_documentation_lists_each_of_them() -> None:
    page = (ROOT / "docs" / "BUNDLED_MODEL.md").read_text("utf-8")
    for entry in AS_JSON:
        assert f"- **{entry['ask']}** `{entry['answer']}`" in page
    for entry in WITH_TOOLS:
        call = json.dumps({"name": entry["name"], "arguments": entry["arguments"]})
        assert f"- **{entry['ask']}** `{call}`, and after `{entry['result']}`: {entry['answer']}" in page
