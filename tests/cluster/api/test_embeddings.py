"""Texts to vectors over HTTP: OpenAI's and Ollama's shapes, what is refused by its name, and clients that leave."""

import asyncio
import base64
import json
from array import array

import pytest

from cluster.api.embedding_routes import MAX_INPUTS
from cluster.serving.requests import TextPrompt, TokensPrompt
from protocol.errors import ContextTooLong
from tests.support.fake_service import FakeService, app_over, ask

NUMBERS = pytest.approx([0.6, 0.8])


def embeddings(service=None, *, path="/v1/embeddings", app=None, **fields):
    return ask(service or FakeService(), "POST", path, fields, **(app or {}))


def asked(**fields):
    """What the service is asked for by a body."""
    service = FakeService()
    response = embeddings(service, **fields)
    assert response.status_code == 200, response.text
    return service.requests[0]


def test_answer_has_openai_s_shape_and_says_how_it_was_routed():
    response = embeddings(model="tiny", input=["a", "b"])
    assert response.status_code == 200
    assert response.headers["X-Tandem-Strategy"] == "distributed-no-cache"
    answer = response.json()
    told = answer.pop("tandem")
    assert (told["strategy"], told["workers"], told["token_ids"]) == ("distributed-no-cache", ["alpha", "beta"], [])
    assert answer == {
        "object": "list",
        "data": [{"object": "embedding", "index": index, "embedding": NUMBERS} for index in range(2)],
        "model": "tiny",
        "usage": {"prompt_tokens": 7, "total_tokens": 7},
    }


def test_vectors_in_base64_are_the_bytes_of_their_numbers():
    (item,) = embeddings(input="a", encoding_format="base64").json()["data"]
    assert array("f", base64.b64decode(item["embedding"])).tolist() == NUMBERS


@pytest.mark.parametrize(
    ("sent", "prompts", "names"),
    [
        ("hi", (TextPrompt("hi"),), ("input",)),
        ("", (TextPrompt(""),), ("input",)),
        ([5, 6], (TokensPrompt((5, 6)),), ("input",)),
        (["hi"], (TextPrompt("hi"),), ("input[0]",)),
        (["hi", "ho"], (TextPrompt("hi"), TextPrompt("ho")), ("input[0]", "input[1]")),
        ([[5, 6], [7]], (TokensPrompt((5, 6)), TokensPrompt((7,))), ("input[0]", "input[1]")),
    ],
)
def test_texts_and_token_ids_alone_and_in_lists(sent, prompts, names):
    request = asked(input=sent)
    assert (request.prompts, request.fields) == (prompts, names)
    assert (request.dimensions, request.truncate) == (None, False)


def test_how_it_runs_may_be_said():
    request = asked(input="hi", strategy="distributed-cached", request_timeout_s=5, dimensions="3")
    assert (request.asked.strategy, request.asked.timeout_s, request.dimensions) == ("distributed-cached", 5.0, 3)
    assert request.asked.client


def test_hints_are_accepted_and_named():
    notes = embeddings(input="hi", user="me", input_type="query", model="text-embedding-3-small").json()["tandem"][
        "notes"
    ]
    assert notes[0] == "The field user has no effect here."
    assert notes[1] == "The field input_type has no effect here."
    assert notes[2].startswith("'text-embedding-3-small' is not served here")
    strict = embeddings(input="hi", input_type="query", app={"strict": True})
    assert (strict.status_code, strict.json()["error"]["param"]) == (400, "input_type")


@pytest.mark.parametrize(
    ("fields", "param"),
    [
        ({}, "input"),
        ({"input": []}, "input"),
        ({"input": None}, "input"),
        ({"input": 5}, "input"),
        ({"input": {"text": "hi"}}, "input"),
        ({"input": [["a"]]}, "input[0][0]"),
        ({"input": ["a", 5]}, "input[1]"),
        ({"input": ["a", []]}, "input[1]"),
        ({"input": [[5], [-1]]}, "input[1][0]"),
        ({"input": [5, "a"]}, "input[1]"),
        ({"input": [5, True]}, "input[1]"),
        ({"input": ["a"] * (MAX_INPUTS + 1)}, "input"),
        ({"input": "a", "encoding_format": "int8"}, "encoding_format"),
        ({"input": "a", "dimensions": 0}, "dimensions"),
        ({"input": "a", "dimensions": 1.5}, "dimensions"),
        ({"input": "a", "strategy": "fastest"}, "strategy"),
        ({"input": "a", "truncate_prompt_tokens": 5}, "truncate_prompt_tokens"),
    ],
)
def test_bad_shape_is_refused_by_name(fields, param):
    service = FakeService()
    response = embeddings(service, **fields)
    assert (response.status_code, response.json()["error"]["param"]) == (400, param)
    assert service.requests == []


@pytest.mark.parametrize("path", ["/v1/embeddings", "/api/embed"])
def test_what_the_service_refuses_goes_out_in_the_words_of_the_path(path):
    too_long = ContextTooLong("input[1] has 9 tokens but the model's context is 8 tokens; shorten it", param="input[1]")
    response = embeddings(FakeService(too_long), path=path, input=["a", "b"])
    assert response.status_code == 400
    error = response.json()["error"]
    if path == "/api/embed":
        assert error == "input[1] has 9 tokens but the model's context is 8 tokens; shorten it."
    else:
        assert (error["param"], error["code"]) == ("input[1]", "context_length_exceeded")


def test_ollama_embeds_a_list():
    answer = embeddings(path="/api/embed", model="tiny:latest", input=["a", "b"], options={"num_ctx": 9}).json()
    assert answer.pop("tandem")["strategy"] == "distributed-no-cache"
    assert answer == {
        "model": "tiny",
        "embeddings": [NUMBERS, NUMBERS],
        "total_duration": 750_000_000,
        "load_duration": 0,
        "prompt_eval_count": 7,
    }
    assert [asked(path="/api/embed", input="a", **more).truncate for more in ({}, {"truncate": False})] == [True, False]


def test_ollama_s_older_path_embeds_one_text():
    answer = embeddings(path="/api/embeddings", model="tiny", prompt="a", keep_alive="5m").json()
    assert answer.pop("tandem")["notes"][0] == "The field keep_alive has no effect here."
    assert answer == {"embedding": NUMBERS}
    assert asked(path="/api/embeddings", prompt="a").fields == ("prompt",)


@pytest.mark.parametrize(
    ("path", "answer"),
    [("/api/embed", {"model": "tiny", "embeddings": []}), ("/api/embeddings", {"embedding": []})],
)
def test_no_text_asks_ollama_for_the_model_alone(path, answer):
    service = FakeService()
    assert embeddings(service, path=path, model="tiny").json() == answer
    assert service.requests == []


def test_client_that_leaves_ends_what_it_asked_for():
    service, sent = FakeService(...), []
    body = json.dumps({"input": "hi"}).encode()
    arriving = [{"type": "http.request", "body": body, "more_body": False}]
    scope = {
        "type": "http",
        "method": "POST",
        "path": "/v1/embeddings",
        "query_string": b"",
        "headers": [(b"host", b"localhost")],
    }

    async def receive():
        if arriving:
            return arriving.pop()
        await service.waiting.wait()
        return {"type": "http.disconnect"}

    async def send(message):
        sent.append(message)

    async def run():
        await app_over(service)(scope, receive, send)
        assert service.closed.is_set()

    asyncio.run(run())
    assert sent == []
