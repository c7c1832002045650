"""What an answer says of guesses, and the text that a request gives to be guessed."""

import msgspec
import pytest

from cluster.api.surfaces import SURFACES
from tests.support.fake_service import ANSWER, FINISHED, FakeService, chat, completion

GUESSED = (*ANSWER[:-1], msgspec.structs.replace(FINISHED, proposed=9, accepted=6))
PARTS = [{"type": "text", "text": "one "}, {"type": "text", "text": "two"}]


def test_answer_says_how_many_of_its_tokens_were_guessed():
    for body in (chat(FakeService(*GUESSED)).json(), completion(FakeService(*GUESSED)).json()):
        assert body["usage"]["completion_tokens_details"] == {
            "accepted_prediction_tokens": 6,
            "rejected_prediction_tokens": 3,
        }
        assert body["tandem"]["draft"] == {"proposed": 9, "accepted": 6}


def test_answer_without_guesses_says_nothing_of_them():
    body = chat(FakeService()).json()
    assert "completion_tokens_details" not in body["usage"]
    assert "draft" not in body["tandem"]


@pytest.mark.parametrize(("content", "text"), [("one two", "one two"), (PARTS, "one two"), ("", ""), ([], "")])
def test_prediction_is_text_or_parts_of_text(content, text):
    service = FakeService()
    response = chat(service, prediction={"type": "content", "content": content})
    assert response.status_code == 200
    assert service.requests[-1].prediction == text


@pytest.mark.parametrize(
    ("prediction", "named"),
    [
        ("text", "prediction"),
        ({"content": "text"}, "prediction.type"),
        ({"type": "content"}, "prediction.content"),
        ({"type": "content", "content": 5}, "prediction.content"),
        ({"type": "content", "content": [{"type": "image"}]}, "prediction.content[0]"),
        ({"type": "content", "content": ["text"]}, "prediction.content[0]"),
    ],
)
def test_prediction_of_another_form_is_refused(prediction, named):
    response = chat(FakeService(), prediction=prediction)
    assert response.status_code == 400
    assert response.json()["error"]["param"] == named


def test_every_way_to_complete_a_text_takes_a_prediction():
    taking = [surface.path for surface in SURFACES if "prediction" in str(surface.schema())]
    assert {"/v1/chat/completions", "/v1/completions"} <= set(taking)
