"""What is thought, said and called in an answer, by mlx-lm's rules for a model whose template has marks for each."""

import json

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from cluster.serving.answer import Answer
from cluster.serving.prompts import Prompts
from cluster.serving.requests import ChatPrompt, Delta, GenerationRequest, TextPrompt
from protocol.messages import Update
from tests.support.tiny_tokenizer import write_tokenizer

MARKS = ("<think>", "</think>", "<tool_call>", "</tool_call>")
TEMPLATE = (
    "{% if tools %}{% for tool in tools %}{{ tool | tojson }}{% endfor %}{% endif %}"
    "{% for message in messages %}{{ message.role }}: {{ message.content }}"
    "{% for tool_call in message.tool_calls or [] %}<tool_call>{{ tool_call.function.name }}{# tool_call.name #}"
    "{{ tool_call.function.arguments | tojson }}</tool_call>{% endfor %}\n{% endfor %}"
    "assistant: {% if enable_thinking %}<think>{% endif %}"
)
TOOLS = ({"type": "function", "function": {"name": "weather", "parameters": {"type": "object", "properties": {}}}},)
USER = {"role": "user", "content": "the cat"}
WEATHER = '{"name": "weather", "arguments": {"city": "Köln"}}'
CLOCK = '{"name": "clock", "arguments": {}}'


@pytest.fixture(scope="module")
def prompts(tmp_path_factory):
    return Prompts.load(write_tokenizer(tmp_path_factory.mktemp("model"), template=TEMPLATE, marks=MARKS))


def asked(*, tools=TOOLS, thinks=False, **fields):
    return GenerationRequest(prompt=ChatPrompt((USER,), tools, options={"enable_thinking": thinks}, **fields))


def taken_apart(prompts, text, request, sizes=(1,), reason="stop"):
    """An answer of that text whose tokens come in groups of these sizes; all of it as one Delta, and how it finished."""
    tokens = prompts.encode(GenerationRequest(prompt=TextPrompt(text)))[1:]
    answer = Answer(prompts.stream(request, prompts.encode(request)), prompt_tokens=1, arrival=0.0)
    events, at, groups = [], 0, list(sizes)
    while at < len(tokens):
        size = groups[at % len(groups)]
        events += answer.take([Update(1, tuple(tokens[at : at + size]))], 1.0)
        at += size
    *deltas, finished = [*events, *answer.take([Update(1, (3,) if reason == "stop" else (), reason)], 2.0)]
    assert all(isinstance(delta, Delta) for delta in deltas)
    assert tuple(token for delta in deltas for token in delta.token_ids) == tuple(tokens)
    said, thought = ("".join(getattr(delta, what) for delta in deltas) for what in ("text", "reasoning"))
    calls = [(call.name, json.loads(call.arguments)) for delta in deltas for call in delta.calls]
    return said, thought, calls, finished.finish_reason


def test_thoughts_and_calls_are_told_apart_from_what_is_said(prompts):
    text = f"<think>hm, the cat</think>Let me see.<tool_call>{WEATHER}</tool_call><tool_call>{CLOCK}</tool_call>"
    assert taken_apart(prompts, text, asked()) == (
        "Let me see.",
        "hm, the cat",
        [("weather", {"city": "Köln"}), ("clock", {})],
        "tool_calls",
    )


@settings(max_examples=40, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(sizes=st.lists(st.integers(1, 7), min_size=1, max_size=5))
def test_how_the_tokens_come_makes_no_difference(prompts, sizes):
    text = f"<think>a < b</think>a <tool {{<tool_call>\n{WEATHER}\n</tool_call>then"
    assert taken_apart(prompts, text, asked(), sizes) == taken_apart(prompts, text, asked())


def test_prompt_that_ends_with_the_beginning_of_a_thought_is_answered_by_one(prompts):
    assert taken_apart(prompts, "hm</think>yes", asked(thinks=True)) == ("yes", "hm", [], "stop")
    assert taken_apart(prompts, "hm, yes", asked(thinks=False)) == ("hm, yes", "", [], "stop")


def test_without_tools_marks_of_calls_are_text(prompts):
    text = f"so: <tool_call>{WEATHER}</tool_call>"
    assert taken_apart(prompts, text, asked(tools=())) == (text, "", [], "stop")


@pytest.mark.parametrize("broken", ["{", "[1]", "null", '{"name": "x"}', "", "(" * 3000])
def test_what_is_no_call_stays_the_text_that_it_is(prompts, broken):
    text = f"so: <tool_call>{broken}</tool_call>."
    assert taken_apart(prompts, text, asked()) == (text, "", [], "stop")


def test_half_a_character_in_a_call_can_be_sent(prompts):
    text = '<tool_call>{"name": "weather", "arguments": {"city": "\\ud800"}}</tool_call>'
    assert taken_apart(prompts, text, asked())[2] == [("weather", {"city": "?"})]


def test_call_that_is_cut_is_text_unless_it_is_whole(prompts):
    assert taken_apart(prompts, '<tool_call>{"na', asked(), reason="length") == ('<tool_call>{"na', "", [], "length")
    assert taken_apart(prompts, f"<tool_call>{CLOCK}", asked(), reason="length") == ("", "", [("clock", {})], "length")
    assert taken_apart(prompts, "a <tool", asked())[0] == "a <tool"


def test_one_call_is_all_where_that_is_wished(prompts):
    text = f"<tool_call>{WEATHER}</tool_call><tool_call>{CLOCK}</tool_call>"
    assert [name for name, _ in taken_apart(prompts, text, asked(one_call=True))[2]] == ["weather"]


def test_raw_prompts_are_answered_with_raw_text(prompts):
    request = GenerationRequest(prompt=TextPrompt("the cat"))
    text = f"<think>x</think><tool_call>{CLOCK}</tool_call>"
    assert taken_apart(prompts, text, request) == (text, "", [], "stop")


def test_template_is_given_tools_and_earlier_calls(prompts):
    called = {"type": "function", "function": {"name": "weather", "arguments": {"city": "Bonn"}}}
    messages = (USER, {"role": "assistant", "content": "", "tool_calls": [called]}, {"role": "tool", "content": "rain"})
    request = GenerationRequest(prompt=ChatPrompt(messages, TOOLS))
    text = prompts.stream(GenerationRequest(prompt=TextPrompt("")))
    shown = text.push(prompts.encode(request))[0] + text.finish()
    assert '"name": "weather"' in shown
    assert '<tool_call>weather{"city": "Bonn"}</tool_call>' in shown
    assert "tool: rain" in shown


def test_what_a_template_does_not_know_is_said(prompts, tmp_path):
    plain = Prompts.load(write_tokenizer(tmp_path))
    prompt = ChatPrompt((USER,), TOOLS, options={"reasoning_effort": "low", "enable_thinking": True})
    assert len(plain.unused(prompt)) == 3
    assert prompts.unused(prompt) == (
        "reasoning_effort has no effect, since this model's chat template does not know it",
    )
    assert plain.unused(ChatPrompt((USER,), options={"enable_thinking": False})) == ()
