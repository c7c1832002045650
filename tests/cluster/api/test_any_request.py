"""Requests of any kind, right, nearly right and wrong: each has an answer, and the answer the form that is promised."""

import json

from hypothesis import given, settings
from hypothesis import strategies as st

from cluster.api.surfaces import chat as chat_surface
from cluster.api.surfaces import completions as completions_surface
from cluster.api.surfaces import ollama as ollama_surfaces
from strategy.situation import Strategy
from strategy.wishes import Mode
from tests.support.fake_service import FakeService, ask, sse_events


def any_json(texts):
    """Values of every kind, with these texts."""
    return st.recursive(
        st.none() | st.booleans() | st.integers() | st.floats() | texts,
        lambda inner: st.lists(inner, max_size=4) | st.dictionaries(texts, inner, max_size=4),
        max_leaves=8,
    )


ANY_TEXT = st.text(st.characters(), max_size=20)  # with halves of pairs
ANY_JSON = any_json(ANY_TEXT)
SOME_TEXT = st.text(min_size=1, max_size=20)
RIGHT = {
    "model": st.sampled_from(["tiny", "default"]),
    "max_tokens": st.integers(1, 2**31 - 1),
    "temperature": st.floats(0, 2),
    "top_p": st.floats(0.01, 1),
    "top_k": st.integers(0, 1000),
    "min_p": st.floats(0, 1),
    "seed": st.integers(-(2**63), 2**64 - 1),
    "stop": SOME_TEXT | st.lists(SOME_TEXT, min_size=1, max_size=4),
    "repetition_penalty": st.floats(0.1, 10),
    "presence_penalty": st.floats(-2, 2),
    "frequency_penalty": st.floats(-2, 2),
    "logit_bias": st.dictionaries(st.integers(0, 300).map(str), st.floats(-100, 100), max_size=4),
    "stream": st.booleans(),
    "strategy": st.sampled_from([item.value for item in Strategy]),
    "use_distributed_inference": st.sampled_from([item.value for item in Mode]),
    "conversation": SOME_TEXT,
    "request_timeout_s": st.floats(0.001, 86400),
    "n": st.just(1),
    "user": SOME_TEXT,
    "metadata": st.dictionaries(SOME_TEXT, SOME_TEXT, max_size=3),
}
MESSAGE = st.fixed_dictionaries(
    {"role": st.sampled_from(["system", "user", "assistant"]), "content": SOME_TEXT},
)
PROMPTS = {
    "/v1/chat/completions": {"messages": st.lists(MESSAGE, min_size=1, max_size=3)},
    "/v1/completions": {"prompt": SOME_TEXT | st.lists(st.integers(0, 300), min_size=1, max_size=5)},
}
NAMES = sorted({*chat_surface.FIELDS, *completions_surface.FIELDS})
PATHS = [
    *PROMPTS,
    "/v1/explain",
    "/v1/models",
    "/v1/models/tiny",
    "/v1/conversations/c",
    "/v1/cluster/models",
    "/v1/cluster/figures",
    "/tokenize",
    "/detokenize",
    "/api/chat",
    "/api/generate",
    "/api/show",
    "/api/tags",
    "/health",
    "/status",
    "/",
    "/dashboard/main.js",
    "/v1/requests/1",
    "/v1",
]
STATUSES = {200, 202, 400, 401, 403, 404, 405, 413}

path_and_right_body = st.sampled_from(sorted(PROMPTS)).flatmap(
    lambda path: st.tuples(st.just(path), st.fixed_dictionaries(PROMPTS[path], optional=RIGHT))
)


def check_form(response):
    """An error says what it is; an answer is whole, a stream ended."""
    assert response.status_code in STATUSES, response.text
    if response.status_code >= 400:
        error = response.json()["error"]
        if type(error) is str:  # as Ollama says it
            assert error
            return
        assert set(error) == {"message", "type", "param", "code"}
        assert error["message"]
        assert error["type"] != "server_error"
    elif response.headers["content-type"].startswith("text/event-stream"):
        assert response.text.endswith("data: [DONE]\n\n")
        assert sse_events(response.text)
    elif response.headers["content-type"].startswith("application/x-ndjson"):
        assert json.loads(response.text.splitlines()[-1])["done"]
    elif response.content and not response.headers["content-type"].startswith("text/"):
        assert type(response.json()) is dict


@given(path_and_right_body)
@settings(max_examples=80)
def test_what_is_right_is_answered(asked):
    path, body = asked
    response = ask(FakeService(), "POST", path, body)
    assert response.status_code == 200, response.text
    check_form(response)
    assert response.headers["content-type"].startswith("text/event-stream") == body.get("stream", False)


@given(path_and_right_body, st.dictionaries(st.sampled_from(NAMES) | ANY_TEXT, ANY_JSON, min_size=1, max_size=3))
@settings(max_examples=150)
def test_fields_of_any_value_are_taken_or_refused(asked, others):
    path, body = asked
    check_form(ask(FakeService(), "POST", path, body | others))


@given(
    st.sampled_from(["/api/chat", "/api/generate"]),
    st.dictionaries(
        st.sampled_from(sorted({*ollama_surfaces.CHAT_FIELDS, *ollama_surfaces.GENERATE_FIELDS, "options"})) | ANY_TEXT,
        ANY_JSON,
        max_size=3,
    ),
    st.booleans(),
)
@settings(max_examples=100)
def test_fields_of_any_value_are_taken_or_refused_in_the_words_of_ollama(path, fields, says_something):
    said = {"messages": [{"role": "user", "content": "hi"}], "prompt": "hi"} if says_something else {}
    check_form(ask(FakeService(), "POST", path, said | fields))


@given(
    st.sampled_from(["GET", "POST", "PUT", "PATCH", "DELETE", "OPTIONS"]),
    st.sampled_from(PATHS),
    st.binary(max_size=60) | ANY_JSON.map(lambda value: json.dumps(value).encode()),
    st.dictionaries(
        st.sampled_from(["accept", "content-type", "authorization", "x"]), st.from_regex(r"\A[!-~]{0,20}\Z")
    ),
)
@settings(max_examples=150)
def test_any_bytes_to_any_path_have_an_answer(method, path, content, headers):
    check_form(ask(FakeService(), method, path, content=content, headers=headers))
