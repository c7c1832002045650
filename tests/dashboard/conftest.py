"""Desks to look at, and a browser to look with."""

from collections.abc import Iterator
from contextlib import closing

import pytest

from tests.dashboard.fake_feed import FakeFeed, Server
from tests.support.browser import browser, visit  # noqa: F401 - fixtures

KEY = "secret-key"


@pytest.fixture(scope="module")
def desk() -> Iterator[Server]:
    """One for all tests of a module, which leave it as it is."""
    with closing(Server(FakeFeed())) as server:
        yield server


@pytest.fixture
def own_desk() -> Iterator[Server]:
    with closing(Server(FakeFeed())) as server:
        yield server


@pytest.fixture
def locked_desk() -> Iterator[Server]:
    """One that asks for KEY."""
    with closing(Server(FakeFeed(key=KEY))) as server:
        yield server
