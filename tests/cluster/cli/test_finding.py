"""A cluster is found by its processes' own words where its state file does not name it."""

import io
import json
import os
import subprocess
import sys
from contextlib import ExitStack, contextmanager

import pytest

from cluster.cli.finding import found_state
from cluster.cli.stopping import end_leftovers, read_state
from cluster.cli.terminal import Terminal
from protocol.home import ClusterState, Home, ProcessIdentity
from tests.support.running_cluster import wait_until

CLUSTER = (("cluster.supervisor", ()), ("cluster.coordinator", ()), ("workers", ("--name", "worker-0")))


@contextmanager
def running(home, *processes):
    """Processes that say of themselves what those of a cluster say; their identities in order."""
    with ExitStack() as stack:
        started = []
        for module, words in processes:
            command = [sys.executable, "-c", "import time; time.sleep(60)", "-m", module, "--home", str(home), *words]
            process = stack.enter_context(subprocess.Popen(command))
            stack.callback(process.kill)
            started.append(process)
        yield [ProcessIdentity.of(process.pid) for process in started]


@pytest.fixture
def home(tmp_path):
    home = Home(tmp_path / "home")
    home.create()
    home.settings_file.write_text(json.dumps({"api": {"host": "127.0.0.1", "port": 8499}, "workers": []}))
    return home


def seen(home):
    return wait_until(lambda: found_state(home), "its processes are there")


def test_processes_of_the_home_are_found_and_no_others(home, tmp_path):
    with running(home.root, *CLUSTER) as (supervisor, coordinator, worker), running(tmp_path / "other", *CLUSTER):
        found = wait_until(lambda: (state := seen(home)).workers and state, "all of them are there")
        assert (found.supervisor, found.coordinator, found.workers) == (supervisor, coordinator, {"worker-0": worker})
        assert (found.api, found.port) == ("http://127.0.0.1:8499", 8499)


def test_nothing_is_found_where_nothing_runs(home):
    assert found_state(home) is None


def damage(home, how):
    match how:
        case "pipe":
            os.mkfifo(home.state_file)
        case "folder":
            home.state_file.mkdir()
        case "gone":
            pass
        case text:
            home.state_file.write_text(text)


@pytest.mark.parametrize("how", ["", "{", "null", '{"api": 3}', "pipe", "folder", "gone"])
def test_state_that_was_damaged_under_a_running_cluster_is_written_anew(home, how):
    damage(home, how)
    said = io.StringIO()
    with running(home.root, *CLUSTER) as (_, coordinator, _):
        seen(home)
        assert read_state(home, Terminal(said)).coordinator == coordinator
        assert home.read_state().coordinator == coordinator
        assert "does again" in said.getvalue()


@pytest.mark.parametrize("how", ["", "pipe", "folder", "gone"])
def test_damaged_state_of_nobody_is_none(home, how):
    damage(home, how)
    assert read_state(home, None) is None
    assert home.read_state() is None


def test_cluster_that_ends_is_not_written_down_again_by_who_stops_it(home, monkeypatch):
    me = ProcessIdentity.of(os.getpid())
    ending = ClusterState(supervisor=me, api="http://127.0.0.1:1", port=1, started_at=2.0)
    monkeypatch.setattr("cluster.cli.stopping.found_state", lambda _: ending)
    asked = ClusterState(api="http://127.0.0.1:1", port=1, started_at=1.0)
    assert end_leftovers(home, asked) == 0
    assert home.read_state() is None
