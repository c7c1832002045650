"""By which names the model is asked for, and which of them are listed."""

import msgspec
import pytest

from tests.support.fake_service import MODEL, FakeService, ask

HUB = msgspec.structs.replace(MODEL, id="acme/tiny-chat", abilities=("tools",))


def hub_service():
    return FakeService(models=(HUB,))


def asked_for(name, **options):
    body = {"model": name, "prompt": "hi"}
    return ask(hub_service(), "POST", "/v1/completions", body, **options)


@pytest.mark.parametrize(
    "name", ["acme/tiny-chat", "tiny-chat", "tiny-chat:latest", "default", "gpt-4o", "gpt-4o:latest"]
)
def test_names_of_the_model_are_served_without_a_note_also_strictly(name):
    answer = asked_for(name, aliases=("gpt-4o",), strict_model=True).json()
    assert answer["model"] == "acme/tiny-chat"
    assert not any("not served" in note for note in answer["tandem"]["notes"])


def test_other_names_are_served_with_a_note_unless_any_will_do():
    answer = asked_for("acme", aliases=("gpt-4o",)).json()
    assert any("'acme' is not served here" in note for note in answer["tandem"]["notes"])
    assert asked_for("acme", aliases=("gpt-4o",), strict_model=True).status_code == 404
    answer = asked_for("acme", aliases=("*",), strict_model=True).json()
    assert answer["model"] == "acme/tiny-chat"
    assert not any("not served" in note for note in answer["tandem"]["notes"])


def test_models_are_listed_under_each_name_with_what_they_can_do():
    models = ask(hub_service(), "GET", "/v1/models", aliases=("gpt-4o", "*")).json()["data"]
    assert [(each["id"], each["root"]) for each in models] == [
        ("acme/tiny-chat", "acme/tiny-chat"),
        ("gpt-4o", "acme/tiny-chat"),
    ]
    assert {each["max_model_len"] for each in models} == {512}
    assert models[1]["capabilities"] == ["completion", "chat", "tools"]


def test_one_model_is_found_by_each_name_and_an_alias_keeps_its_own():
    def found(name):
        return ask(hub_service(), "GET", f"/v1/models/{name}", aliases=("gpt-4o",)).json().get("id")

    assert [found(name) for name in ("acme/tiny-chat", "gpt-4o", "tiny-chat", "gpt-4")] == [
        "acme/tiny-chat",
        "gpt-4o",
        "acme/tiny-chat",
        None,
    ]


def test_ollama_s_clients_see_the_aliases_too():
    models = ask(hub_service(), "GET", "/api/tags", aliases=("gpt-4o",)).json()["models"]
    assert [each["model"] for each in models] == ["acme/tiny-chat", "gpt-4o"]
