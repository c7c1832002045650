"""A home, and a cluster that seems to run in it."""

import os

import pytest

from protocol.home import ClusterState, Home, ProcessIdentity
from tests.support.fake_api import STATUS, FakeApi


@pytest.fixture
def home(tmp_path):
    home = Home(tmp_path / "home")
    home.create()
    return home


@pytest.fixture
def api(home):
    """A cluster that seems to run: the state names this test's own process as its supervisor and coordinator."""
    api = FakeApi(STATUS)
    me = ProcessIdentity.of(os.getpid())
    home.write_state(ClusterState(supervisor=me, coordinator=me, api=api.url, port=1, started_at=1.0))
    yield api
    api.close()
