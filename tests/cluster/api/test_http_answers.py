"""What the API answers when the service does its part: OpenAI's objects, chunks and headers."""

import re

import msgspec
import pytest

from cluster.api.surfaces import SURFACES
from cluster.api.surfaces.completions import Completions
from cluster.serving.requests import Delta, ToolCall, Waiting
from protocol.errors import BadRequest, ContextTooLong, QueueFull, TandemError, TooLarge, Unavailable, as_sentence
from tests.support.fake_service import (
    ANSWER,
    EXPLANATION,
    FINISHED,
    ROUTED,
    FakeService,
    ask,
    chat,
    completion,
    sse_events,
)

USAGE = {
    "prompt_tokens": 7,
    "completion_tokens": 3,
    "total_tokens": 10,
    "prompt_tokens_details": {"cached_tokens": 4},
}
TANDEM = {
    "strategy": "distributed-no-cache",
    "reason": "short",
    "workers": ["alpha", "beta"],
    "ttft_s": 0.25,
    "total_s": 0.75,
    "decode_tokens_per_s": 40.0,
    "token_ids": [5, 6],
    "cached_tokens": 4,
    "resumed": 1,
    "notes": ["The seed had no effect."],
}


def timeless(response) -> str:
    """The body without its time of creation."""
    return re.sub(r'"created":\d+', "", response.text)


def test_chat_answers_with_a_chat_completion():
    response = chat(FakeService())
    body = response.json()
    assert response.status_code == 200
    assert response.headers["x-tandem-strategy"] == "distributed-no-cache"
    assert body.pop("created") > 1_600_000_000
    assert body == {
        "id": "chatcmpl-r1",
        "object": "chat.completion",
        "model": "tiny",
        "choices": [
            {
                "index": 0,
                "message": {"role": "assistant", "content": 'Hello "wörld"\n', "refusal": None},
                "logprobs": None,
                "finish_reason": "stop",
            }
        ],
        "usage": USAGE,
        "tandem": TANDEM,
    }


def test_completion_answers_with_a_text_completion():
    body = completion(FakeService()).json()
    assert (body["id"], body["object"]) == ("cmpl-r1", "text_completion")
    assert body["choices"] == [{"index": 0, "text": 'Hello "wörld"\n', "logprobs": None, "finish_reason": "stop"}]
    assert (body["usage"], body["tandem"]) == (USAGE, TANDEM)


def test_chat_stream_gives_role_then_text_then_finish_reason_then_done():
    response = chat(FakeService(), stream=True)
    events = sse_events(response.text)
    assert response.headers["content-type"].startswith("text/event-stream")
    assert response.headers["x-tandem-strategy"] == "distributed-no-cache"
    assert [(item["choices"][0]["delta"], item["choices"][0]["finish_reason"]) for item in events] == [
        ({"role": "assistant", "content": ""}, None),
        ({"content": "Hello"}, None),
        ({"content": ' "wörld"\n'}, None),
        ({}, "stop"),
    ]
    assert {(item["id"], item["object"], item["model"]) for item in events} == {
        ("chatcmpl-r1", "chat.completion.chunk", "tiny")
    }
    assert not any("usage" in item for item in events)
    assert response.text.endswith("data: [DONE]\n\n")


def test_completion_stream_gives_text_then_finish_reason():
    events = sse_events(completion(FakeService(), stream=True).text)
    assert [(item["choices"][0]["text"], item["choices"][0]["finish_reason"]) for item in events] == [
        ("Hello", None),
        (' "wörld"\n', None),
        ("", "stop"),
    ]
    assert {item["object"] for item in events} == {"text_completion"}


def test_stream_with_usage_ends_with_a_chunk_that_says_usage_and_route():
    events = sse_events(chat(FakeService(), stream=True, stream_options={"include_usage": True}).text)
    assert all(item["usage"] is None for item in events[:-1])
    assert (events[-1]["choices"], events[-1]["usage"], events[-1]["tandem"]) == ([], USAGE, TANDEM)


THOUGHT_AND_CALLED = (
    ROUTED,
    Delta(text="", reasoning="hm", token_ids=(5,)),
    Delta(text="", reasoning=", yes", token_ids=(5,)),
    Delta(text="Let me see.", token_ids=(6,)),
    Delta(
        text="", calls=(ToolCall("c1", "weather", '{"city": "Bonn"}'), ToolCall("c2", "clock", "{}")), token_ids=(7,)
    ),
    msgspec.structs.replace(FINISHED, finish_reason="tool_calls"),
)


def test_thoughts_and_calls_stand_beside_the_content():
    (choice,) = chat(FakeService(*THOUGHT_AND_CALLED)).json()["choices"]
    message = choice["message"]
    assert (message["content"], message["reasoning_content"]) == ("Let me see.", "hm, yes")
    assert [(call["id"], call["type"], call["function"]["name"]) for call in message["tool_calls"]] == [
        ("c1", "function", "weather"),
        ("c2", "function", "clock"),
    ]
    assert message["tool_calls"][0]["function"]["arguments"] == '{"city": "Bonn"}'
    assert choice["finish_reason"] == "tool_calls"
    (only_called,) = chat(FakeService(ROUTED, *THOUGHT_AND_CALLED[4:])).json()["choices"]
    assert only_called["message"]["content"] is None


def test_thoughts_and_calls_are_streamed_in_pieces_of_their_own():
    events = sse_events(chat(FakeService(*THOUGHT_AND_CALLED), stream=True).text)
    deltas = [event["choices"][0]["delta"] for event in events]
    assert "".join(delta.get("reasoning_content", "") for delta in deltas) == "hm, yes"
    assert "".join(delta.get("content") or "" for delta in deltas) == "Let me see."
    called = {}
    for (piece,) in (delta["tool_calls"] for delta in deltas if "tool_calls" in delta):
        call = called.setdefault(piece["index"], {"arguments": ""})
        call |= {name: piece[name] for name in ("id", "type") if name in piece}
        call |= {"name": piece["function"]["name"]} if "name" in piece["function"] else {}
        call["arguments"] += piece["function"]["arguments"]
    assert called == {
        0: {"id": "c1", "type": "function", "name": "weather", "arguments": '{"city": "Bonn"}'},
        1: {"id": "c2", "type": "function", "name": "clock", "arguments": "{}"},
    }
    assert events[-1]["choices"][0]["finish_reason"] == "tool_calls"


def test_prefill_progress_goes_out_as_a_comment():
    assert "\n\n: prefill 4/7\n\n" in chat(FakeService(), stream=True).text


@pytest.mark.parametrize("stream", [False, True])
def test_wait_for_lost_workers_goes_out_as_a_comment_and_changes_nothing_else(stream):
    waits = FakeService(ROUTED, Waiting(workers=("alpha", "beta")), *ANSWER[1:])
    with_wait, without = timeless(completion(waits, stream=stream)), timeless(completion(FakeService(), stream=stream))
    comment = ": waiting for alpha, beta\n\n"
    assert (comment in with_wait) == stream
    assert with_wait.replace(comment, "") == without


@pytest.mark.parametrize("stream", [False, True])
def test_request_that_waits_for_its_first_plan_is_answered_like_any_other(stream):
    waits = FakeService(Waiting(workers=()), Waiting(workers=("beta",)), *ANSWER)
    response, plain = completion(waits, stream=stream), completion(FakeService(), stream=stream)
    assert response.status_code == 200
    assert ("x-tandem-strategy" in response.headers) == (not stream)
    comments = ": waiting for a plan\n\n: waiting for beta\n\n" if stream else ""
    assert timeless(response) == comments + timeless(plain)


def test_wait_without_an_end_is_an_error_event_in_a_stream_and_a_status_elsewhere():
    script = (Waiting(workers=("beta",)), Unavailable("worker beta did not come back within 60 s"))
    events = sse_events(completion(FakeService(*script), stream=True).text)
    assert [item["error"]["message"] for item in events] == ["Worker beta did not come back within 60 s."]
    assert completion(FakeService(*script)).status_code == 503


class Echo(Completions):
    """A surface of a test: completions under another path."""

    path = "/v1/echo"


def test_further_surface_needs_only_to_be_named():
    body = {"prompt": "hi"}
    response = ask(FakeService(), "POST", "/v1/echo", body, surfaces=(*SURFACES, Echo()))
    assert timeless(response) == timeless(completion(FakeService()))
    assert ask(FakeService(), "POST", "/v1/echo", body).status_code == 404


@pytest.mark.parametrize(
    ("error", "status", "code"),
    [
        (BadRequest("no", param="messages"), 400, "invalid_value"),
        (ContextTooLong("too long"), 400, "context_length_exceeded"),
        (TooLarge("too much"), 413, "request_too_large"),
        (QueueFull("full", retry_after_s=3), 429, "queue_full"),
        (Unavailable("lost"), 503, "unavailable"),
        (TandemError("odd"), 500, "internal_error"),
    ],
)
@pytest.mark.parametrize("stream", [False, True])
def test_error_before_the_first_event_has_its_own_status(error, status, code, stream):
    response = chat(FakeService(error), stream=stream)
    assert response.status_code == status
    assert response.json()["error"] == {
        "message": as_sentence(str(error)),
        "type": response.json()["error"]["type"],
        "param": getattr(error, "param", None),
        "code": code,
    }


def test_full_queue_says_when_to_come_back():
    assert chat(FakeService(QueueFull("full", retry_after_s=3))).headers["retry-after"] == "3"


def test_error_in_the_middle_of_a_stream_is_an_event_and_the_last_one():
    text = chat(FakeService(ROUTED, Delta(text="Hel", token_ids=(1,)), Unavailable("lost")), stream=True).text
    assert sse_events(text)[-1]["error"] == {
        "message": "Lost.",
        "type": "service_unavailable",
        "param": None,
        "code": "unavailable",
    }
    assert "[DONE]" not in text


def test_error_in_the_middle_of_an_unstreamed_answer_has_its_status():
    assert chat(FakeService(ROUTED, Delta(text="Hel", token_ids=(1,)), Unavailable("lost"))).status_code == 503


@pytest.mark.parametrize("stream", [False, True])
def test_a_bug_is_logged_and_not_shown(stream, caplog):
    response = chat(FakeService(ROUTED, ZeroDivisionError("secret")), stream=stream)
    error = sse_events(response.text)[-1]["error"] if stream else response.json()["error"]
    assert (error["code"], error["type"]) == ("internal_error", "server_error")
    assert "secret" not in response.text
    assert "Traceback" not in response.text
    assert "secret" in caplog.text


def test_service_that_ends_without_finished_is_an_error():
    assert chat(FakeService(ROUTED)).status_code == 500
    assert "error" in sse_events(chat(FakeService(ROUTED), stream=True).text)[-1]


def test_events_are_closed_after_every_answer():
    for script in (ANSWER, (ROUTED, Unavailable("lost")), (ROUTED, FINISHED, Delta(text="late", token_ids=()))):
        service = FakeService(*script)
        chat(service)
        assert service.closed.is_set()


def test_models_are_listed_and_found():
    service = FakeService()
    tiny = {"id": "tiny", "object": "model", "created": 1_700_000_000, "owned_by": "tandem", "root": "tiny"}
    tiny |= {"max_model_len": 512, "capabilities": ["completion", "chat"]}
    assert ask(service, "GET", "/v1/models").json() == {"object": "list", "data": [tiny]}
    assert ask(service, "GET", "/v1/models/tiny").json() == tiny
    assert ask(service, "GET", "/v1/models/none").json()["error"]["code"] == "model_not_found"


@pytest.mark.parametrize("name", ["tiny", "default", "/models/tiny-chat", "tiny-chat"])
def test_model_answers_to_its_id_default_directory_and_basename(name):
    names = ["/models/tiny-chat", "tiny-chat"]
    body = {"model": name, "prompt": "hi"}
    response = ask(FakeService(), "POST", "/v1/completions", body, model_ids=names)
    assert (response.status_code, response.json()["model"]) == (200, "tiny")


def test_other_models_are_not_found_where_that_is_wished():
    response = chat(FakeService(), app={"strict_model": True}, model="gpt-4")
    assert response.status_code == 404
    assert response.json()["error"]["code"] == "model_not_found"
    assert response.json()["error"]["param"] == "model"


def test_no_model_yet_is_unavailable():
    assert chat(FakeService(models=())).status_code == 503


@pytest.mark.parametrize(("state", "status"), [("ready", 200), ("degraded", 200), ("starting", 503), ("stopped", 503)])
def test_health_is_200_while_requests_are_answered(state, status):
    response = ask(FakeService(state=state), "GET", "/health")
    assert (response.status_code, response.json()) == (status, {"state": state})


def test_deleted_conversation_is_forgotten():
    service = FakeService()
    response = ask(service, "DELETE", "/v1/conversations/c1")
    assert (response.status_code, response.json()["deleted"], service.forgotten) == (200, True, ["c1"])


def test_models_of_other_hosts_are_the_service_s():
    assert ask(FakeService(), "GET", "/v1/cluster/models").json() == {"hosts": [{"name": "mac2", "models": None}]}


def test_figures_of_workers_are_the_service_s():
    answer = ask(FakeService(), "POST", "/v1/cluster/figures")
    assert answer.json() == {"workers": [{"name": "alpha", "stages": None}]}


def test_status_is_the_service_s():
    assert ask(FakeService(), "GET", "/status").json() == {"state": "ready", "workers": []}


def test_explain_takes_chat_and_raw_prompts_and_generates_nothing():
    for body in ({"messages": [{"role": "user", "content": "hi"}], "max_tokens": 5}, {"prompt": "hi", "max_tokens": 5}):
        service = FakeService()
        response = ask(service, "POST", "/v1/explain", body)
        assert response.json() == msgspec.to_builtins(EXPLANATION) | {"candidates": []}
        assert service.requests[0].max_tokens == 5
    both = {"messages": [{"role": "user", "content": "hi"}], "prompt": "hi"}
    assert ask(FakeService(), "POST", "/v1/explain", both).status_code == 400


def test_unknown_paths_and_wrong_methods_are_error_objects():
    missing, wrong = ask(FakeService(), "GET", "/v2/nothing"), ask(FakeService(), "GET", "/v1/chat/completions")
    assert (missing.status_code, missing.json()["error"]["code"]) == (404, "not_found")
    assert (wrong.status_code, wrong.json()["error"]["code"]) == (405, "method_not_allowed")
    assert wrong.headers["allow"] == "POST"


@pytest.mark.parametrize("header", [None, "Bearer wrong", "secret", "Bearer ", "Bearer s\u00e9cret"])
def test_key_is_asked_for_where_one_is_set(header):
    headers = {} if header is None else {"Authorization": header.encode("latin-1")}
    response = ask(FakeService(), "GET", "/v1/models", headers=headers, api_key="secret")
    assert (response.status_code, response.json()["error"]["code"]) == (401, "invalid_api_key")


def test_right_key_lets_in_and_health_needs_none():
    headers = {"Authorization": "Bearer secret"}
    assert ask(FakeService(), "GET", "/status", headers=headers, api_key="secret").status_code == 200
    assert ask(FakeService(), "GET", "/health", api_key="secret").status_code == 200


def test_stream_carries_odd_text_exactly_and_on_one_line():
    odd = 'a"\\\n\r\x00\x85\u2028\u2029\ue000é😀</script>'
    text = completion(FakeService(ROUTED, Delta(text=odd, token_ids=(1,)), FINISHED), stream=True).text
    first = text.splitlines()[0]
    assert sse_events(first + "\n\n")[0]["choices"][0]["text"] == odd


def test_stream_carries_odd_thoughts_on_one_line():
    odd = "a\x85\u2028\u2029é"
    text = chat(FakeService(ROUTED, Delta(text="", reasoning=odd, token_ids=(1,)), FINISHED), stream=True).text
    (thought,) = [line for line in text.splitlines() if "reasoning_content" in line]
    assert sse_events(thought + "\n\n")[0]["choices"][0]["delta"]["reasoning_content"] == odd
