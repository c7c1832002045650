"""What an answer has to be, as each API's clients say it, and calls that are forced: one structure, or a refusal by name."""

import json

import pytest

from cluster.api.fields import Notes
from cluster.api.surfaces.chat import Chat
from cluster.api.surfaces.completions import Completions
from cluster.api.surfaces.messages import Messages
from cluster.api.surfaces.ollama import OllamaChat, OllamaGenerate
from cluster.api.surfaces.responses import Responses
from cluster.serving.requests import ForcedCall, Structure
from protocol.errors import BadRequest

USER = [{"role": "user", "content": "hi"}]
SCHEMA = {"type": "object", "properties": {"a": {"type": "integer"}}}
CITY = {"type": "object", "properties": {"city": {"type": "string"}}, "required": ["city"]}
TOOLS = [
    {"type": "function", "function": {"name": "weather", "parameters": CITY}},
    {"type": "function", "function": {"name": "clock"}},
]
FLAT = [{"type": "function", "name": "weather", "parameters": CITY}, {"type": "function", "name": "clock"}]
BLOCKS = [{"name": "weather", "input_schema": CITY}, {"name": "clock", "input_schema": {"type": "object"}}]
ANY = {"type": "object"}


def generation(surface, body):
    asked = {"messages": USER, "prompt": "hi", "input": "hi", "max_tokens": 50}
    kept = {
        Chat: ("messages", "max_tokens"),
        Completions: ("prompt", "max_tokens"),
        Messages: ("messages", "max_tokens"),
        Responses: ("input",),
        OllamaChat: ("messages",),
        OllamaGenerate: ("prompt",),
    }[type(surface)]
    return surface.parse({name: asked[name] for name in kept} | body, Notes()).generation


def structure(surface, body):
    found = generation(surface, body).structure
    return found and (found.kind, found.source if found.kind in ("regex", "grammar") else json.loads(found.source))


@pytest.mark.parametrize(
    ("surface", "body", "expected", "field"),
    [
        (Chat(), {"response_format": {"type": "json_object"}}, ("json", ANY), "response_format.schema"),
        (
            Chat(),
            {"response_format": {"type": "json_object", "schema": SCHEMA}},
            ("json", SCHEMA),
            "response_format.schema",
        ),
        (
            Chat(),
            {
                "response_format": {
                    "type": "json_schema",
                    "json_schema": {"name": "x", "strict": True, "schema": SCHEMA},
                }
            },
            ("json", SCHEMA),
            "response_format.json_schema.schema",
        ),
        (
            Chat(),
            {"response_format": {"type": "json_schema", "schema": SCHEMA}},
            ("json", SCHEMA),
            "response_format.schema",
        ),
        (Completions(), {"response_format": {"type": "json_object"}}, ("json", ANY), "response_format.schema"),
        (Completions(), {"guided_json": SCHEMA}, ("json", SCHEMA), "guided_json"),
        (Completions(), {"guided_json": json.dumps(SCHEMA)}, ("json", SCHEMA), "guided_json"),
        (Chat(), {"guided_regex": "a+"}, ("regex", "a+"), "guided_regex"),
        (Chat(), {"guided_choice": ["a", "b"]}, ("choice", ["a", "b"]), "guided_choice"),
        (Chat(), {"guided_grammar": 'root ::= "a"'}, ("grammar", 'root ::= "a"'), "guided_grammar"),
        (Chat(), {"structured_outputs": {"json": SCHEMA}}, ("json", SCHEMA), "structured_outputs.json"),
        (Chat(), {"structured_outputs": {"regex": "a", "json": None}}, ("regex", "a"), "structured_outputs.regex"),
        (Chat(), {"structured_outputs": {"choice": ["a"]}}, ("choice", ["a"]), "structured_outputs.choice"),
        (Chat(), {"structured_outputs": {"grammar": "x"}}, ("grammar", "x"), "structured_outputs.grammar"),
        (Chat(), {"structured_outputs": {"json_object": True}}, ("json", ANY), "structured_outputs.json_object"),
        (Completions(), {"grammar": 'root ::= "a"'}, ("grammar", 'root ::= "a"'), "grammar"),
        (Completions(), {"json_schema": SCHEMA}, ("json", SCHEMA), "json_schema"),
        (Responses(), {"text": {"format": {"type": "json_object"}}}, ("json", ANY), "text.format.schema"),
        (
            Responses(),
            {"text": {"format": {"type": "json_schema", "name": "x", "strict": False, "schema": SCHEMA}}},
            ("json", SCHEMA),
            "text.format.schema",
        ),
        (OllamaChat(), {"format": "json"}, ("json", ANY), "format"),
        (OllamaGenerate(), {"format": SCHEMA}, ("json", SCHEMA), "format"),
        (
            Messages(),
            {"output_config": {"format": {"type": "json_schema", "schema": SCHEMA}}},
            ("json", SCHEMA),
            "output_config.format.schema",
        ),
        (
            Messages(),
            {"output_format": {"type": "json_schema", "schema": SCHEMA}},
            ("json", SCHEMA),
            "output_format.schema",
        ),
    ],
)
def test_each_way_to_say_it_is_understood(surface, body, expected, field):
    assert structure(surface, body) == expected
    assert generation(surface, body).structure.field == field


@pytest.mark.parametrize(
    ("surface", "body"),
    [
        (Chat(), {"response_format": {"type": "text"}}),
        (Chat(), {"structured_outputs": {"json_object": False}, "grammar": "", "json_schema": {}}),
        (Responses(), {"text": {"format": {"type": "text"}}}),
        (OllamaChat(), {"format": ""}),
    ],
)
def test_what_asks_for_nothing_leaves_the_answer_free(surface, body):
    assert structure(surface, body) is None


@pytest.mark.parametrize(
    ("body", "field"),
    [
        ({"response_format": "json"}, "response_format"),
        ({"response_format": {"type": "structural_tag"}}, "response_format.type"),
        (
            {"response_format": {"type": "json_schema", "json_schema": {"name": "x"}}},
            "response_format.json_schema.schema",
        ),
        ({"response_format": {"type": "json_schema", "schema": SCHEMA, "strict": 1}}, "response_format.strict"),
        ({"response_format": {"type": "json_schema", "schema": [SCHEMA]}}, "response_format.schema"),
        ({"guided_json": {"enum": ["x" * 200_000]}}, "guided_json"),
        ({"guided_regex": ""}, "guided_regex"),
        ({"guided_choice": []}, "guided_choice"),
        ({"guided_choice": [1]}, "guided_choice"),
        ({"structured_outputs": {"structural_tag": {}}}, "structured_outputs.structural_tag"),
        ({"tools": TOOLS, "tool_choice": "sometimes"}, "tool_choice"),
        ({"tools": TOOLS, "tool_choice": {"type": "function", "function": {}}}, "tool_choice.function.name"),
        ({"tools": TOOLS, "tool_choice": {"type": "custom"}}, "tool_choice.type"),
        ({"tools": TOOLS, "tool_choice": {"type": "allowed_tools", "tools": []}}, "tool_choice.tools"),
        ({"tools": TOOLS, "tool_choice": {"type": "allowed_tools", "mode": "x"}}, "tool_choice.mode"),
    ],
)
def test_what_is_wrong_is_refused_by_name(body, field):
    with pytest.raises(BadRequest) as caught:
        generation(Chat(), body)
    assert caught.value.param == field


@pytest.mark.parametrize(
    ("surface", "tools", "choice", "names", "reason"),
    [
        (Chat(), TOOLS, "required", ("weather", "clock"), "tool_calls"),
        (Chat(), TOOLS, {"type": "function", "function": {"name": "clock"}}, ("clock",), "stop"),
        (
            Chat(),
            TOOLS,
            {"type": "allowed_tools", "allowed_tools": {"mode": "required", "tools": [TOOLS[0]]}},
            ("weather",),
            "tool_calls",
        ),
        (Responses(), FLAT, "required", ("weather", "clock"), "tool_calls"),
        (Responses(), FLAT, {"type": "function", "name": "weather"}, ("weather",), "stop"),
        (
            Responses(),
            FLAT,
            {"type": "allowed_tools", "mode": "required", "tools": [{"type": "function", "name": "clock"}]},
            ("clock",),
            "tool_calls",
        ),
        (Messages(), BLOCKS, {"type": "any"}, ("weather", "clock"), "tool_calls"),
        (Messages(), BLOCKS, {"type": "tool", "name": "clock"}, ("clock",), "tool_calls"),
    ],
)
def test_forced_call_is_the_whole_answer(surface, tools, choice, names, reason):
    found = generation(surface, {"tools": tools, "tool_choice": choice})
    assert found.prompt.forced == ForcedCall(names, reason)
    assert len(found.prompt.tools) == 2
    schemas = {"weather": CITY, "clock": {"type": "object"} if surface.path == "/v1/messages" else {}}
    expected = {name: schemas[name] for name in names}
    assert (found.structure.kind, json.loads(found.structure.source)) == ("calls", expected)


def test_allowed_tools_that_need_not_be_called_are_those_that_the_model_is_told_of():
    choice = {"type": "allowed_tools", "allowed_tools": {"mode": "auto", "tools": [TOOLS[1]]}}
    found = generation(Chat(), {"tools": TOOLS, "tool_choice": choice})
    assert (found.prompt.tools, found.prompt.forced, found.structure) == ((TOOLS[1],), None, None)


def test_forced_call_counts_before_a_format_and_a_format_before_tools():
    body = {"messages": USER, "tools": TOOLS, "response_format": {"type": "json_object"}}
    forced = Chat().parse(body | {"tool_choice": "required"}, Notes())
    assert forced.generation.structure.kind == "calls"
    assert forced.notes == ()
    free = Chat().parse(body, Notes())
    assert free.generation.structure == Structure(
        kind="json", source='{"type":"object"}', field="response_format.schema"
    )
    assert free.notes == ("no tool is called, since the answer is held to response_format.schema",)


def test_what_is_said_first_counts_and_what_is_said_beside_it_is_noted():
    body = {"messages": USER, "guided_regex": "a", "guided_choice": ["a"], "ignore_eos": True}
    asked = Chat().parse(body, Notes())
    assert (asked.generation.structure.field, asked.generation.ignores_end_tokens) == ("guided_regex", False)
    assert asked.notes == ("the field guided_choice has no effect here", "the field ignore_eos has no effect here")


def test_response_says_what_was_asked_in_the_words_of_its_request():
    choice = {"type": "function", "name": "weather"}
    asked = Responses().parse({"input": "hi", "tools": FLAT, "tool_choice": choice}, Notes())
    assert asked.echoed["tool_choice"] == choice
    text = {"format": {"type": "json_object"}}
    assert Responses().parse({"input": "hi", "text": text}, Notes()).echoed["text"] == text
