"""Anthropic's messages: what is taken, what the template gets, and the answer whole and block by block."""

import json

import msgspec
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from cluster.api.fields import Notes
from cluster.api.surfaces import messages as surface
from cluster.api.surfaces.messages import Messages
from cluster.serving.requests import ChatPrompt, Delta, ToolCall, Waiting
from protocol.errors import BadRequest, ContextTooLong, QueueFull, RequestTimeout, TandemError, TooLarge, Unavailable
from protocol.values import Sampling
from tests.cluster.api.test_http_answers import TANDEM
from tests.support.fake_service import ANSWER, FINISHED, ROUTED, FakeService, ask

USER = [{"role": "user", "content": "hi"}]
PATH = "/v1/messages"
COUNTING = "/v1/messages/count_tokens"
USAGE = {"input_tokens": 3, "cache_creation_input_tokens": 0, "cache_read_input_tokens": 4, "output_tokens": 3}
CALLS = (ToolCall("call_1", "weather", '{"city": "Bonn"}'), ToolCall("", "clock", ""))
THOUGHT_AND_CALLED = (
    ROUTED,
    Delta(text="", reasoning="hm", token_ids=(5,)),
    Delta(text="", reasoning=", \u2028yes", token_ids=(5,)),
    Delta(text="Let me ", token_ids=(6,)),
    Delta(text="see.", token_ids=(6,)),
    Delta(text="", calls=CALLS, token_ids=(7,)),
    msgspec.structs.replace(FINISHED, finish_reason="tool_calls"),
)


def message(service, *, app=None, **fields):
    """app: what the app is built with."""
    return ask(service, "POST", PATH, {"messages": USER, "max_tokens": 9} | fields, **(app or {}))


def parsed(notes=None, **fields):
    return Messages().parse({"messages": USER} | fields, notes or Notes())


def stream_events(text):
    """The events of a stream by name, each of which says its name twice."""
    events = []
    for block in text.split("\n\n")[:-1]:
        name, data = block.split("\n")
        assert name.startswith("event: "), block
        event = json.loads(data.removeprefix("data: "))
        assert name == f"event: {event['type']}"
        events.append(event)
    return events


def streamed(service, **fields):
    return [event for event in stream_events(message(service, stream=True, **fields).text) if event["type"] != "ping"]


def refused(response, status=400, kind="invalid_request_error"):
    body = response.json()
    assert response.status_code == status, response.text
    assert (set(body), set(body["error"]) - {"details"}, body["type"]) == (
        {"type", "error"},
        {"type", "message"},
        "error",
    )
    assert body["error"]["type"] == kind
    return body["error"]["message"]


def test_answer_is_a_message():
    response = message(FakeService(), model="tiny")
    assert response.headers["x-tandem-strategy"] == "distributed-no-cache"
    assert response.json() == {
        "id": "msg_r1",
        "type": "message",
        "role": "assistant",
        "model": "tiny",
        "content": [{"type": "text", "text": 'Hello "wörld"\n'}],
        "stop_reason": "end_turn",
        "stop_sequence": None,
        "usage": USAGE,
        "tandem": TANDEM,
    }


def test_stream_is_a_message_piece_by_piece():
    response = message(FakeService(), stream=True)
    assert response.headers["content-type"].startswith("text/event-stream")
    start = {"input_tokens": 7, "cache_creation_input_tokens": 0, "cache_read_input_tokens": 0, "output_tokens": 0}
    assert stream_events(response.text) == [
        {
            "type": "message_start",
            "message": {
                "id": "msg_r1",
                "type": "message",
                "role": "assistant",
                "model": "tiny",
                "content": [],
                "stop_reason": None,
                "stop_sequence": None,
                "usage": start,
            },
        },
        {"type": "ping", "note": "prefill 4/7"},
        {"type": "content_block_start", "index": 0, "content_block": {"type": "text", "text": ""}},
        {"type": "content_block_delta", "index": 0, "delta": {"type": "text_delta", "text": "Hello"}},
        {"type": "content_block_delta", "index": 0, "delta": {"type": "text_delta", "text": ' "wörld"\n'}},
        {"type": "content_block_stop", "index": 0},
        {
            "type": "message_delta",
            "delta": {"stop_reason": "end_turn", "stop_sequence": None},
            "usage": USAGE,
            "tandem": TANDEM,
        },
        {"type": "message_stop"},
    ]


def test_thoughts_text_and_calls_are_blocks_of_their_own():
    body = message(FakeService(*THOUGHT_AND_CALLED)).json()
    assert body["content"] == [
        {"type": "thinking", "thinking": "hm, \u2028yes", "signature": ""},
        {"type": "text", "text": "Let me see."},
        {"type": "tool_use", "id": "call_1", "name": "weather", "input": {"city": "Bonn"}},
        {"type": "tool_use", "id": "toolu_r1_1", "name": "clock", "input": {}},
    ]
    assert body["stop_reason"] == "tool_use"


def test_thoughts_text_and_calls_are_streamed_block_by_block():
    text = message(FakeService(*THOUGHT_AND_CALLED), stream=True).text
    assert "\u2028" not in text
    blocks = stream_events(text)[1:-2]
    assert [(event["type"].removeprefix("content_block_"), event["index"]) for event in blocks] == [
        *[("start", 0), ("delta", 0), ("delta", 0), ("stop", 0)],
        *[("start", 1), ("delta", 1), ("delta", 1), ("stop", 1)],
        *[("start", 2), ("delta", 2), ("stop", 2)],
        *[("start", 3), ("delta", 3), ("stop", 3)],
    ]
    assert [event["content_block"] for event in blocks if "content_block" in event] == [
        {"type": "thinking", "thinking": "", "signature": ""},
        {"type": "text", "text": ""},
        {"type": "tool_use", "id": "call_1", "name": "weather", "input": {}},
        {"type": "tool_use", "id": "toolu_r1_3", "name": "clock", "input": {}},
    ]
    assert [event["delta"] for event in blocks if "delta" in event] == [
        {"type": "thinking_delta", "thinking": "hm"},
        {"type": "thinking_delta", "thinking": ", \u2028yes"},
        {"type": "text_delta", "text": "Let me "},
        {"type": "text_delta", "text": "see."},
        {"type": "input_json_delta", "partial_json": '{"city": "Bonn"}'},
        {"type": "input_json_delta", "partial_json": "{}"},
    ]


def test_text_after_a_call_and_thoughts_after_text_begin_new_blocks():
    script = (
        ROUTED,
        Delta(text="a", token_ids=(1,)),
        Delta(text="", reasoning="b", token_ids=(1,)),
        Delta(text="", calls=CALLS[:1], token_ids=(1,)),
        Delta(text="c", token_ids=(1,)),
        FINISHED,
    )
    starts = [event["content_block"]["type"] for event in streamed(FakeService(*script)) if "content_block" in event]
    assert starts == ["text", "thinking", "tool_use", "text"]


def test_answer_without_text_has_no_blocks():
    script = (ROUTED, msgspec.structs.replace(FINISHED, token_ids=(), completion_tokens=1))
    assert message(FakeService(*script)).json()["content"] == []
    assert [event["type"] for event in streamed(FakeService(*script))] == [
        "message_start",
        "message_delta",
        "message_stop",
    ]


@pytest.mark.parametrize("arguments", ["[1]", '{"a": NaN}', "half {", '"text"', "[" * 100_000])
def test_arguments_that_are_no_object_become_the_value_of_one(arguments):
    script = (ROUTED, Delta(text="", calls=(ToolCall("c", "f", arguments),), token_ids=()), FINISHED)
    (block,) = message(FakeService(*script)).json()["content"]
    assert block["input"] == {"arguments": arguments}
    (piece,) = (event for event in streamed(FakeService(*script)) if event["type"] == "content_block_delta")
    assert json.loads(piece["delta"]["partial_json"]) == {"arguments": arguments}


@pytest.mark.parametrize(
    ("finish_reason", "num_tokens", "stop", "reason", "sequence"),
    [
        ("stop", 3, [], "end_turn", None),
        ("stop", 3, ["END"], "end_turn", None),
        ("stop", 2, ["END"], "stop_sequence", "END"),
        ("stop", 2, ["END", "FIN"], "stop_sequence", None),
        ("length", 2, ["END"], "max_tokens", None),
        ("tool_calls", 3, [], "tool_use", None),
    ],
)
def test_why_an_answer_ended_is_told(finish_reason, num_tokens, stop, reason, sequence):
    finished = msgspec.structs.replace(FINISHED, finish_reason=finish_reason, completion_tokens=num_tokens)
    script = (*ANSWER[:-1], finished)
    body = message(FakeService(*script), stop_sequences=stop).json()
    assert (body["stop_reason"], body["stop_sequence"]) == (reason, sequence)
    ended = streamed(FakeService(*script), stop_sequences=stop)[-2]
    assert ended["delta"] == {"stop_reason": reason, "stop_sequence": sequence}


def test_wait_goes_out_as_a_ping():
    script = (Waiting(workers=()), ROUTED, Waiting(workers=("beta",)), *ANSWER[1:])
    events = stream_events(message(FakeService(*script), stream=True).text)
    notes = [event["note"] for event in events if event["type"] == "ping"]
    assert notes == ["waiting for a plan", "waiting for beta", "prefill 4/7"]


def test_every_parameter_reaches_the_request():
    request = parsed(
        model="tiny",
        max_tokens=9,
        temperature=1,
        top_p=0.5,
        top_k=3,
        min_p=0.1,
        seed=7,
        stop_sequences=["a", "b"],
        stream=True,
        strategy="distributed-no-cache",
        use_distributed_inference="always",
        conversation="c1",
        request_timeout_s=5,
    )
    generation = request.generation
    assert (request.model, request.stream, generation.max_tokens, generation.stop) == ("tiny", True, 9, ("a", "b"))
    assert (generation.strategy, generation.mode) == ("distributed-no-cache", "always")
    assert (generation.conversation, generation.timeout_s, generation.prompt_field) == ("c1", 5, "messages")
    assert generation.sampling == Sampling(temperature=1.0, top_p=0.5, top_k=3, min_p=0.1, seed=7)


def test_absent_and_null_parameters_are_defaults():
    bare = parsed()
    assert bare.generation.prompt == ChatPrompt(tuple(USER), options={"enable_thinking": False})
    assert bare.generation.max_tokens is None
    assert parsed(**dict.fromkeys(set(surface.FIELDS) - {"messages"})) == bare


NEUTRAL = {
    "system": "",
    "stop_sequences": [],
    "tools": [],
    "tool_choice": {"type": "auto", "disable_parallel_tool_use": False},
    "thinking": {"type": "disabled"},
    "output_config": {},
    "mcp_servers": [],
    "service_tier": "standard_only",
    "metadata": {},
    "betas": [],
    "speed": "standard",
    "stream": False,
}


@pytest.mark.parametrize("name", NEUTRAL)
def test_values_that_ask_for_nothing_are_accepted(name):
    assert parsed(**{name: NEUTRAL[name]}) == parsed()


def test_messages_of_blocks_become_the_template_s():
    messages = [
        {"role": "user", "content": [{"type": "text", "text": "How is "}, {"type": "text", "text": "Bonn?"}]},
        {
            "role": "assistant",
            "content": [
                {"type": "thinking", "thinking": "hm", "signature": "x"},
                {"type": "redacted_thinking", "data": "x"},
                {"type": "text", "text": "Let me "},
                {"type": "text", "text": "see."},
                {"type": "tool_use", "id": "t1", "name": "weather", "input": {"city": "Bonn"}},
                {"type": "tool_use", "id": "t2", "name": "clock", "input": {}},
            ],
        },
        {
            "role": "user",
            "content": [
                {"type": "tool_result", "tool_use_id": "t1", "content": "rain"},
                {
                    "type": "tool_result",
                    "tool_use_id": "t2",
                    "is_error": True,
                    "content": [{"type": "text", "text": "no "}, {"type": "text", "text": "clock"}],
                },
                {"type": "text", "text": "and "},
                {"type": "text", "text": "now?"},
            ],
        },
        {"role": "assistant", "content": [{"type": "tool_use", "name": "clock"}]},
        {"role": "user", "content": [{"type": "text", "text": "a"}, {"type": "tool_result"}]},
        {"role": "system", "content": "Be brief."},
        {"role": "user", "content": []},
    ]
    notes = Notes()
    system = [{"type": "text", "text": "You are "}, {"type": "text", "text": "kind.", "cache_control": {}}]
    assert parsed(notes, system=system, messages=messages).generation.prompt.messages == (
        {"role": "system", "content": "You are kind."},
        {"role": "user", "content": "How is Bonn?"},
        {
            "role": "assistant",
            "content": "Let me see.",
            "tool_calls": [
                {"type": "function", "function": {"name": "weather", "arguments": {"city": "Bonn"}}, "id": "t1"},
                {"type": "function", "function": {"name": "clock", "arguments": {}}, "id": "t2"},
            ],
        },
        {"role": "tool", "content": "rain", "tool_call_id": "t1"},
        {"role": "tool", "content": "no clock", "tool_call_id": "t2"},
        {"role": "user", "content": "and now?"},
        {
            "role": "assistant",
            "content": "",
            "tool_calls": [{"type": "function", "function": {"name": "clock", "arguments": {}}}],
        },
        {"role": "user", "content": "a"},
        {"role": "tool", "content": ""},
        {"role": "system", "content": "Be brief."},
        {"role": "user", "content": ""},
    )
    assert [clause.split()[2] for clause in notes.clauses] == [
        "system[1].cache_control",
        "messages[1].content[0].thinking",
        "messages[1].content[1].redacted_thinking",
        "messages[2].content[1].is_error",
    ]


TOOL = {"name": "weather", "description": "of a city", "input_schema": {"type": "object", "properties": {"city": {}}}}


def test_tools_come_to_the_template_in_openai_s_form():
    tools = [TOOL, {"type": "custom", "name": "clock", "strict": False}]
    prompt = parsed(tools=tools).generation.prompt
    assert prompt.tools == (
        {
            "type": "function",
            "function": {"name": "weather", "description": "of a city", "parameters": TOOL["input_schema"]},
        },
        {"type": "function", "function": {"name": "clock", "parameters": {"type": "object", "properties": {}}}},
    )
    assert not prompt.one_call
    assert parsed(tools=tools, tool_choice={"type": "none"}).generation.prompt.tools == ()
    once = {"type": "auto", "disable_parallel_tool_use": True}
    assert parsed(tools=tools, tool_choice=once).generation.prompt.one_call


@pytest.mark.parametrize(
    ("fields", "options"),
    [
        ({"thinking": {"type": "enabled", "budget_tokens": 1024}}, {"enable_thinking": True}),
        ({"thinking": {"type": "adaptive"}}, {"enable_thinking": True}),
        ({"thinking": {"type": "between_tools"}}, {"enable_thinking": True}),
        ({"thinking": {"type": "disabled"}}, {"enable_thinking": False}),
        ({}, {"enable_thinking": False}),
        ({"output_config": {"effort": "low"}}, {"enable_thinking": False, "reasoning_effort": "low"}),
    ],
)
def test_what_is_said_of_thinking_reaches_the_chat_template(fields, options):
    assert parsed(**fields).generation.prompt.options == options


# What clients send in passing, and what of it is named as having no effect.
HINTS = {
    "Claude Code": (
        {
            "metadata": {"user_id": "u"},
            "system": [{"type": "text", "text": "Be kind.", "cache_control": {"type": "ephemeral"}}],
            "thinking": {"type": "enabled", "budget_tokens": 4096},
            "context_management": {"edits": []},
            "tools": [TOOL | {"eager_input_streaming": True}],
        },
        [
            "metadata",
            "context_management",
            "tools[0].eager_input_streaming",
            "system[0].cache_control",
            "thinking.budget_tokens",
        ],
    ),
    "billing": (
        {"service_tier": "priority", "container": "c", "cache_control": {}},
        ["service_tier", "container", "cache_control"],
    ),
    "OpenAI's": ({"stream_options": {"include_usage": True}}, ["stream_options"]),
    "unknown": ({"nonsense": 1, "tool_choice": {"type": "auto", "odd": 1}}, ["nonsense", "tool_choice.odd"]),
    "nulls": ({"temperature": None, "thinking": None}, []),
}


@pytest.mark.parametrize("client", HINTS)
@pytest.mark.parametrize("stream", [False, True])
def test_hints_are_answered_and_named(client, stream):
    fields, named = HINTS[client]
    response = message(FakeService(), stream=stream, **fields)
    assert response.status_code == 200, response.text
    tandem = stream_events(response.text)[-2]["tandem"] if stream else response.json()["tandem"]
    assert tandem["notes"][:-1] == [f"The field {name} has no effect here." for name in named]


def test_strictly_what_has_no_effect_is_refused():
    assert "did you mean max_tokens?" in refused(message(FakeService(), app={"strict": True}, max_token=5))
    thought = [*USER, {"role": "assistant", "content": [{"type": "thinking", "thinking": "x"}]}, *USER]
    said = refused(message(FakeService(), app={"strict": True}, messages=thought))
    assert said == "messages[1].content[0].thinking has no effect here."


def test_answer_that_is_begun_by_the_client_is_not_continued_and_says_so():
    begun = [*USER, {"role": "assistant", "content": "{"}]
    said = "The assistant's last message is not continued: the answer is a new one."
    assert said in message(FakeService(), messages=begun).json()["tandem"]["notes"]


def test_other_models_are_answered_with_a_note_or_not_found():
    notes = message(FakeService(), model="claude-sonnet-4-5").json()["tandem"]["notes"]
    assert "'claude-sonnet-4-5' is not served here, 'tiny' answered." in notes
    response = message(FakeService(), app={"strict_model": True}, model="claude-sonnet-4-5")
    refused(response, 404, "not_found_error")


def block(**fields):
    return [{"role": "user", "content": [fields]}]


BAD = [
    ({"messages": None}, "messages"),
    ({"messages": []}, "messages"),
    ({"messages": ["hi"]}, "messages[0]"),
    ({"messages": [{"content": "x"}]}, "messages[0].role"),
    ({"messages": [{"role": "user"}]}, "messages[0].content"),
    ({"messages": [{"role": "tool", "content": "x"}]}, "messages[0].role"),
    ({"messages": [{"role": "user", "content": 5}]}, "messages[0].content"),
    ({"messages": [{"role": "user", "content": ["x"]}]}, "messages[0].content[0]"),
    ({"messages": block(type="image", source={})}, "messages[0].content[0].type"),
    ({"messages": block(type="document", source={})}, "messages[0].content[0].type"),
    ({"messages": block(type=["text"])}, "messages[0].content[0].type"),
    ({"messages": block(text="x")}, "messages[0].content[0].type"),
    ({"messages": block(type="tool_use", name="x")}, "messages[0].content[0].type"),
    ({"messages": block(type="text")}, "messages[0].content[0].text"),
    ({"messages": block(type="text", text=5)}, "messages[0].content[0].text"),
    ({"messages": block(type="tool_result", content=[{"type": "image"}])}, "messages[0].content[0].content[0].type"),
    ({"messages": block(type="tool_result", tool_use_id=5)}, "messages[0].content[0].tool_use_id"),
    ({"messages": [{"role": "assistant", "content": [{"type": "tool_use"}]}]}, "messages[0].content[0].name"),
    (
        {"messages": [{"role": "assistant", "content": [{"type": "tool_use", "name": "x", "input": "{}"}]}]},
        "messages[0].content[0].input",
    ),
    ({"messages": [{"role": "assistant", "content": [{"type": "tool_result"}]}]}, "messages[0].content[0].type"),
    ({"system": 5}, "system"),
    ({"system": [{"type": "image"}]}, "system[0].type"),
    ({"max_tokens": 0}, "max_tokens"),
    ({"temperature": 3}, "temperature"),
    ({"stop_sequences": [5]}, "stop_sequences"),
    ({"stream": "yes"}, "stream"),
    ({"tools": {}}, "tools"),
    ({"tools": [TOOL] * 300}, "tools"),
    ({"tools": [5]}, "tools[0]"),
    ({"tools": [{}]}, "tools[0].name"),
    ({"tools": [TOOL | {"input_schema": "x"}]}, "tools[0].input_schema"),
    ({"tools": [{"type": "web_search_20250305", "name": "web_search"}]}, "tools[0].type"),
    ({"tools": [TOOL], "tool_choice": {"type": "tool"}}, "tool_choice.name"),
    ({"tools": [TOOL], "tool_choice": {"type": "function"}}, "tool_choice.type"),
    ({"tool_choice": "auto"}, "tool_choice"),
    ({"thinking": {}}, "thinking.type"),
    ({"thinking": {"type": "deep"}}, "thinking.type"),
    ({"output_config": {"format": {"type": "json_schema"}}}, "output_config.format.schema"),
    ({"output_format": {"type": "json_schema"}}, "output_format.schema"),
    ({"mcp_servers": [{"url": "x"}]}, "mcp_servers"),
]


@pytest.mark.parametrize(("fields", "param"), BAD)
def test_what_is_wrong_or_cannot_be_done_is_refused_by_place(fields, param):
    assert refused(message(FakeService(), **fields)).startswith(f"{param} ")
    with pytest.raises(BadRequest) as caught:
        parsed(**fields)
    assert caught.value.param == param


def test_kept_conversation_is_refused_so_that_clients_send_all_of_it():
    error = message(FakeService(), thread={"type": "create"}).json()["error"]
    assert error["message"].startswith("thread asks for a conversation that is kept here")
    assert error["details"] == {"error_code": "thread_unsupported_request", "unsupported": ["thread"]}
    assert message(FakeService(), thread=None).status_code == 200


ERRORS = [
    (BadRequest("no", param="messages"), 400, "invalid_request_error"),
    (TooLarge("too much"), 413, "request_too_large"),
    (QueueFull("full", retry_after_s=3), 429, "rate_limit_error"),
    (TandemError("odd"), 500, "api_error"),
    (Unavailable("lost"), 503, "overloaded_error"),
    (RequestTimeout("late"), 504, "timeout_error"),
]


@pytest.mark.parametrize(("error", "status", "kind"), ERRORS)
@pytest.mark.parametrize("stream", [False, True])
def test_error_before_the_first_event_has_its_status_and_anthropic_s_form(error, status, kind, stream):
    response = message(FakeService(error), stream=stream)
    assert refused(response, status, kind)[0].isupper()
    assert response.headers.get("retry-after") == ("3" if status == 429 else None)


@pytest.mark.parametrize(("error", "status", "kind"), ERRORS)
def test_error_in_the_middle_of_a_stream_is_its_last_event(error, status, kind):
    service = FakeService(ROUTED, Delta(text="Hel", token_ids=(1,)), error)
    last = streamed(service)[-1]
    assert (last["type"], last["error"]["type"]) == ("error", kind)


def test_too_long_a_prompt_is_told_in_the_words_that_clients_know():
    assert refused(message(FakeService(ContextTooLong("600 tokens")))).startswith("prompt is too long: ")


@pytest.mark.parametrize("path", [PATH, COUNTING])
@pytest.mark.parametrize("content", [b"", b"[]", b'{"messages"', b'{"a":' * 50_000])
def test_bodies_that_are_not_json_objects_are_refused(content, path):
    refused(ask(FakeService(), "POST", path, content=content))


def test_errors_of_the_path_are_in_anthropic_s_form_too():
    refused(ask(FakeService(), "GET", PATH), 405)
    refused(ask(FakeService(), "POST", f"{PATH}/batches", {}), 404, "not_found_error")
    assert ask(FakeService(), "POST", f"{PATH}es", {}).json()["error"]["code"] == "not_found"
    for path in (PATH, COUNTING):
        response = ask(FakeService(), "POST", path, {"messages": USER}, api_key="secret")
        refused(response, 401, "authentication_error")
        headers = {"x-api-key": "secret", "anthropic-version": "2023-06-01"}
        body = {"messages": USER}
        assert ask(FakeService(), "POST", path, body, headers=headers, api_key="secret").status_code == 200


def test_tokens_are_counted_with_nothing_generated():
    service = FakeService()
    body = {"model": "claude-sonnet-4-5", "system": "Be kind.", "messages": USER, "tools": [TOOL]}
    assert ask(service, "POST", COUNTING, body).json() == {"input_tokens": len(b"?Be kind.hi")}
    (request,) = service.requests
    assert [item["role"] for item in request.prompt.messages] == ["system", "user"]
    assert len(request.prompt.tools) == 1
    refused(ask(FakeService(), "POST", COUNTING, {"messages": block(type="image")}))
    refused(ask(FakeService(), "POST", COUNTING, body, strict_model=True), 404, "not_found_error")


def test_prompt_beyond_the_context_is_counted():
    body = {"messages": [{"role": "user", "content": "x" * 100_000}]}  # the model's context is 512
    assert ask(FakeService(), "POST", COUNTING, body).json() == {"input_tokens": 100_001}


SCALARS = st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=10)
JSON = st.recursive(SCALARS, lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=8), inner))
TYPES = st.sampled_from(["text", "tool_use", "tool_result", "thinking", "image"])
BLOCK = st.fixed_dictionaries(
    {"type": TYPES}, optional=dict.fromkeys(("text", "id", "name", "input", "tool_use_id", "content"), JSON)
)
CONTENT = JSON | st.lists(BLOCK, max_size=3)
MESSAGE = st.fixed_dictionaries({"role": st.sampled_from(["user", "assistant", "system", "x"]), "content": CONTENT})
FURTHER = st.dictionaries(st.sampled_from(sorted({*surface.FIELDS} - {"messages", "system"})), JSON, max_size=5)
BODIES = st.builds(
    dict.__or__,
    FURTHER,
    st.fixed_dictionaries(
        {"messages": st.lists(MESSAGE, max_size=3) | st.just(USER)}, optional={"system": CONTENT | JSON}
    ),
)


@settings(max_examples=40, deadline=None)
@given(BODIES | JSON, st.sampled_from([PATH, COUNTING]))
def test_no_json_makes_the_server_fail(body, path):
    response = ask(FakeService(), "POST", path, body)
    assert response.status_code < 500, response.text
    if response.status_code != 200:
        refused(response)
