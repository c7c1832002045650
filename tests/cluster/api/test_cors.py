"""Pages of other sites: those that are configured are served, and told so; all others stay outside."""

import pytest

from tests.support.fake_service import FakeService, ask

APP = "https://app.example"
CHAT = {"messages": [{"role": "user", "content": "hi"}]}
PREFLIGHT = {
    "Access-Control-Request-Method": "POST",
    "Access-Control-Request-Headers": "authorization,content-type,x-stainless-os",
    "Access-Control-Request-Private-Network": "true",
    "Sec-Fetch-Site": "cross-site",
}


def asked(origin, *, method="POST", body=None, headers=None, cors=(APP,), **options):
    headers = {"Origin": origin} | (headers or {})
    return ask(FakeService(), method, "/v1/chat/completions", body, headers=headers, cors=cors, **options)


@pytest.mark.parametrize("cors", [(APP,), ("*",), ("https://other.example", APP)])
@pytest.mark.parametrize("stream", [False, True])
def test_page_of_a_configured_origin_reads_the_answer_and_its_headers(cors, stream):
    response = asked(APP, body=CHAT | {"stream": stream}, headers={"Sec-Fetch-Site": "cross-site"}, cors=cors)
    assert response.status_code == 200
    assert response.headers["access-control-allow-origin"] in (APP, "*")
    assert "X-Request-Id" in response.headers["access-control-expose-headers"]
    assert "access-control-allow-credentials" not in response.headers


def test_preflight_is_answered_without_a_key_and_the_request_needs_one():
    asks = asked(APP, method="OPTIONS", headers=PREFLIGHT, api_key="secret")
    assert asks.status_code == 200
    assert asks.headers["access-control-allow-origin"] == APP
    assert "POST" in asks.headers["access-control-allow-methods"]
    assert "x-stainless-os" in asks.headers["access-control-allow-headers"]
    assert asks.headers["access-control-allow-private-network"] == "true"
    without = asked(APP, body=CHAT, api_key="secret")
    assert (without.status_code, without.headers["access-control-allow-origin"]) == (401, APP)
    assert asked(APP, body=CHAT, headers={"Authorization": "Bearer secret"}, api_key="secret").status_code == 200


@pytest.mark.parametrize(
    "origin",
    ["https://evil.example", "http://app.example", "https://app.example:8443", "https://app.example.evil", "null"],
)
@pytest.mark.parametrize("method", ["POST", "OPTIONS"])
def test_page_of_any_other_origin_is_refused(origin, method):
    response = asked(origin, method=method, body=CHAT, headers=PREFLIGHT)
    assert (response.status_code, response.json()["error"]["code"]) == (403, "forbidden_origin")
    assert "access-control-allow-origin" not in response.headers


def test_without_the_setting_nothing_is_told_and_foreign_pages_are_refused():
    assert asked(APP, method="OPTIONS", headers=PREFLIGHT, cors=()).status_code == 403
    local = asked("http://localhost:3000", body=CHAT, cors=())
    assert (local.status_code, "access-control-allow-origin" in local.headers) == (200, False)


def test_name_that_was_pointed_here_is_refused_whatever_origins_may():
    assert asked(APP, body=CHAT, headers={"Host": "rebound.example"}, cors=("*",)).status_code == 403
