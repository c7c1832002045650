"""The Responses API: what it takes, what it answers and streams, and what it keeps."""

import asyncio
import json

import httpx
import msgspec
import openai
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from cluster.api.answered import Answered, KeptAnswer
from cluster.api.fields import Notes
from cluster.api.surfaces import responses as responses_surface
from cluster.api.surfaces.responses import Responses
from cluster.serving.requests import ChatPrompt, Delta, ToolCall, Waiting
from protocol.errors import ContextTooLong, NotFound, Unavailable
from protocol.values import Sampling
from tests.cluster.api.test_http_server import with_openai
from tests.support.fake_service import ANSWER, FINISHED, ROUTED, FakeService, app_over, ask

PATH = "/v1/responses"
SAYS = 'Hello "wörld"\n'
USER = {"role": "user", "content": "hi"}
WEATHER = {"type": "function", "name": "weather", "description": "", "parameters": {"type": "object"}, "strict": False}
CALLED = ToolCall("c1", "weather", '{"city": "Bonn"}')
THOUGHT_AND_CALLED = (
    ROUTED,
    Delta(text="", reasoning="hm", token_ids=(5,)),
    Delta(text="", reasoning=", yes", token_ids=(5,)),
    Delta(text="\n\n", token_ids=(6,)),
    Delta(text="Let me see.", token_ids=(6,)),
    Delta(text="", calls=(CALLED, ToolCall("c2", "clock", "{}")), token_ids=(7,)),
    Delta(text="\n", token_ids=(6,)),
    msgspec.structs.replace(FINISHED, finish_reason="tool_calls"),
)
CUT = (*ANSWER[:-1], msgspec.structs.replace(FINISHED, finish_reason="length"))


def parse(body, notes=None, surface=None):
    return (surface or Responses()).parse(body, notes or Notes())


def messages(value, **fields):
    return parse({"input": value} | fields).generation.prompt.messages


def respond(service=None, *, app=None, **fields):
    return ask(service or FakeService(), "POST", PATH, {"input": "hi"} | fields, **(app or {}))


def refused(response, param, status=400):
    error = response.json()["error"]
    assert response.status_code == status, response.text
    assert error["param"] == param, error
    return error


def events_of(text):
    """The events of a stream, numbered one by one, each named by its type."""
    blocks = [block for block in text.split("\n\n") if block.startswith("event: ")]
    events = []
    for block in blocks:
        name, data = block.split("\n")
        events.append(json.loads(data.removeprefix("data: ")))
        assert name == f"event: {events[-1]['type']}"
    assert [event["sequence_number"] for event in events] == list(range(len(events)))
    return events


class Client:
    """Asks one app again and again."""

    def __init__(self, *scripts, key=None, **options):
        self.service = FakeService()
        self.scripts = iter(scripts)
        self.app = app_over(self.service, **options)
        self.key = key

    def ask(self, method, path, body=None, key=None):
        key = key or self.key

        async def run():
            transport = httpx.ASGITransport(self.app)
            headers = {"Authorization": f"Bearer {key}"} if key else {}
            async with httpx.AsyncClient(transport=transport, base_url="http://localhost") as client:
                return await client.request(method, path, json=body, headers=headers)

        return asyncio.run(run())

    def respond(self, key=None, **fields):
        self.service.script = next(self.scripts, ANSWER)
        return self.ask("POST", PATH, {"input": "hi"} | fields, key)

    def given(self):
        """The messages of the last request."""
        return self.service.requests[-1].prompt.messages


# ---- what it takes


def test_every_parameter_reaches_the_request():
    request = parse(
        {
            "model": "tiny",
            "input": "hi",
            "instructions": "be brief",
            "max_output_tokens": 9,
            "temperature": 1,
            "top_p": 0.5,
            "seed": 7,
            "stream": True,
            "tools": [WEATHER],
            "parallel_tool_calls": False,
            "reasoning": {"effort": "low"},
            "strategy": "distributed-no-cache",
            "use_distributed_inference": "always",
            "conversation": "c1",
            "request_timeout_s": 5,
        }
    )
    generation = request.generation
    assert (request.model, request.stream, generation.prompt_field) == ("tiny", True, "input")
    assert generation.prompt == ChatPrompt(
        ({"role": "system", "content": "be brief"}, USER),
        (
            {
                "type": "function",
                "function": {"name": "weather", "description": "", "parameters": {"type": "object"}},
            },
        ),
        options={"reasoning_effort": "low"},
        one_call=True,
    )
    assert generation.sampling == Sampling(temperature=1.0, top_p=0.5, seed=7)
    assert (generation.max_tokens, generation.timeout_s, generation.conversation) == (9, 5.0, "c1")
    assert (generation.strategy, generation.mode) == ("distributed-no-cache", "always")
    assert parse({"input": "hi", "tools": [WEATHER], "tool_choice": "none"}).generation.prompt.tools == ()


def test_items_become_messages():
    parts = [{"type": "input_text", "text": "a"}, {"type": "input_text", "text": "b"}]
    said = [{"type": "output_text", "text": "c", "annotations": [], "logprobs": []}]
    assert messages("hi") == (USER,)
    assert messages([{"role": "user", "content": parts}]) == ({"role": "user", "content": "ab"},)
    assert messages(
        [
            {"type": "message", "role": "user", "content": "a"},
            {"type": "message", "id": "msg_1", "status": "completed", "role": "assistant", "content": said},
            {"role": "developer", "content": "d"},
        ]
    ) == ({"role": "user", "content": "a"}, {"role": "assistant", "content": "c"}, {"role": "system", "content": "d"})


def test_calls_of_one_turn_and_what_is_said_with_them_are_one_message():
    call = {"type": "function_call", "call_id": "c1", "name": "weather", "arguments": '{"city": "Bonn"}'}
    taken = messages(
        [
            USER,
            {"type": "reasoning", "id": "rs_1", "summary": [], "content": None},
            {"role": "assistant", "content": "Let me see."},
            call,
            call | {"call_id": "c2", "arguments": "half an obj"},
            {"role": "assistant", "content": " So."},
            {"type": "function_call_output", "call_id": "c1", "output": "rain"},
            {"type": "function_call_output", "call_id": "c2", "output": [{"type": "input_text", "text": "sun"}]},
            call | {"call_id": "c3", "arguments": ""},
        ]
    )

    def template_call(call_id, arguments):
        return {"type": "function", "function": {"name": "weather", "arguments": arguments}, "id": call_id}

    assert taken == (
        USER,
        {
            "role": "assistant",
            "content": "Let me see. So.",
            "tool_calls": [template_call("c1", {"city": "Bonn"}), template_call("c2", "half an obj")],
        },
        {"role": "tool", "content": "rain", "tool_call_id": "c1"},
        {"role": "tool", "content": "sun", "tool_call_id": "c2"},
        {"role": "assistant", "content": "", "tool_calls": [template_call("c3", {})]},
    )


def test_what_stands_in_front_for_the_system_is_one_message():
    developer = {"role": "developer", "content": "no jokes"}
    assert messages([developer, USER, developer], instructions="be brief") == (
        {"role": "system", "content": "be brief\n\nno jokes"},
        USER,
        {"role": "system", "content": "no jokes"},
    )


NEUTRAL = {
    "tools": [],
    "tool_choice": "auto",
    "parallel_tool_calls": True,
    "text": {"format": {"type": "text"}, "verbosity": "medium"},
    "reasoning": {},
    "background": False,
    "include": [],
    "truncation": "disabled",
    "service_tier": "auto",
    "top_logprobs": 0,
    "metadata": {},
    "store": True,
    "max_output_tokens": -1,
    "client_metadata": {},
}


@pytest.mark.parametrize("name", NEUTRAL)
def test_values_that_ask_for_nothing_are_accepted(name):
    notes = Notes(strict=True)
    assert parse({"input": "hi", name: NEUTRAL[name]}, notes).generation == parse({"input": "hi"}).generation


@pytest.mark.parametrize("name", sorted(set(responses_surface.FIELDS) - {"input"}))
def test_nulls_are_defaults(name):
    assert parse({"input": "hi", name: None}).generation == parse({"input": "hi"}).generation


def test_what_has_no_effect_is_named():
    response = respond(
        include=["reasoning.encrypted_content"],
        prompt_cache_key="k",
        reasoning={"effort": "low", "summary": "auto"},
        text={"verbosity": "low"},
        truncation="auto",
        client_metadata={"a": "b"},
        tools=[WEATHER, {"type": "web_search"}, {"type": "custom", "name": "apply_patch"}, WEATHER | {"strict": True}],
        input=[USER, {"type": "reasoning", "id": "rs_1", "summary": []}],
        metadata={"a": "b"},
        store=True,
    )
    assert response.status_code == 200, response.text
    assert [note.split()[2] for note in response.json()["tandem"]["notes"][:-1]] == [
        "include",
        "prompt_cache_key",
        "truncation",
        "client_metadata",
        "text.verbosity",
        "input[1].reasoning",
        "tools[1].web_search",
        "tools[2].custom",
        "tools[3].strict",
        "reasoning.summary",
    ]
    refused(respond(app={"strict": True}, tools=[{"type": "web_search"}]), "tools[0].web_search")
    refused(respond(app={"strict": True}, prompt_cache_key="k"), "prompt_cache_key")


IMAGE = {"type": "input_image", "image_url": "data:,"}


@pytest.mark.parametrize(
    ("fields", "param"),
    [
        ({"input": None}, "input"),
        ({"input": []}, "input"),
        ({"input": 5}, "input"),
        ({"input": [5]}, "input[0]"),
        ({"input": [{"type": "reasoning"}]}, "input"),
        ({"input": [{"type": "robot"}]}, "input[0].type"),
        ({"input": [{"type": ["message"]}]}, "input[0].type"),
        ({"input": [{"role": "tool", "content": "x"}]}, "input[0].role"),
        ({"input": [{"role": "user"}]}, "input[0].content"),
        ({"input": [{"type": "message", "content": "x"}]}, "input[0].role"),
        ({"input": [{"role": "user", "content": [IMAGE]}]}, "input[0].content[0].type"),
        (
            {"input": [{"role": "user", "content": [{"type": "input_file", "file_id": "f"}]}]},
            "input[0].content[0].type",
        ),
        ({"input": [{"role": "user", "content": [{"type": "input_text"}]}]}, "input[0].content[0].text"),
        ({"input": [{"type": "function_call", "call_id": "c"}]}, "input[0].name"),
        ({"input": [{"type": "function_call", "call_id": "c", "name": "f", "arguments": {}}]}, "input[0].arguments"),
        ({"input": [{"type": "function_call_output", "call_id": "c"}]}, "input[0].output"),
        ({"input": [{"type": "function_call_output", "call_id": "c", "output": [IMAGE]}]}, "input[0].output[0].type"),
        ({"input": [{}]}, "input[0].id"),
        ({"instructions": 5}, "instructions"),
        ({"tools": {}}, "tools"),
        ({"tools": [5]}, "tools[0]"),
        ({"tools": [{"type": 5}]}, "tools[0].type"),
        ({"tools": [{"type": "function"}]}, "tools[0].name"),
        ({"tools": [WEATHER | {"parameters": []}]}, "tools[0].parameters"),
        ({"tools": [WEATHER] * 300}, "tools"),
        ({"tool_choice": "sometimes"}, "tool_choice"),
        ({"tool_choice": {"type": "function"}}, "tool_choice.name"),
        ({"text": {"format": {"type": "grammar"}}}, "text.format.type"),
        ({"text": {"format": {"type": "json_schema", "name": "x"}}}, "text.format.schema"),
        ({"background": True}, "background"),
        ({"prompt": {"id": "p"}}, "prompt"),
        ({"metadata": 5}, "metadata"),
        ({"store": "no"}, "store"),
        ({"max_output_tokens": 0}, "max_output_tokens"),
        ({"previous_response_id": 5}, "previous_response_id"),
        ({"temperature": 3}, "temperature"),
        ({"reasoning": {"effort": 5}}, "reasoning.effort"),
        ({"strategy": "fast"}, "strategy"),
    ],
)
def test_what_is_wrong_or_not_supported_is_refused_by_place(fields, param):
    refused(respond(**fields), param)


# ---- what it answers


def test_answer_is_a_response():
    response = respond(instructions="be brief", metadata={"a": "b"}, tools=[WEATHER], max_output_tokens=9)
    body = response.json()
    assert response.status_code == 200
    assert response.headers["x-tandem-strategy"] == "distributed-no-cache"
    (message,) = body.pop("output")
    assert body.pop("id").startswith("resp_")
    assert message.pop("id").startswith("msg_")
    assert body.pop("created_at") > 1_600_000_000
    assert body.pop("tandem")["token_ids"] == [5, 6]
    assert message == {
        "type": "message",
        "status": "completed",
        "role": "assistant",
        "content": [{"type": "output_text", "text": SAYS, "annotations": [], "logprobs": []}],
    }
    assert body == {
        "object": "response",
        "status": "completed",
        "background": False,
        "error": None,
        "incomplete_details": None,
        "model": "tiny",
        "instructions": "be brief",
        "max_output_tokens": 9,
        "metadata": {"a": "b"},
        "parallel_tool_calls": True,
        "previous_response_id": None,
        "reasoning": {"effort": None, "summary": None},
        "store": True,
        "temperature": 0.0,
        "text": {"format": {"type": "text"}},
        "tool_choice": "auto",
        "tools": [WEATHER],
        "top_p": 1.0,
        "truncation": "disabled",
        "usage": {
            "input_tokens": 7,
            "input_tokens_details": {"cached_tokens": 4},
            "output_tokens": 3,
            "output_tokens_details": {"reasoning_tokens": 0},
            "total_tokens": 10,
        },
    }


def test_answer_that_was_cut_is_incomplete():
    body = respond(FakeService(*CUT)).json()
    assert (body["status"], body["incomplete_details"]) == ("incomplete", {"reason": "max_output_tokens"})
    assert body["output"][0]["status"] == "incomplete"


def test_thoughts_and_calls_are_items():
    thought, message, *calls = respond(FakeService(*THOUGHT_AND_CALLED)).json()["output"]
    assert (thought["type"], thought["summary"]) == ("reasoning", [])
    assert thought["content"] == [{"type": "reasoning_text", "text": "hm, yes"}]
    assert message["content"][0]["text"].strip() == "Let me see."
    assert [(call["type"], call["call_id"], call["name"], call["status"]) for call in calls] == [
        ("function_call", "c1", "weather", "completed"),
        ("function_call", "c2", "clock", "completed"),
    ]
    assert calls[0]["arguments"] == CALLED.arguments


@pytest.mark.parametrize("stream", [False, True])
def test_blank_text_before_a_call_is_no_message(stream):
    script = (ROUTED, Delta(text="\n", token_ids=(1,)), Delta(text="", calls=(CALLED,), token_ids=(2,)), FINISHED)
    assert [item["type"] for item in output_of(script, stream=stream)] == ["function_call"]


@pytest.mark.parametrize("stream", [False, True])
@pytest.mark.parametrize("text", ["", "\n"])
def test_answer_of_nothing_to_see_is_a_message(stream, text):
    (message,) = output_of((ROUTED, Delta(text=text, token_ids=(1,)), FINISHED), stream=stream)
    assert (message["type"], message["content"][0]["text"]) == ("message", text)


@pytest.mark.parametrize("stream", [False, True])
def test_thought_that_was_cut_is_all_there_is(stream):
    script = (ROUTED, Delta(text="", reasoning="hm", token_ids=(1,)), CUT[-1])
    assert [item["type"] for item in output_of(script, stream=stream)] == ["reasoning"]


def output_of(script, *, stream):
    response = respond(FakeService(*script), stream=stream)
    return (events_of(response.text)[-1]["response"] if stream else response.json())["output"]


def test_what_keeps_a_stream_alive_is_an_event_too_once_it_has_begun():
    """Some clients count the time since the last event, and comments are none."""
    wait = Waiting(workers=("beta",))
    text = respond(FakeService(wait, ROUTED, wait, *ANSWER[2:]), stream=True).text
    assert text.startswith(": waiting for beta\n\nevent: response.created\n")
    assert text.count(": waiting for beta\n\n") == 2
    assert ": waiting for beta\n\nevent: response.in_progress\n" in text
    kinds = [event["type"] for event in events_of(text)]
    assert kinds[:4] == ["response.created", *["response.in_progress"] * 2, "response.output_item.added"]


def test_stream_is_events_in_order():
    response = respond(stream=True)
    events = events_of(response.text)
    assert response.headers["content-type"].startswith("text/event-stream")
    assert [event["type"].removeprefix("response.") for event in events] == [
        "created",
        "in_progress",
        "in_progress",  # beside the comment on how far the prompt is read
        "output_item.added",
        "content_part.added",
        "output_text.delta",
        "output_text.delta",
        "output_text.done",
        "content_part.done",
        "output_item.done",
        "completed",
    ]
    assert "[DONE]" not in response.text
    assert (events[0]["response"]["status"], events[0]["response"]["output"]) == ("in_progress", [])
    assert events[7]["text"] == "".join(event["delta"] for event in events[5:7]) == SAYS
    assert {event["item_id"] for event in events[4:9]} == {events[3]["item"]["id"]}
    last = events[-1]["response"]
    assert last["output"] == [events[9]["item"]]
    assert (last["id"], last["status"]) == (events[0]["response"]["id"], "completed")
    assert (last["usage"]["total_tokens"], last["tandem"]["token_ids"]) == (10, [5, 6])


def test_stream_of_thoughts_and_calls_is_events_of_each_item():
    events = events_of(respond(FakeService(*THOUGHT_AND_CALLED), stream=True).text)
    called = ["output_item.added", "function_call_arguments.delta", "function_call_arguments.done", "output_item.done"]
    by_item = {}
    for event in events:
        if "output_index" in event:
            by_item.setdefault(event["output_index"], []).append(event["type"].removeprefix("response."))
    assert by_item == {
        0: [
            "output_item.added",
            "content_part.added",
            "reasoning_text.delta",
            "reasoning_text.delta",
            "reasoning_text.done",
            "content_part.done",
            "output_item.done",
        ],
        1: [
            "output_item.added",
            "content_part.added",
            "output_text.delta",
            "output_text.done",
            "content_part.done",
            "output_item.done",
        ],
        2: called,
        3: called,
    }
    done = [event["item"] for event in events if event["type"] == "response.output_item.done"]
    assert done == events[-1]["response"]["output"]
    assert done[2]["arguments"] == CALLED.arguments


def test_stream_that_was_cut_ends_incomplete():
    last = events_of(respond(FakeService(*CUT), stream=True).text)[-1]
    assert (last["type"], last["response"]["status"]) == ("response.incomplete", "incomplete")


def test_tokens_so_far_are_in_each_delta_where_they_are_asked_for():
    events = events_of(respond(stream=True, stream_options={"continuous_usage_stats": True}).text)
    counted = [event["usage"]["output_tokens"] for event in events if event["type"].endswith("text.delta")]
    assert counted == [1, 2]


def test_error_in_the_middle_of_a_stream_is_a_failed_response():
    lost = FakeService(ROUTED, Delta(text="Hel", token_ids=(1,)), Unavailable("lost"))
    events = events_of(respond(lost, stream=True).text)
    failed = events[-1]["response"]
    assert (events[-1]["type"], failed["status"], failed["id"]) == (
        "response.failed",
        "failed",
        events[0]["response"]["id"],
    )
    assert failed["error"] == {"code": "unavailable", "message": "Lost."}


def test_error_before_it_is_known_how_it_runs_is_a_failed_response_too():
    script = (Waiting(workers=("beta",)), Unavailable("worker beta did not come back"))
    response = respond(FakeService(*script), stream=True)
    events = events_of(response.text)
    assert response.text.startswith(": waiting for beta\n\n")
    assert [event["type"] for event in events] == ["response.created", "response.failed"]
    assert events[-1]["response"]["error"]["message"] == "Worker beta did not come back."
    assert respond(FakeService(*script)).status_code == 503


def test_error_before_the_first_event_has_its_own_status():
    error = refused(respond(FakeService(ContextTooLong("too long", param="input")), stream=True), "input")
    assert error["code"] == "context_length_exceeded"


# ---- what it keeps


def test_next_request_goes_on_from_what_was_asked_and_answered():
    client = Client(ANSWER, THOUGHT_AND_CALLED, ANSWER)
    first = client.respond(instructions="be brief").json()
    second = client.respond(input="and?", previous_response_id=first["id"]).json()
    assert second["previous_response_id"] == first["id"]
    assert client.given() == (USER, {"role": "assistant", "content": SAYS}, {"role": "user", "content": "and?"})
    given = [{"type": "function_call_output", "call_id": call, "output": "x"} for call in ("c1", "c2")]
    client.respond(input=given, previous_response_id=second["id"])
    asked, called, *results = client.given()[2:]
    assert (asked["content"], called["content"].strip()) == ("and?", "Let me see.")
    assert [call["function"]["name"] for call in called["tool_calls"]] == ["weather", "clock"]
    assert [result["tool_call_id"] for result in results] == ["c1", "c2"]
    client.respond(input="other", previous_response_id=first["id"])
    assert [message["content"] for message in client.given()] == ["hi", SAYS, "other"]


def test_streamed_answer_is_kept_as_it_ended():
    client = Client()
    last = events_of(client.respond(stream=True).text)[-1]["response"]
    assert client.ask("GET", f"{PATH}/{last['id']}").json() == last
    client.respond(input="and?", previous_response_id=last["id"], stream=True)
    assert [message["content"] for message in client.given()] == ["hi", SAYS, "and?"]


def test_answer_that_is_not_to_be_kept_is_not_and_neither_is_a_failed_one():
    client = Client(ANSWER, (ROUTED, Delta(text="x", token_ids=(1,)), Unavailable("lost")))
    gone = client.respond(store=False).json()
    failed = events_of(client.respond(stream=True).text)[-1]["response"]
    for response in (gone, failed):
        error = refused(client.respond(previous_response_id=response["id"]), "previous_response_id", 404)
        assert error["code"] == "previous_response_not_found"
        assert client.ask("GET", f"{PATH}/{response['id']}").status_code == 404


def test_answers_are_their_key_s():
    client = Client(key="mine")
    response = client.respond().json()
    item = {"type": "item_reference", "id": response["output"][0]["id"]}
    path = f"{PATH}/{response['id']}"
    for method, path_ in (("GET", path), ("DELETE", path), ("GET", f"{path}/input_items")):
        assert client.ask(method, path_, key="other").status_code == 404
    refused(client.respond(previous_response_id=response["id"], key="other"), "previous_response_id", 404)
    refused(client.respond(input=[item], key="other"), "input[0].id", 404)
    assert client.respond(previous_response_id=response["id"]).status_code == 200
    assert client.ask("GET", path).json() == response


def test_of_two_token_limits_its_own_counts():
    answer = respond(max_output_tokens=5, max_tokens=6).json()
    assert answer["max_output_tokens"] == 5
    assert "The field max_tokens has no effect here." in answer["tandem"]["notes"]


def test_forgotten_answer_is_gone_and_what_went_on_from_it_is_not():
    client = Client()
    first = client.respond().json()
    second = client.respond(previous_response_id=first["id"]).json()
    deleted = client.ask("DELETE", f"{PATH}/{first['id']}").json()
    assert deleted == {"id": first["id"], "object": "response", "deleted": True}
    assert client.ask("DELETE", f"{PATH}/{first['id']}").status_code == 404
    refused(client.respond(previous_response_id=first["id"]), "previous_response_id", 404)
    assert client.respond(previous_response_id=second["id"]).status_code == 200
    assert len(client.given()) == 5


def test_item_can_be_referred_to():
    client = Client()
    first = client.respond().json()
    said = first["output"][0]["id"]
    client.respond(input=[{"type": "item_reference", "id": said}, {"id": said}, {"role": "user", "content": "again"}])
    assert [message["content"] for message in client.given()] == [SAYS, SAYS, "again"]


def test_items_that_were_asked_with_are_listed_in_pages():
    client = Client()
    first = client.respond(input=[{"role": "user", "content": text} for text in "abc"]).json()
    path = f"{PATH}/{first['id']}/input_items"

    def texts(query):
        page = client.ask("GET", f"{path}?{query}").json()
        assert page["first_id"] == page["data"][0]["id"]
        assert page["last_id"] == page["data"][-1]["id"]
        return [item["content"][0]["text"] for item in page["data"]], page["has_more"], page["last_id"]

    assert texts("")[:2] == (["c", "b", "a"], False)
    newest, more, last_id = texts("limit=2")
    assert (newest, more) == (["c", "b"], True)
    assert texts(f"limit=2&after={last_id}")[:2] == (["a"], False)
    assert texts("order=asc&limit=1")[:2] == (["a"], True)
    for query, param, status in (("limit=0", "limit", 400), ("order=up", "order", 400), ("after=x", "after", 404)):
        refused(client.ask("GET", f"{path}?{query}"), param, status)
    refused(client.ask("GET", f"{PATH}/{first['id']}?stream=true"), "stream")


def test_store_is_bounded_and_the_oldest_is_forgotten_first():
    answered = Answered(most_answers=3, most_bytes=100)
    shelf, other = answered.shelf("a"), answered.shelf("b")

    def keep(where, name, num_bytes):
        where.keep(name, KeptAnswer(b"x" * (num_bytes - 2), {f"in {name}": b"i"}, {f"out {name}": b"o"}))

    for name in "1234":
        keep(shelf, name, 10)
    assert [name for name in "1234" if shelf.find(name)] == ["2", "3", "4"]
    assert shelf.item("out 1") is None
    assert shelf.item("in 4") == b"i"
    keep(other, "5", 85)
    assert (shelf.find("3"), shelf.find("4") is not None, other.find("5") is not None) == (None, True, True)
    keep(other, "too large", 101)
    assert other.find("too large") is None
    assert other.find("5") is not None
    assert other.item("in 4") is None
    assert other.forget("5")
    assert not other.forget("5")
    assert repr(answered) == "Answered(1 answers, 10 bytes)"


def test_without_a_shelf_nothing_is_found():
    with pytest.raises(NotFound):
        parse({"input": "x", "previous_response_id": "resp_1"})
    with pytest.raises(NotFound):
        parse({"input": [{"id": "msg_1"}]})


# ---- OpenAI's own client


def test_openai_client_responds_goes_on_reads_and_forgets():
    service = FakeService()

    async def use(client):
        first = await client.responses.create(model="tiny", input="hi", instructions="be brief")
        second = await client.responses.create(
            model="tiny",
            previous_response_id=first.id,
            input=[{"role": "user", "content": [{"type": "input_text", "text": "and?"}]}],
            store=False,
        )
        # as one goes on without the server
        replayed = [USER, *(item.model_dump() for item in first.output), {"role": "user", "content": "and?"}]
        await client.responses.create(model="tiny", input=replayed)
        read = await client.responses.retrieve(first.id)
        items = [item async for item in client.responses.input_items.list(first.id)]
        await client.responses.delete(first.id)
        with pytest.raises(openai.NotFoundError) as caught:
            await client.responses.create(model="tiny", previous_response_id=first.id, input="x")
        return first, second, read, items, caught.value

    first, second, read, items, error = with_openai(service, use)
    assert (first.output_text, first.status, first.usage.total_tokens) == (SAYS, "completed", 10)
    assert (second.previous_response_id, read) == (first.id, first)
    assert [message["content"] for message in service.requests[1].prompt.messages] == ["hi", SAYS, "and?"]
    assert service.requests[2].prompt.messages == service.requests[1].prompt.messages
    assert [item.content[0].text for item in items] == ["hi"]
    assert (error.code, error.param) == ("previous_response_not_found", "previous_response_id")


def test_openai_client_streams():
    async def use(client):
        stream = await client.responses.create(model="tiny", input="hi", stream=True)
        return [event async for event in stream]

    events = with_openai(FakeService(), use)
    assert "".join(event.delta for event in events if event.type == "response.output_text.delta") == SAYS
    assert events[-1].type == "response.completed"
    assert events[-1].response.output_text == SAYS


def test_openai_client_accumulates_thoughts_text_and_calls():
    async def use(client):
        tools = [WEATHER]
        async with client.responses.stream(model="tiny", input="hi", tools=tools) as stream:
            snapshots = [event.snapshot async for event in stream if event.type.endswith("arguments.delta")]
            return snapshots, await stream.get_final_response()

    snapshots, final = with_openai(FakeService(*THOUGHT_AND_CALLED), use)
    assert snapshots == [CALLED.arguments, "{}"]
    assert [item.type for item in final.output] == ["reasoning", "message", "function_call", "function_call"]
    assert final.output[0].content[0].text == "hm, yes"
    assert json.loads(final.output[2].arguments) == {"city": "Bonn"}


# What Codex CLI sends at the beginning of a turn, in its form.
CODEX = {
    "model": "tiny",
    "instructions": "You are a coding agent.",
    "input": [
        {"type": "message", "role": "developer", "content": [{"type": "input_text", "text": "<permissions>"}]},
        {"type": "message", "role": "user", "content": [{"type": "input_text", "text": "list the files"}]},
        {
            "type": "reasoning",
            "summary": [],
            "content": [{"type": "reasoning_text", "text": "hm"}],
            "encrypted_content": None,
        },
        {"type": "function_call", "name": "shell", "arguments": '{"command": ["ls"]}', "call_id": "c1"},
        {"type": "function_call_output", "call_id": "c1", "output": "a.py\n"},
    ],
    "tools": [
        {"type": "function", "name": "shell", "description": "Runs", "strict": False, "parameters": {"type": "object"}},
        {"type": "local_shell"},
        {"type": "web_search", "external_web_access": False},
        {"type": "custom", "name": "apply_patch", "description": "x", "format": {"type": "grammar"}},
    ],
    "tool_choice": "auto",
    "parallel_tool_calls": False,
    "reasoning": {"effort": "medium", "summary": "auto"},
    "store": False,
    "stream": True,
    "include": ["reasoning.encrypted_content"],
    "prompt_cache_key": "k",
    "text": {"verbosity": "low"},
    "client_metadata": {"x": "y"},
}


def test_turn_of_codex_is_answered():
    service = FakeService()
    response = ask(service, "POST", PATH, CODEX)
    assert response.status_code == 200, response.text
    assert events_of(response.text)[-1]["type"] == "response.completed"
    prompt = service.requests[0].prompt
    assert [message["role"] for message in prompt.messages] == ["system", "user", "assistant", "tool"]
    assert [tool["function"]["name"] for tool in prompt.tools] == ["shell"]


# ---- whatever comes


SCALARS = st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=10)
JSON = st.recursive(SCALARS, lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=8), inner))
ITEM_FIELDS = ["type", "role", "content", "id", "call_id", "name", "arguments", "output", "status", "summary"]
KINDS = st.sampled_from(
    ["message", "function_call", "function_call_output", "reasoning", "item_reference", "user", "input_text"]
)
ITEMS = st.lists(st.dictionaries(st.sampled_from(ITEM_FIELDS), KINDS | JSON, max_size=6), max_size=4)
KNOWN = st.sampled_from(sorted(responses_surface.FIELDS))
BODIES = st.dictionaries(KNOWN | st.text(max_size=8), JSON, max_size=4) | st.fixed_dictionaries(
    {"input": ITEMS | st.just("hi")},
    optional={"tools": JSON | ITEMS, "text": JSON, "reasoning": JSON, "stream": st.booleans()},
)


@settings(max_examples=80, deadline=None)
@given(BODIES | JSON)
def test_no_json_makes_the_server_fail(body):
    response = ask(FakeService(), "POST", PATH, body)
    assert response.status_code in (200, 400, 404), response.text
    if response.status_code >= 400:
        assert set(response.json()["error"]) == {"message", "type", "param", "code"}
    elif response.headers["content-type"].startswith("text/event-stream"):
        assert events_of(response.text)[-1]["type"] == "response.completed"


@pytest.mark.parametrize("depth", [100, 400, 900, 2000, 10**5])
def test_deeply_nested_tools_are_answered_or_refused(depth):
    nested = '{"a":' * depth + "1" + "}" * depth
    body = f'{{"input": "hi", "tools": [{{"type": "function", "name": "f", "parameters": {nested}}}]}}'
    response = ask(FakeService(), "POST", PATH, content=body.encode())
    assert response.status_code in (200, 400), response.text
