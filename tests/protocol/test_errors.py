"""Errors are clauses where they are raised, and sentences where they are shown."""

import pytest

from protocol.errors import BadRequest, as_sentence


@pytest.mark.parametrize(
    ("clause", "name", "shown"),
    [
        ("the prompt is empty; send some text", None, "The prompt is empty; send some text."),
        ("unknown key prot; did you mean port?", None, "Unknown key prot; did you mean port?"),
        ("already stopped, try again", None, "Already stopped, try again."),
        ("The body is whole.", None, "The body is whole."),
        ("worker-1 was lost", None, "worker-1 was lost."),
        ("api.port must be a port number", None, "api.port must be a port number."),
        ("/no/such.toml does not exist", None, "/no/such.toml does not exist."),
        ("--port must be free", None, "--port must be free."),
        ("messages is missing", "messages", "messages is missing."),
        ("messages is missing", "prompt", "Messages is missing."),
        ("'x' is no size", None, "'x' is no size."),
    ],
)
def test_clause_is_completed_where_it_is_shown(clause, name, shown):
    assert as_sentence(clause, name) == shown


def test_error_object_shows_a_sentence_that_begins_with_its_field():
    assert BadRequest("n asks for several answers", param="n").body()["error"] == {
        "message": "n asks for several answers.",
        "type": "invalid_request_error",
        "param": "n",
        "code": "invalid_value",
    }
