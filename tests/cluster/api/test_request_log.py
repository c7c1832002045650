"""One line and one id for each request, whatever becomes of it."""

import asyncio
import json
import logging

import pytest

from cluster.api.failures import TALLY
from cluster.api.request_log import RequestLog
from cluster.serving.requests import Delta
from cluster.settings import KeySettings
from protocol.errors import BadRequest, Unavailable
from protocol.log_lines import formatter
from tests.support.fake_service import ROUTED, FakeService, app_over, ask

SECRET = "the-prompt-that-nobody-may-read"
CHAT = {"messages": [{"role": "user", "content": SECRET}]}
TEXT = Delta(text="an-answer", token_ids=(5, 6))


@pytest.fixture
def lines(caplog):
    caplog.set_level(logging.INFO, "cluster.api.request_log")
    return lambda: [record.getMessage() for record in caplog.records if record.name == "cluster.api.request_log"]


def fields(line):
    words = line.split(" ")
    assert words[0] == "request"
    return {"id": words[1]} | dict(word.split("=", 1) for word in words[2:])


def asked(service, body, *, path="/v1/chat/completions", headers=None, **options):
    return ask(service, "POST", path, body, headers=headers, **options)


@pytest.mark.parametrize("stream", [False, True])
def test_answer_has_a_line_with_what_it_took_and_nothing_that_was_said(lines, stream):
    headers = {"Authorization": "Bearer secret-key", "X-Request-Id": "from-the-client/7"}
    keys = (KeySettings(name="ann", key="secret-key"),)
    response = asked(FakeService(), CHAT | {"stream": stream}, headers=headers, keys=keys)
    (line,) = lines()
    found = fields(line)
    assert found.pop("took_s")
    assert found == {
        "id": "from-the-client/7",
        "key": "ann",
        "from": "127.0.0.1",
        "asked": "POST:/v1/chat/completions",
        "status": "200",
        "ended": "finished",
        "strategy": "distributed-no-cache",
        "prompt_tokens": "7",
        "completion_tokens": "3",
        "ttft_s": "0.25",
        "tokens_per_s": "40",
    }
    assert response.headers["x-request-id"] == "from-the-client/7"
    assert not any(said in line for said in (SECRET, "secret-key", "Hello"))


def test_log_in_json_has_figures_as_numbers_and_the_id_by_name(caplog):
    caplog.set_level(logging.INFO, "cluster.api.request_log")
    asked(FakeService(), CHAT, headers={"X-Request-Id": "mine"})
    line = json.loads(formatter("json").format(caplog.records[-1]))
    assert line["message"].startswith("request mine from=127.0.0.1 ")
    assert (line["request_id"], line["status"], line["strategy"]) == ("mine", 200, "distributed-no-cache")
    assert (line["prompt_tokens"], line["completion_tokens"], line["ttft_s"]) == (7, 3, 0.25)
    assert isinstance(line["took_s"], float)


@pytest.mark.parametrize("given", [None, "", "two words", "x" * 129, "é".encode(), b"a\tb"])
def test_request_without_a_sane_id_is_given_one(lines, given):
    response = asked(FakeService(), CHAT, headers={} if given is None else {"X-Request-Id": given})
    made = response.headers["x-request-id"]
    assert made.startswith("req_")
    assert len(made) == 28
    assert fields(lines()[0])["id"] == made
    assert made != asked(FakeService(), CHAT).headers["x-request-id"]


def test_refused_request_says_which_field(lines):
    response = asked(FakeService(), CHAT | {"temperature": 9})
    found = fields(lines()[0])
    assert (found["status"], found["error"], found["field"]) == ("400", "invalid_value", "temperature")
    assert "strategy" not in found
    assert response.headers["x-request-id"] == found["id"]
    service = FakeService(BadRequest("that is too much", param="max_tokens"))
    asked(service, CHAT)
    assert fields(lines()[1])["field"] == "max_tokens"


def test_what_a_client_wrote_is_one_short_word(lines):
    asked(FakeService(), CHAT | {"a\nstatus=200 é\x1b": 1}, strict=True)
    asked(FakeService(), None, path="/v1/%0Arequest x status=200/" + "y" * 500)
    first, second = map(fields, lines())
    assert (first["field"], first["status"]) == ("a_status=200___", "400")
    assert second["asked"].startswith("POST:/v1/_request_x_status=200/yyy")
    assert len(second["asked"]) < 140


def test_stream_that_fails_is_told_from_one_that_was_finished(lines):
    asked(FakeService(ROUTED, TEXT, Unavailable("no plan")), CHAT | {"stream": True})
    found = fields(lines()[0])
    assert (found["status"], found["ended"], found["error"]) == ("200", "failed", "unavailable")
    assert (found["prompt_tokens"], found["completion_tokens"]) == ("7", "2")


def test_client_that_left_is_counted_with_what_was_generated(lines):
    service = FakeService(ROUTED, TEXT, ...)

    async def leave():
        body = [{"type": "http.request", "body": b'{"prompt": "x", "stream": true}', "more_body": False}]

        async def receive():
            if body:
                return body.pop()
            await service.waiting.wait()
            return {"type": "http.disconnect"}

        async def send(_message):
            pass

        scope = {"type": "http", "method": "POST", "path": "/v1/completions", "headers": [(b"host", b"localhost")]}
        await app_over(service)(scope | {"query_string": b"", "client": ("10.0.0.7", 1)}, receive, send)

    asyncio.run(leave())
    found = fields(lines()[0])
    assert (found["ended"], found["completion_tokens"], found["from"]) == ("left", "2", "10.0.0.7")


def test_who_only_looks_has_no_line_unless_refused(lines):
    for path in ("/health", "/status", "/"):
        ask(FakeService(), "GET", path)
    assert lines() == []
    assert ask(FakeService(), "GET", "/status", api_key="k").status_code == 401
    assert fields(lines()[0])["status"] == "401"
    ask(FakeService(), "GET", "/v1/models")
    assert fields(lines()[1])["asked"] == "GET:/v1/models"


def test_only_requests_that_took_something_are_written_however_many(caplog):
    caplog.set_level(logging.INFO, "cluster.api.request_log")
    asked(FakeService(), CHAT)
    asked(FakeService(), {})
    assert [hasattr(record, "is_each") for record in caplog.records if record.msg == "%s"] == [True, False]


def test_id_goes_beside_the_headers_that_are_there_and_bodies_pass():
    passed = []

    async def run():
        async def app(scope, receive, send):
            assert scope[TALLY].strategy is None
            await send({"type": "http.response.start", "status": 200, "headers": [(b"a", b"b")]})
            await send({"type": "http.response.body", "body": b"x"})

        async def send(message):
            passed.append(message)

        await RequestLog(app)({"type": "http", "method": "GET", "path": "/", "headers": []}, None, send)

    asyncio.run(run())
    assert passed[0]["headers"][0] == (b"a", b"b")
    assert passed[1] == {"type": "http.response.body", "body": b"x"}
