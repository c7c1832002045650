"""Pages of this machine's Chromium, without a window: what a visitor would see, and what must never happen while one looks.

`visit` is a fixture: import it, and `browser` beside it, into the module that needs them. Not for longer than a module: while
Playwright runs, its thread seems to have a running event loop, which tests that run their own would trip over.
"""

import contextlib
import shutil
import sys
from collections.abc import Iterator
from pathlib import Path
from urllib.parse import urlsplit

import pytest
from playwright.sync_api import Browser, Page, expect, sync_playwright

NAMES = ("chromium", "chromium-browser", "google-chrome", "google-chrome-stable", "chrome")
ON_MACOS = ("Google Chrome", "Chromium")
WIDE, NARROW = (1280, 860), (375, 812)
# Until something is there, on a machine that may be busy with other things.
PATIENCE_MS = 30_000


def chromium() -> str | None:
    """The Chromium of this machine; None where there is none."""
    places = [Path("/Applications", f"{name}.app", "Contents/MacOS", name) for name in ON_MACOS]
    installed = [str(place) for place in places if sys.platform == "darwin" and place.is_file()]
    return next(filter(None, map(shutil.which, NAMES)), installed[0] if installed else None)


class Visits:
    """Opens pages, and keeps what went wrong on them: errors on their consoles, requests to other hosts."""

    def __init__(self, browser: Browser) -> None:
        self._browser = browser
        self._contexts = contextlib.ExitStack()
        self.problems: list[str] = []

    def __call__(self, url: str, *, size: tuple[int, int] = WIDE, scheme: str = "light") -> Page:
        """A page of a visitor of their own, who wants nothing to move."""
        context = self._browser.new_context(
            viewport={"width": size[0], "height": size[1]}, color_scheme=scheme, reduced_motion="reduce"
        )
        self._contexts.callback(context.close)
        page = context.new_page()
        page.set_default_timeout(PATIENCE_MS)
        page.on("console", lambda said: self._said(said.type, said.text))
        page.on("pageerror", lambda error: self.problems.append(f"{error}\n{error.stack}"))
        page.on("request", lambda request: self._asked(url, request.url))
        page.goto(url)
        return page

    def expect_problem(self, part: str) -> None:
        """One that a test provokes, as the console told it. Raises AssertionError where there was none."""
        found = [problem for problem in self.problems if part in problem]
        assert found, f"{part} is not among {self.problems}"
        self.problems = [problem for problem in self.problems if part not in problem]

    def close(self) -> None:
        self._contexts.close()

    def _said(self, kind: str, text: str) -> None:
        if kind in ("error", "warning"):
            self.problems.append(text)

    def _asked(self, page: str, url: str) -> None:
        if urlsplit(url).netloc != urlsplit(page).netloc:
            self.problems.append(f"asked another host: {url}")


@pytest.fixture(scope="module")
def browser() -> Iterator[Browser]:
    path = chromium()
    if path is None:
        pytest.skip(f"there is no browser to look with: none of {', '.join(NAMES)} is on PATH")
    expect.set_options(timeout=PATIENCE_MS)
    with sync_playwright() as playwright:
        # Where root runs the tests, as in a container, Chromium has no sandbox to offer.
        running = playwright.chromium.launch(executable_path=path, args=["--no-sandbox", "--disable-dev-shm-usage"])
        yield running
        running.close()


@pytest.fixture
def visit(browser: Browser) -> Iterator[Visits]:
    visits = Visits(browser)
    yield visits
    visits.close()
    assert visits.problems == []
