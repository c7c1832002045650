"""GET /v1/cluster/trace before there is anything to record: for how long, and who may."""

import pytest

from tests.support.fake_service import FakeService, ask


@pytest.mark.parametrize("query", ["?seconds=", "?seconds=0", "?seconds=601", "?seconds=1.5", "?seconds=long"])
def test_seconds_are_a_whole_number_within_ten_minutes(query):
    answer = ask(FakeService(), "GET", f"/v1/cluster/trace{query}")
    assert (answer.status_code, answer.json()["error"]["param"]) == (400, "seconds")


def test_recording_needs_the_key():
    answer = ask(FakeService(), "GET", "/v1/cluster/trace?seconds=1", api_key="k" * 16)
    assert answer.status_code == 401


def test_who_asks_for_the_headers_alone_waits_for_nothing():
    answer = ask(FakeService(), "HEAD", "/v1/cluster/trace")
    assert (answer.status_code, answer.content) == (200, b"")
    assert answer.headers["content-type"] == "application/json"
