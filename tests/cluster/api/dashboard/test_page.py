"""The page and its files: who gets it, and what browsers are told about it."""

import re
from html.parser import HTMLParser

import pytest

from tests.support.fake_service import FakeService, ask


def get(path, method="GET", **headers):
    return ask(FakeService(), method, path, headers={name.replace("_", "-"): value for name, value in headers.items()})


class References(HTMLParser):
    """What a page refers to, and whether it holds scripts or styles."""

    def __init__(self):
        super().__init__()
        self.found, self.inline = [], []

    def handle_starttag(self, tag, attrs):
        given = dict(attrs)
        self.found += [given[name] for name in ("src", "href") if name in given and not given[name].startswith("#")]
        if (
            (tag == "script" and "src" not in given)
            or tag == "style"
            or "style" in given
            or any(n[:2] == "on" for n in given)
        ):
            self.inline.append((tag, attrs))


@pytest.mark.parametrize(
    ("accept", "is_page"),
    [
        ("text/html,application/xhtml+xml,*/*;q=0.8", True),
        ("*/*", True),
        ("text/*", True),
        ("application/json, TEXT/HTML", True),
        ("", True),
        ("application/json", False),
        ("text/plain", False),
        ("text/html;q=0, text/plain", False),
        ("text/html;q=0.0", False),
        ("text/html;q=0.1", True),
    ],
)
def test_page_is_for_those_who_take_one(accept, is_page):
    answer = get("/", accept=accept)
    assert answer.headers["content-type"].startswith("text/html" if is_page else "text/plain")
    assert "Ollama is running" in answer.text
    assert (answer.text == "Ollama is running") is not is_page
    assert "Accept" in answer.headers["vary"]


def test_page_runs_nothing_but_its_files_and_all_of_them_are_there():
    found = References()
    found.feed(get("/").text)
    assert found.found
    assert not found.inline
    for reference in found.found:
        assert re.fullmatch(r"dashboard/[\w.-]+", reference)
        assert get(f"/{reference}").status_code == 200, reference


@pytest.mark.parametrize("path", ["/", "/dashboard/main.js"])
def test_browsers_are_told_what_the_page_may_do(path):
    answer = get(path)
    policy = dict(part.strip().split(" ", 1) for part in answer.headers["content-security-policy"].split(";"))
    assert policy["default-src"] == "'self'"
    assert policy["frame-ancestors"] == "'none'"
    assert "unsafe" not in answer.headers["content-security-policy"]
    assert answer.headers["x-content-type-options"] == "nosniff"
    assert answer.headers["referrer-policy"] == "no-referrer"


@pytest.mark.parametrize("path", ["/", "/dashboard/main.js"])
def test_what_a_browser_has_is_not_sent_again(path):
    first = get(path)
    assert first.headers["cache-control"] == "no-cache"
    again = get(path, if_none_match=f'"other", W/{first.headers["etag"]}')
    assert (again.status_code, again.content) == (304, b"")
    assert get(path, if_none_match='"other"').content == first.content
    assert get(path, method="HEAD").headers["etag"] == first.headers["etag"]


@pytest.mark.parametrize("name", ["none.js", "%2e%2e", "%2e%2e%2froutes.py", "files.py", "feed/x"])
def test_there_are_no_other_files(name):
    assert get(f"/dashboard/{name}").status_code == 404


def test_page_needs_no_key_and_what_it_asks_for_does():
    assert ask(FakeService(), "GET", "/", api_key="k").status_code == 200
    assert ask(FakeService(), "GET", "/dashboard/main.js", api_key="k").status_code == 200
    assert ask(FakeService(), "GET", "/status", api_key="k").status_code == 401
    assert ask(FakeService(), "DELETE", "/v1/requests/1", api_key="k").status_code == 401
