"""Ollama's API: what its clients send is taken, and they get what they expect."""

import json

import msgspec
import pytest

from cluster.api.fields import Notes
from cluster.api.surfaces.ollama import OllamaChat, OllamaGenerate
from cluster.serving.requests import ChatPrompt, Delta, TextPrompt, ToolCall, Waiting
from protocol.errors import BadRequest, QueueFull, TandemError
from protocol.values import Sampling
from tests.support.fake_service import ANSWER, FINISHED, MODEL, ROUTED, FakeService, ask

USER = [{"role": "user", "content": "hi"}]
LAST = {
    "done": True,
    "done_reason": "stop",
    "total_duration": 750_000_000,
    "load_duration": 0,
    "prompt_eval_count": 7,
    "prompt_eval_duration": 250_000_000,
    "eval_count": 3,
    "eval_duration": 500_000_000,
}
THOUGHT_AND_CALLED = (
    ROUTED,
    Delta(text="", reasoning="hm\u2028", token_ids=(5,)),
    Delta(text="Let me see.", token_ids=(6,)),
    Delta(
        text="", calls=(ToolCall("c1", "weather", '{"city": "Bonn"}'), ToolCall("c2", "clock", "now")), token_ids=(7,)
    ),
    msgspec.structs.replace(FINISHED, finish_reason="tool_calls"),
)
CALLS = [
    {"id": "c1", "function": {"name": "weather", "arguments": {"city": "Bonn"}}},
    {"id": "c2", "function": {"name": "clock", "arguments": {"arguments": "now"}}},
]


def chat(service=None, **fields):
    return ask(service or FakeService(), "POST", "/api/chat", {"model": "tiny", "messages": USER} | fields)


def generate(service=None, **fields):
    return ask(service or FakeService(), "POST", "/api/generate", {"model": "tiny", "prompt": "hi"} | fields)


def lines(response):
    """The objects of an answer, without what is the same in all; a stream's in lines as httpx splits them."""
    is_stream = response.headers["content-type"] == "application/x-ndjson"
    objects = [json.loads(line) for line in (response.text.splitlines() if is_stream else [response.text])]
    assert {item.pop("model") for item in objects} == {"tiny"}
    assert all(item.pop("created_at").endswith("Z") for item in objects)
    return objects


def said(text):
    return {"message": {"role": "assistant", "content": text}}


def parsed(surface, **body):
    return surface.parse(body, Notes())


# --- answers


def test_chat_streams_by_default_and_its_last_line_says_what_it_took():
    response = chat()
    assert response.headers["content-type"] == "application/x-ndjson"
    assert response.headers["x-tandem-strategy"] == "distributed-no-cache"
    *pieces, last = lines(response)
    assert pieces == [said("Hello") | {"done": False}, said(' "wörld"\n') | {"done": False}]
    tandem = last.pop("tandem")
    assert last == said("") | LAST
    assert (tandem["workers"], tandem["cached_tokens"]) == (["alpha", "beta"], 4)


def test_generate_streams_by_default_too():
    *pieces, last = lines(generate())
    assert pieces == [{"response": "Hello", "done": False}, {"response": ' "wörld"\n', "done": False}]
    del last["tandem"]
    assert last == {"response": ""} | LAST


def test_whole_answers_are_one_object():
    for answer, piece in (
        (chat(stream=False), said('Hello "wörld"\n')),
        (generate(stream=False), {"response": 'Hello "wörld"\n'}),
    ):
        assert answer.headers["content-type"] == "application/json"
        (whole,) = lines(answer)
        del whole["tandem"]
        assert whole == piece | LAST


def test_answer_of_one_token_that_was_cut_took_some_time():
    cut = msgspec.structs.replace(FINISHED, finish_reason="length", total_s=0.25)
    (whole,) = lines(generate(FakeService(ROUTED, cut), stream=False))
    assert (whole["done_reason"], whole["eval_duration"]) == ("length", 1)


def test_thoughts_and_calls_stand_beside_the_content():
    (whole,) = lines(chat(FakeService(*THOUGHT_AND_CALLED), stream=False))
    message = said("Let me see.")["message"] | {"thinking": "hm\u2028", "tool_calls": CALLS}
    assert (whole["message"], whole["done_reason"]) == (message, "stop")
    thought, text, called, _ = [item["message"] for item in lines(chat(FakeService(*THOUGHT_AND_CALLED)))]
    assert thought == {"role": "assistant", "content": "", "thinking": "hm\u2028"}
    assert text == said("Let me see.")["message"]
    assert called == {"role": "assistant", "content": "", "tool_calls": CALLS}


def test_thoughts_of_a_generated_text_stand_beside_it():
    (whole,) = lines(generate(FakeService(*THOUGHT_AND_CALLED), stream=False))
    assert (whole["response"], whole["thinking"]) == ("Let me see.", "hm\u2028")


def test_nothing_but_objects_goes_out_while_workers_are_awaited():
    waits = FakeService(Waiting(workers=("beta",)), ANSWER[0], Waiting(workers=()), *ANSWER[1:])
    assert lines(chat(waits)) == lines(chat())


@pytest.mark.parametrize(
    ("path", "body", "piece"),
    [
        ("/api/chat", {"messages": []}, said("")),
        ("/api/chat", {"keep_alive": -1}, said("")),
        ("/api/generate", {"prompt": ""}, {"response": ""}),
        ("/api/generate", {"system": "Be brief.", "keep_alive": "5m"}, {"response": ""}),
    ],
)
def test_empty_prompt_only_loads_the_model(path, body, piece):
    service = FakeService()
    (answer,) = lines(ask(service, "POST", path, body))
    assert answer == piece | {"done": True, "done_reason": "load"}
    assert service.requests == []


# --- errors


@pytest.mark.parametrize("stream", [False, True])
def test_errors_are_sentences_with_a_status(stream):
    full = chat(FakeService(QueueFull("too many wait", retry_after_s=3)), stream=stream)
    assert (full.status_code, full.headers["retry-after"]) == (429, "3")
    assert full.json() == {"error": "Too many wait."}
    refused = generate(stream=stream, suffix="x")
    assert refused.status_code == 400
    assert refused.json()["error"].startswith("suffix asks for text to insert before, which is not supported")


def test_error_ends_a_stream_that_has_begun():
    text = chat(FakeService(*ANSWER[:3], TandemError("worker beta was lost"))).text
    assert json.loads(text.splitlines()[-1]) == {"error": "Worker beta was lost."}


def test_body_that_is_no_json_is_refused_in_the_same_words():
    response = ask(FakeService(), "POST", "/api/chat", content=b"{")
    assert response.status_code == 400
    assert response.json()["error"].startswith("The body is not valid JSON")


@pytest.mark.parametrize("path", ["/api/pull", "/api/create", "/api/delete"])
def test_what_would_change_models_is_not_served(path):
    assert ask(FakeService(), "POST", path, {"model": "tiny"}).status_code == 404


# --- requests


def test_options_reach_the_request_in_the_words_of_ollama():
    options = {
        "temperature": 0.5,
        "top_p": 0.9,
        "top_k": 40,
        "min_p": 0.1,
        "seed": 7,
        "num_predict": 9,
        "repeat_penalty": 1.1,
        "presence_penalty": 0.5,
        "frequency_penalty": 0.25,
        "stop": ["a", "b"],
        "num_ctx": 4096,
    }
    request = parsed(OllamaChat(), messages=USER, options=options, keep_alive="5m")
    assert (request.generation.max_tokens, request.generation.stop, request.stream) == (9, ("a", "b"), True)
    assert request.generation.sampling == Sampling(
        temperature=0.5,
        top_p=0.9,
        top_k=40,
        min_p=0.1,
        seed=7,
        repetition_penalty=1.1,
        presence_penalty=0.5,
        frequency_penalty=0.25,
    )
    assert request.notes == (
        "the field num_ctx has no effect here",
        "the field keep_alive has no effect here",
    )


def test_messages_become_those_of_the_template():
    call = {"function": {"name": "weather", "arguments": {"city": "Bonn"}}}
    tools = [{"type": "function", "function": {"name": "weather", "parameters": {}}}]
    request = parsed(
        OllamaChat(),
        messages=[
            {"role": "system", "content": "Be brief.", "images": []},
            *USER,
            {"role": "assistant", "thinking": "hm", "tool_calls": [call]},
            {"role": "tool", "content": "rain", "tool_name": "weather"},
        ],
        tools=tools,
    )
    assert request.generation.prompt == ChatPrompt(
        (
            {"role": "system", "content": "Be brief."},
            *USER,
            {"role": "assistant", "content": "", "tool_calls": [{"type": "function"} | call]},
            {"role": "tool", "content": "rain", "name": "weather"},
        ),
        tuple(tools),
    )
    assert request.notes == ("the field messages[2].thinking has no effect here",)


@pytest.mark.parametrize(
    ("think", "options"),
    [
        (None, {}),
        (True, {"enable_thinking": True}),
        (False, {"enable_thinking": False}),
        ("high", {"enable_thinking": True, "reasoning_effort": "high"}),
    ],
)
def test_thinking_is_told_to_the_template(think, options):
    assert parsed(OllamaChat(), messages=USER, think=think).generation.prompt.options == options
    assert parsed(OllamaGenerate(), prompt="hi", think=think).generation.prompt.options == options


def test_generated_prompt_goes_through_the_template_unless_it_is_raw():
    system = {"role": "system", "content": "Be brief."}
    assert parsed(OllamaGenerate(), prompt="hi").generation.prompt == ChatPrompt(tuple(USER))
    assert parsed(OllamaGenerate(), prompt="hi", system="Be brief.").generation.prompt == ChatPrompt((system, *USER))
    raw = parsed(OllamaGenerate(), prompt="hi", raw=True, think=True)
    assert raw.generation.prompt == TextPrompt("hi")
    assert raw.notes == ("the field think has no effect here",)


NEUTRAL = {
    "suffix": "",
    "images": [],
    "context": [],
    "format": "",
    "template": "",
    "system": "",
    "raw": False,
    "options": {},
    "stream": True,
}


@pytest.mark.parametrize("name", NEUTRAL)
def test_values_that_ask_for_nothing_are_taken(name):
    assert parsed(OllamaGenerate(), prompt="hi", **{name: NEUTRAL[name]}) == parsed(OllamaGenerate(), prompt="hi")


@pytest.mark.parametrize(
    ("surface", "body", "param"),
    [
        (OllamaChat(), {"messages": USER, "format": "xml"}, "format"),
        (OllamaChat(), {"messages": USER, "format": ["json"]}, "format"),
        (OllamaChat(), {"messages": USER, "think": "some"}, "think"),
        (OllamaChat(), {"messages": "hi"}, "messages"),
        (OllamaChat(), {"messages": ["hi"]}, "messages[0]"),
        (OllamaChat(), {"messages": [{"content": "hi"}]}, "messages[0].role"),
        (OllamaChat(), {"messages": [{"role": "user", "content": 1}]}, "messages[0].content"),
        (OllamaChat(), {"messages": [USER[0] | {"images": ["aGk="]}]}, "messages[0].images"),
        (OllamaChat(), {"messages": USER, "tools": {}}, "tools"),
        (OllamaChat(), {"messages": USER, "options": {"temperature": 3}}, "temperature"),
        (OllamaGenerate(), {"prompt": ["hi"]}, "prompt"),
        (OllamaGenerate(), {"prompt": "hi", "images": ["aGk="]}, "images"),
        (OllamaGenerate(), {"prompt": "hi", "context": [1, 2]}, "context"),
        (OllamaGenerate(), {"prompt": "hi", "suffix": "x"}, "suffix"),
        (OllamaGenerate(), {"prompt": "hi", "template": "{{ .Prompt }}"}, "template"),
        (OllamaGenerate(), {"prompt": "hi", "raw": True, "system": "Be brief."}, "system"),
    ],
)
def test_what_cannot_be_done_is_refused_with_its_field(surface, body, param):
    with pytest.raises(BadRequest) as caught:
        surface.parse(body, Notes())
    assert caught.value.param == param


# --- models


def test_model_has_the_tag_that_says_nothing():
    service = FakeService()
    notes = ask(service, "POST", "/api/chat", {"model": "tiny:latest", "messages": USER, "stream": False})
    assert notes.json()["tandem"]["notes"] == ["The seed had no effect."]
    other = {"model": "tiny:7b", "messages": USER}
    assert ask(service, "POST", "/api/chat", other, strict_model=True).status_code == 404
    assert ask(service, "GET", "/v1/models/default:latest").json()["id"] == "tiny"


def test_tags_and_ps_list_the_model():
    known = msgspec.structs.replace(MODEL, architecture="llama")
    service = FakeService(models=(known,))
    (tag,) = ask(service, "GET", "/api/tags").json()["models"]
    (running,) = ask(service, "GET", "/api/ps").json()["models"]
    for listed in (tag, running):
        assert (listed["name"], listed["model"], listed["size"]) == ("tiny", "tiny", 1000)
        assert len(listed["digest"]) == 64
        assert (listed["details"]["format"], listed["details"]["family"]) == ("safetensors", "llama")
    assert tag["modified_at"] == "2023-11-14T22:13:20Z"
    assert (running["context_length"], running["size_vram"]) == (512, 1000)
    assert running["expires_at"] > "2200"
    assert ask(FakeService(models=()), "GET", "/api/tags").json() == {"models": []}


def test_show_says_what_is_known():
    known = msgspec.structs.replace(MODEL, architecture="llama", abilities=("tools",))
    for name in ("model", "name"):
        shown = ask(FakeService(models=(known,)), "POST", "/api/show", {name: "tiny:latest", "verbose": True}).json()
        assert shown["capabilities"] == ["completion", "tools"]
        assert shown["model_info"] == {
            "general.architecture": "llama",
            "llama.block_count": 8,
            "llama.context_length": 512,
        }
    assert ask(FakeService(), "POST", "/api/show", {"model": "tiny"}).json()["model_info"] == {}


def test_show_of_another_model_is_an_error_where_names_are_strict():
    response = ask(FakeService(), "POST", "/api/show", {"model": "llama3.2"}, strict_model=True)
    assert response.status_code == 404
    assert response.json() == {"error": "The model 'llama3.2' is not loaded; this cluster serves 'tiny'."}


def test_server_says_that_it_is_there():
    for accept in ("application/json", "text/plain", "*/*", "text/html,*/*;q=0.8"):
        assert "Ollama is running" in ask(FakeService(), "GET", "/", headers={"Accept": accept}).text
    head = ask(FakeService(), "HEAD", "/")
    assert (head.status_code, head.text) == (200, "")
    assert set(ask(FakeService(), "GET", "/api/version").json()) == {"version"}
