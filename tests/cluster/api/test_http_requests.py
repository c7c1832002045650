"""What the API takes and what it refuses, each refusal naming its field."""

import asyncio

import msgspec
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from cluster.api import body as body_module
from cluster.api.body import decode_object
from cluster.api.fields import Notes
from cluster.api.surfaces import chat as chat_surface
from cluster.api.surfaces import completions as completions_surface
from cluster.api.surfaces.chat import Chat
from cluster.api.surfaces.completions import Completions
from cluster.serving.requests import ChatPrompt, TextPrompt, TokensPrompt
from protocol.errors import BadRequest
from protocol.values import Sampling
from tests.support.fake_service import FakeService, ask, chat, completion

USER = [{"role": "user", "content": "hi"}]


def parse_chat(body, notes=None):
    return Chat().parse(body, notes or Notes())


def parse_completion(body, notes=None):
    return Completions().parse(body, notes or Notes())


def refused(response, param):
    error = response.json()["error"]
    assert response.status_code == 400, response.text
    assert (error["type"], error["param"]) == ("invalid_request_error", param), error
    assert error["message"].endswith((".", "?"))
    return error["message"]


def test_every_parameter_reaches_the_request():
    request = parse_chat(
        {
            "model": "tiny",
            "messages": USER,
            "max_completion_tokens": 9,
            "temperature": 1,
            "top_p": 0.5,
            "top_k": 3,
            "min_p": 0.1,
            "seed": -1,
            "stop": ["a", "b"],
            "repetition_penalty": 1.1,
            "presence_penalty": -2,
            "frequency_penalty": 2.0,
            "logit_bias": {"42": -100, "7": 0.5},
            "stream": True,
            "stream_options": {"include_usage": True},
            "strategy": "distributed-no-cache",
            "use_distributed_inference": "always",
            "conversation": "c1",
        }
    )
    generation = request.generation
    assert (request.model, request.stream, request.include_usage) == ("tiny", True, True)
    assert (generation.prompt, generation.max_tokens, generation.stop) == (ChatPrompt(tuple(USER)), 9, ("a", "b"))
    assert (generation.strategy, generation.mode) == ("distributed-no-cache", "always")
    assert generation.conversation == "c1"
    assert generation.sampling == Sampling(
        temperature=1.0,
        top_p=0.5,
        top_k=3,
        min_p=0.1,
        seed=2**64 - 1,
        repetition_penalty=1.1,
        presence_penalty=-2.0,
        frequency_penalty=2.0,
        logit_bias={42: -100.0, 7: 0.5},
    )


def test_absent_and_null_parameters_are_defaults():
    bare = parse_chat({"messages": USER})
    assert bare.generation.sampling == Sampling()
    assert bare.generation.max_tokens is None
    names = set(chat_surface.FIELDS) - {"messages"}
    assert parse_chat({"messages": USER} | dict.fromkeys(names)) == bare


NEUTRAL = {
    "n": 1,
    "logprobs": False,
    "top_logprobs": 0,
    "tools": [],
    "tool_choice": "none",
    "parallel_tool_calls": True,
    "functions": [],
    "function_call": "none",
    "response_format": {"type": "text"},
    "modalities": ["text"],
    "logit_bias": {},
    "stop": [],
    "metadata": {},
    "store": False,
    "service_tier": "auto",
    "verbosity": "medium",
    "chat_template_kwargs": {},
    "reasoning": {},
    "typical_p": 1,
    "xtc_probability": 0.0,
    "min_tokens": 0,
    "ignore_eos": False,
    "cache_prompt": True,
    "max_tokens": -1,
    "top_k": -1,
    "model": "",
    "options": {},
}


@pytest.mark.parametrize("name", NEUTRAL)
def test_values_that_ask_for_nothing_are_accepted(name):
    asked = parse_chat({"messages": USER, name: NEUTRAL[name]})
    named = msgspec.structs.replace(asked.generation, given=frozenset())
    assert msgspec.structs.replace(asked, generation=named) == parse_chat({"messages": USER})


def test_completion_values_that_ask_for_nothing_are_accepted():
    neutral = {"echo": False, "suffix": "", "best_of": 1, "logprobs": None, "n": 1}
    assert parse_completion({"prompt": "x"} | neutral) == parse_completion({"prompt": "x"})


BAD_VALUES = [
    *[("max_tokens", value) for value in (0, -3, 2**31, 10**30, 1.5, "ten", "", "nan", True, [])],
    *[("max_completion_tokens", value) for value in (0, "a")],
    *[("temperature", value) for value in ("warm", -0.1, 2.1, True, [], {}, 10**400)],
    *[("top_p", value) for value in (-0.1, 1.01, "a", "inf")],
    *[("top_k", value) for value in (-2, 0.5)],
    *[("min_p", value) for value in (-0.1, 1.1)],
    *[("seed", value) for value in (2**64, -(2**63) - 1, 1.5, "x")],
    *[("stop", value) for value in ("", [""], [1], ["a"] * 17, {}, 5, "a" * 1025)],
    *[("repetition_penalty", value) for value in (0, -1, "a")],
    *[("presence_penalty", value) for value in (-2.1, "a")],
    *[("frequency_penalty", value) for value in (2.1, "a")],
    *[("logit_bias", value) for value in ([], {"a": 1}, {"-1": 1}, {"1" * 30: 1})],
    *[("stream", value) for value in (1, "true")],
    *[("stream_options", value) for value in ([], "x")],
    *[("strategy", value) for value in ("fast", "", 1)],
    *[("use_distributed_inference", value) for value in ("sometimes", True)],
    *[("conversation", value) for value in ("", "x" * 129, 1)],
    *[("model", value) for value in (1, [])],
    *[("n", value) for value in (0, 129, True)],
    *[("typical_p", value) for value in (0.5, True)],
    *[("ignore_eos", value) for value in (1, "yes")],
    ("xtc_probability", 0.5),
    ("guided_json", 5),
    ("min_tokens", -1),
]


@pytest.mark.parametrize(("name", "value"), BAD_VALUES)
def test_wrong_values_are_refused_by_name(name, value):
    with pytest.raises(BadRequest) as caught:
        parse_chat({"messages": USER, name: value})
    assert caught.value.param == name
    if name != "max_completion_tokens":
        with pytest.raises(BadRequest) as caught:
            parse_completion({"prompt": "x", name: value})
        assert caught.value.param == name


UNSUPPORTED = {
    "functions": [{}],
    "function_call": {"name": "x"},
    "modalities": ["text", "audio"],
    "audio": {"voice": "x"},
    "web_search_options": {},
}


@pytest.mark.parametrize("name", UNSUPPORTED)
def test_what_is_understood_but_not_supported_is_refused(name):
    message = refused(chat(FakeService(), **{name: UNSUPPORTED[name]}), name)
    assert "support" in message


# What clients send in passing, by whom, and what of it is named as having no effect.
SHAPES = {
    "Open WebUI": ({"num_ctx": 4096, "keep_alive": "5m"}, ["num_ctx", "keep_alive"]),
    "Open WebUI's options": (
        {"options": {"num_ctx": 4096, "temperature": 0.5, "mirostat_eta": 1}},
        ["num_ctx", "mirostat_eta"],
    ),
    "llama.cpp": ({"repeat_penalty": 1.1, "typical_p": 1, "cache_prompt": True, "n_predict": 5}, []),
    "SillyTavern": (
        {"typical_p": 1.0, "tfs_z": 1, "min_p": 0, "dry_multiplier": 0, "rep_pen_slope": 1},
        ["rep_pen_slope"],
    ),
    "LM Studio": ({"ttl": 300, "max_tokens": -1}, ["ttl"]),
    "vLLM": ({"ignore_eos": True, "min_tokens": 0, "priority": 3}, ["priority"]),
    "mlx_lm": (
        {"xtc_probability": 0, "xtc_threshold": 0.1, "repetition_context_size": 20, "num_draft_tokens": 3},
        ["xtc_threshold", "repetition_context_size", "num_draft_tokens"],
    ),
    "OpenRouter": (
        {"usage": {"include": True}, "reasoning": {"effort": "low", "summary": "auto"}},
        ["usage", "reasoning.summary"],
    ),
    "OpenAI": (
        {"verbosity": "low", "store": True, "service_tier": "flex", "prompt_cache_retention": "24h", "user": "me"},
        ["verbosity", "store", "service_tier", "prompt_cache_retention", "user"],
    ),
    "OpenAI without tools": ({"tool_choice": "auto", "parallel_tool_calls": True}, []),
    "greedy by another name": ({"top_p": 0, "temperature": 0.9}, []),
    "nulls": ({"n": None, "top_logprobs": None, "max_tokens": None}, []),
    "text": ({"temperature": "0.5", "max_tokens": "7", "seed": "1"}, []),
    "whole numbers": ({"max_tokens": 4.0, "top_k": 3.0}, []),
    "another model": ({"model": "gpt-3.5-turbo"}, ["'gpt-3.5-turbo' is not served here, 'tiny' answered."]),
    "no model": ({"model": ""}, []),
}


@pytest.mark.parametrize("client", SHAPES)
def test_what_clients_send_in_passing_is_answered_and_what_has_no_effect_named(client):
    fields, named = SHAPES[client]
    response = chat(FakeService(), **fields)
    assert response.status_code == 200, response.text
    answer = response.json()
    assert answer["model"] == FakeService().models()[0].id
    notes = [note for note in answer["tandem"]["notes"] if note not in chat(FakeService()).json()["tandem"]["notes"]]
    assert notes == [name if name.startswith("'") else f"The field {name} has no effect here." for name in named]


def test_hints_are_named_in_streams_too():
    response = chat(FakeService(), stream=True, stream_options={"include_usage": True}, ttl=5)
    assert '"The field ttl has no effect here."' in response.text


WEATHER = {"type": "function", "function": {"name": "weather", "parameters": {"type": "object"}}}


def test_tools_and_what_is_said_of_thinking_reach_the_chat_template():
    asked = {"messages": USER, "tools": [WEATHER]}
    assert parse_chat(asked).generation.prompt == ChatPrompt(tuple(USER), (WEATHER,))
    assert parse_chat(asked | {"tool_choice": "none"}).generation.prompt.tools == ()
    assert parse_chat(asked | {"parallel_tool_calls": False}).generation.prompt.one_call
    for said, options in (
        ({"reasoning_effort": "high"}, {"reasoning_effort": "high"}),
        ({"reasoning_effort": "none"}, {"enable_thinking": False}),
        ({"reasoning": {"effort": "low"}}, {"reasoning_effort": "low"}),
        ({"reasoning": {"enabled": True}}, {"enable_thinking": True}),
        ({"enable_thinking": False}, {"enable_thinking": False}),
        ({"chat_template_kwargs": {"enable_thinking": True, "tone": "dry"}}, {"enable_thinking": True, "tone": "dry"}),
    ):
        assert parse_chat({"messages": USER} | said).generation.prompt.options == options


def test_calls_that_were_made_come_to_the_template_with_arguments_as_objects():
    calls = [{"id": "c1", "type": "function", "function": {"name": "weather", "arguments": '{"city": "Bonn"}'}}]
    calls += [{"function": {"name": "clock", "arguments": "half an obj"}}]
    messages = [
        *USER,
        {"role": "assistant", "content": None, "tool_calls": calls},
        {"role": "tool", "content": "rain", "tool_call_id": "c1"},
    ]
    assistant = parse_chat({"messages": messages}).generation.prompt.messages[1]
    assert assistant == {
        "role": "assistant",
        "content": "",
        "tool_calls": [
            {"type": "function", "function": {"name": "weather", "arguments": {"city": "Bonn"}}, "id": "c1"},
            {"type": "function", "function": {"name": "clock", "arguments": "half an obj"}},
        ],
    }


@pytest.mark.parametrize(
    ("fields", "param"),
    [
        ({"tools": {}}, "tools"),
        ({"tools": [5]}, "tools[0]"),
        ({"tools": [{"type": "function"}]}, "tools[0].function"),
        ({"tools": [{"type": "function", "function": {}}]}, "tools[0].function.name"),
        ({"tools": [{"type": "web_search"}]}, "tools[0].type"),
        ({"tools": [WEATHER] * 300}, "tools"),
        ({"tools": [WEATHER], "tool_choice": {"type": "function", "function": {}}}, "tool_choice.function.name"),
        ({"chat_template_kwargs": {"chat_template": "{{ 1 }}"}}, "chat_template_kwargs.chat_template"),
        ({"chat_template_kwargs": {"tokenize": True}}, "chat_template_kwargs.tokenize"),
        ({"chat_template_kwargs": {"a b": 1}}, "chat_template_kwargs.a b"),
        ({"chat_template_kwargs": {"a": {}}}, "chat_template_kwargs.a"),
        ({"reasoning": {"effort": 5}}, "reasoning.effort"),
    ],
)
def test_wrong_tools_and_variables_are_refused_by_place(fields, param):
    refused(chat(FakeService(), **fields), param)


def test_synonyms_are_understood():
    request = parse_chat({"messages": USER, "repeat_penalty": 1.3, "num_predict": 12})
    assert (request.generation.sampling.repetition_penalty, request.generation.max_tokens) == (1.3, 12)
    assert parse_chat({"messages": USER, "options": {"num_predict": 7}}).generation.max_tokens == 7
    assert parse_chat({"messages": USER, "options": {"seed": 7}, "seed": 8}).generation.sampling.seed == 8
    assert parse_chat({"messages": USER, "n_predict": 9, "max_tokens": 9}).generation.max_tokens == 9
    both = parse_chat({"messages": USER, "n_predict": 9, "max_tokens": 8})
    assert (both.generation.max_tokens, both.notes) == (8, ("the field n_predict has no effect here",))


def test_no_share_of_the_likeliest_tokens_is_greedy():
    assert parse_chat({"messages": USER, "top_p": 0, "temperature": 1}).generation.sampling == Sampling()


def test_end_tokens_can_be_ignored():
    assert parse_completion({"prompt": "x", "ignore_eos": True}).generation.ignores_end_tokens


def test_strictly_what_has_no_effect_is_refused_with_the_nearest_known_name():
    assert "did you mean max_tokens?" in refused(chat(FakeService(), app={"strict": True}, max_token=5), "max_token")
    assert "did you mean" not in refused(chat(FakeService(), app={"strict": True}, zzzz=5), "zzzz")
    refused(chat(FakeService(), app={"strict": True}, keep_alive=5), "keep_alive")
    refused(completion(FakeService(), app={"strict": True}, messages=USER), "messages")
    assert chat(FakeService(), app={"strict": True}, store=False).status_code == 200


def test_ever_so_many_unknown_fields_make_few_notes():
    notes = Notes()
    parse_chat({"messages": USER} | {f"{number:03}" + "x" * 500: 1 for number in range(500)}, notes)
    assert len(notes.clauses) == 21
    assert notes.clauses[-1] == "480 further fields have no effect here"
    assert max(map(len, notes.clauses)) < 100


def test_tokens_so_far_are_in_each_piece_where_they_are_asked_for():
    options = {"include_usage": True, "continuous_usage_stats": True}
    for response in (
        chat(FakeService(), stream=True, stream_options=options),
        completion(FakeService(), stream=True, stream_options=options),
    ):
        pieces = [
            decode_object(line.encode())
            for line in response.text.replace("data: ", "").split("\n\n")
            if line.startswith("{")
        ]
        counted = [piece["usage"]["completion_tokens"] for piece in pieces if piece["usage"]]
        assert len(counted) > 2
        assert counted == sorted(counted)


BAD_MESSAGES = [
    ([], "messages"),
    ("hi", "messages"),
    ({}, "messages"),
    (["hi"], "messages[0]"),
    ([{}], "messages[0].role"),
    ([{"role": "user"}], "messages[0].content"),
    ([{"role": "user", "content": None}], "messages[0].content"),
    ([{"role": "user", "content": 5}], "messages[0].content"),
    ([{"role": "robot", "content": "x"}], "messages[0].role"),
    ([*USER, {"role": "assistant", "content": "x", "tool_calls": {}}], "messages[1].tool_calls"),
    ([*USER, {"role": "assistant", "content": "x", "tool_calls": [5]}], "messages[1].tool_calls[0]"),
    ([*USER, {"role": "assistant", "tool_calls": [{}]}], "messages[1].tool_calls[0].function"),
    ([*USER, {"role": "assistant", "tool_calls": [{"function": {}}]}], "messages[1].tool_calls[0].function.name"),
    ([{"role": "user", "content": [{"type": "image_url", "image_url": {"url": "x"}}]}], "messages[0].content[0].type"),
    ([{"role": "user", "content": ["x"]}], "messages[0].content[0]"),
    ([{"role": "user", "content": [{"type": "text"}]}], "messages[0].content[0].text"),
]


@pytest.mark.parametrize(("messages", "param"), BAD_MESSAGES)
def test_bad_messages_are_refused_by_place(messages, param):
    refused(chat(FakeService(), messages=messages), param)


def test_messages_carry_what_other_clients_keep_in_them():
    notes = Notes()
    messages = [
        {"role": "user", "content": "", "id": "m1", "cache_control": {"type": "ephemeral"}},
        {"role": "assistant", "content": "4", "reasoning_content": "2 and 2", "size": 1},
        {"role": "tool", "content": "x", "tool_call_id": "1"},
        {
            "role": "user",
            "content": [{"type": "input_text", "text": "a", "cache_control": {}}, {"type": "text", "text": "b"}],
        },
    ]
    request = parse_chat({"messages": messages}, notes)
    assert request.generation.prompt.messages == (
        {"role": "user", "content": ""},
        {"role": "assistant", "content": "4"},
        {"role": "tool", "content": "x", "tool_call_id": "1"},
        {"role": "user", "content": "ab"},
    )
    assert [clause.split()[2] for clause in notes.clauses] == [
        "messages[0].id",
        "messages[0].cache_control",
        "messages[1].reasoning_content",
        "messages[1].size",
        "messages[3].content[0].cache_control",
    ]


def test_messages_are_flattened_and_developer_is_system():
    parts = [{"type": "text", "text": "a"}, {"type": "text", "text": "b"}]
    echoed = {"role": "assistant", "content": None, "refusal": None, "tool_calls": None, "annotations": []}
    request = parse_chat({"messages": [{"role": "developer", "content": parts}, echoed, *USER]})
    assert request.generation.prompt == ChatPrompt(
        ({"role": "system", "content": "ab"}, {"role": "assistant", "content": ""}, USER[0])
    )


def test_prompts_are_text_or_token_ids():
    assert parse_completion({"prompt": "x"}).generation.prompt == TextPrompt("x")
    assert parse_completion({"prompt": ["x"]}).generation.prompt == TextPrompt("x")
    assert parse_completion({"prompt": [1, 2]}).generation.prompt == TokensPrompt((1, 2))
    assert parse_completion({"prompt": [[1, 2]]}).generation.prompt == TokensPrompt((1, 2))
    for empty in ({"prompt": ""}, {"prompt": []}, {"prompt": [""]}, {"prompt": None}, {}):
        assert parse_completion(empty).generation.prompt == TextPrompt("")


@pytest.mark.parametrize("prompt", [["a"] * 129, 5, {}, True])
def test_bad_prompts_are_refused(prompt):
    refused(completion(FakeService(), prompt=prompt), "prompt")


@pytest.mark.parametrize("prompt", [[1, "a"], [1, -1], [1, 2**31], [1, 1.5], [1, True]])
def test_bad_token_ids_are_refused_by_place(prompt):
    refused(completion(FakeService(), prompt=prompt), "prompt[1]")


def test_missing_prompts_are_refused():
    refused(ask(FakeService(), "POST", "/v1/chat/completions", {}), "messages")


def test_of_two_token_limits_the_newer_counts():
    assert parse_chat({"messages": USER, "max_tokens": 5, "max_completion_tokens": 5}).notes == ()
    both = parse_chat({"messages": USER, "max_tokens": 5, "max_completion_tokens": 6})
    assert (both.generation.max_tokens, both.notes) == (6, ("the field max_tokens has no effect here",))


def test_options_of_streams_have_no_effect_on_whole_answers():
    asked = parse_chat({"messages": USER, "stream_options": {"include_usage": True}})
    assert asked.notes == ("the field stream_options has no effect here",)


@pytest.mark.parametrize(
    "said", ["1e0", " 1", "1 ", "+1", "01", "1_0", "\u0661", "1.", ".5", "0x1", "1\n", "inf", "nan"]
)
def test_only_plain_decimal_text_is_a_number(said):
    with pytest.raises(BadRequest):
        parse_chat({"messages": USER, "temperature": said})
    with pytest.raises(BadRequest):
        parse_chat({"messages": USER, "top_k": said})


BAD_BODIES = [
    b"",
    b"nonsense",
    b"[]",
    b'"text"',
    b"5",
    b'{"messages"',
    b"\xff\xfe",
    b'{"prompt": "\xff"}',
    b'{"prompt": "\\ud800"}',
    b'{"temperature": NaN}',
    b'{"temperature": Infinity}',
    b'{"temperature": 1e999}',
    b'{"max_tokens": 1' + b"0" * 5000 + b"}",
    b'{"a":' * 50_000,
]


@pytest.mark.parametrize("content", BAD_BODIES, ids=lambda content: repr(content[:30]))
@pytest.mark.parametrize("path", ["/v1/chat/completions", "/v1/completions", "/v1/explain"])
def test_bodies_that_are_not_json_objects_are_refused(content, path):
    refused(ask(FakeService(), "POST", path, content=content), None)


def test_of_repeated_names_the_last_counts():
    assert decode_object(b'{"a": 1, "a": 2}') == {"a": 2}


def _parts(count):
    async def parts():
        for _ in range(count):
            yield b" " * 2**16

    return parts()


@pytest.mark.parametrize("declared", [True, False])
def test_large_body_is_refused_without_being_kept(declared, monkeypatch):
    monkeypatch.setattr(body_module, "BODY_LIMIT_BYTES", 2**20)
    headers = {"Content-Length": str(2**22)} if declared else {}
    response = ask(FakeService(), "POST", "/v1/completions", content=_parts(2**6), headers=headers)
    assert (response.status_code, response.json()["error"]["code"]) == (413, "request_too_large")


def test_body_that_never_ends_arrival_is_given_up(monkeypatch):
    monkeypatch.setattr(body_module, "BODY_TIMEOUT_S", 0.01)

    async def stalled():
        yield b"{"
        await asyncio.Event().wait()

    response = ask(FakeService(), "POST", "/v1/completions", content=stalled())
    assert "did not arrive" in refused(response, None)


SCALARS = st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=10)
JSON = st.recursive(SCALARS, lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=8), inner))
KNOWN = st.sampled_from(sorted({*chat_surface.FIELDS, *completions_surface.FIELDS}))
MESSAGES = st.lists(
    st.dictionaries(st.sampled_from(["role", "content", "name", "tool_calls", "x"]), JSON | st.just("user")), max_size=3
)
BODIES = st.dictionaries(KNOWN | st.text(max_size=8), JSON, max_size=5) | st.fixed_dictionaries(
    {"messages": MESSAGES | st.just(USER)}, optional={"prompt": JSON, "stop": JSON, "logit_bias": JSON, "model": JSON}
)


@settings(max_examples=60, deadline=None)
@given(BODIES | JSON, st.sampled_from(["/v1/chat/completions", "/v1/completions", "/v1/explain"]))
def test_no_json_makes_the_server_fail(body, path):
    response = ask(FakeService(), "POST", path, body)
    assert response.status_code < 500, response.text
    assert response.status_code == 200 or set(response.json()["error"]) == {"message", "type", "param", "code"}


@settings(max_examples=100, deadline=None)
@given(st.binary(max_size=60))
def test_no_bytes_make_the_server_fail(content):
    assert ask(FakeService(), "POST", "/v1/completions", content=content).status_code in (200, 400)
