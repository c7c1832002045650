"""Text to token ids and back over HTTP, as vLLM's clients ask for it."""

import pytest

from cluster.serving.requests import ChatPrompt, TextPrompt
from tests.support.fake_service import FakeService, ask

USER = [{"role": "user", "content": "hi"}]


def tokenize(service=None, **fields):
    return ask(service or FakeService(), "POST", "/tokenize", fields)


def detokenize(**fields):
    return ask(FakeService(), "POST", "/detokenize", fields)


def test_text_becomes_tokens():
    response = tokenize(model="tiny", prompt="hi")
    assert response.status_code == 200
    assert response.json() == {"tokens": [1, 104, 105], "count": 3, "max_model_len": 512}


def test_text_without_special_tokens_is_bare():
    service = FakeService()
    assert tokenize(service, prompt="hi", add_special_tokens=False).json()["tokens"] == [104, 105]
    assert [request.prompt for request in service.requests] == [TextPrompt("hi", bare=True)]
    assert tokenize(prompt="", add_special_tokens=False).json()["tokens"] == []
    assert tokenize(prompt="", add_special_tokens=True).json()["tokens"] == [1]


def test_messages_become_the_tokens_of_their_prompt():
    service = FakeService()
    tools = [{"type": "function", "function": {"name": "clock"}}]
    body = {"add_generation_prompt": True, "continue_final_message": False, "add_special_tokens": False, "tools": tools}
    assert tokenize(service, messages=USER, **body).json()["count"] == 3
    assert [request.prompt for request in service.requests] == [ChatPrompt(tuple(USER), tuple(tools))]


def test_tokens_become_text():
    assert detokenize(model="tiny", tokens=[104, 105]).json() == {"prompt": "hi"}
    assert detokenize(tokens=[]).json() == {"prompt": ""}


def refused(response, param):
    assert response.status_code == 400, response.text
    return response.json()["error"]["param"] == param


@pytest.mark.parametrize(
    ("body", "param"),
    [
        ({}, "prompt"),
        ({"prompt": 5}, "prompt"),
        ({"prompt": "hi", "messages": USER}, "prompt"),
        ({"prompt": "hi", "add_special_tokens": 1}, "add_special_tokens"),
        ({"prompt": "hi", "return_token_strs": True}, "return_token_strs"),
        ({"messages": USER, "add_special_tokens": True}, "add_special_tokens"),
        ({"messages": USER, "add_generation_prompt": False}, "add_generation_prompt"),
        ({"messages": USER, "continue_final_message": True}, "continue_final_message"),
    ],
)
def test_what_cannot_be_tokenized_is_refused_with_its_field(body, param):
    assert refused(tokenize(**body), param)


@pytest.mark.parametrize("tokens", [None, "hi", [256], {}])
def test_what_are_no_tokens_is_refused(tokens):
    assert refused(detokenize(tokens=tokens), "tokens")


@pytest.mark.parametrize("token", [-1, 1.5, True, 2**31, "x"])
def test_what_is_no_token_is_refused_by_its_place(token):
    assert refused(detokenize(tokens=[104, token]), "tokens[1]")


def test_other_models_have_no_tokens_where_names_are_strict():
    for path, body in (("/tokenize", {"prompt": "hi"}), ("/detokenize", {"tokens": [104]})):
        response = ask(FakeService(), "POST", path, body | {"model": "other"}, strict_model=True)
        assert response.status_code == 404


@pytest.mark.parametrize(
    ("path", "body"),
    [("/tokenize", {"prompt": "hi"}), ("/detokenize", {"tokens": [104]}), ("/api/show", {"model": "tiny"})],
)
def test_fields_without_effect_are_named_or_refused_where_that_is_wished(path, body):
    assert "tandem" not in ask(FakeService(), "POST", path, body).json()
    body |= {"model": "gpt-4", "colour": "red"}
    notes = ask(FakeService(), "POST", path, body).json()["tandem"]["notes"]
    assert notes == ["The field colour has no effect here.", "'gpt-4' is not served here, 'tiny' answered."]
    assert ask(FakeService(), "POST", path, body, strict=True).status_code == 400
