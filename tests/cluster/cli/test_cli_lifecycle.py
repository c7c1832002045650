"""`start` and `stop` against a stand-in coordinator: whatever happens, it is said, and no process stays."""

import io
import os
import signal
import socket
import subprocess
import sys
import threading
from pathlib import Path

import pytest

from cluster.cli.starting import Starter, check_port_free
from cluster.cli.stopping import stop_cluster
from cluster.cli.terminal import Terminal
from cluster.config import Flags, load_settings
from protocol.errors import TandemError
from protocol.home import ClusterState, Home, ProcessIdentity

CHECKOUT = Path(__file__).resolve().parents[3]
STUB = (sys.executable, "-m", "tests.support.stub_coordinator")


@pytest.fixture
def home(tmp_path):
    home = Home(tmp_path / "home")
    yield home
    state = home.read_state() if home.root.exists() else None
    if state is not None:
        state.coordinator.kill()


@pytest.fixture
def worker():
    """A process that a cluster may call its worker."""
    process = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(60)"])
    yield process
    process.kill()
    process.wait()


@pytest.fixture
def said():
    return io.StringIO()


@pytest.fixture
def port():
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


@pytest.fixture
def start(home, said, port, monkeypatch):
    def start_stub(behaviour="ready", worker=None):
        monkeypatch.setenv("STUB", behaviour)
        if worker is not None:
            monkeypatch.setenv("STUB_WORKER", str(worker.pid))
        starter = Starter(home, CHECKOUT, Terminal(said), STUB)
        return starter.start(
            lambda: load_settings(
                None, checkout=CHECKOUT, working_directory=CHECKOUT, environment={}, flags=Flags(port=port)
            )
        )

    return start_stub


def stop(home, said, drain_limit_s=10.0):
    return stop_cluster(home, Terminal(said), drain_limit_s)


def test_start_waits_until_ready_and_stop_ends_it(home, said, start):
    started = start()
    assert started.status["state"] == "ready"
    assert home.read_state() == started.state
    assert started.state.coordinator.alive()
    assert stop(home, said) == "Stopped the cluster."
    assert not started.state.coordinator.alive()
    assert home.read_state() is None
    assert stop(home, said) == "Nothing is running."


def test_second_start_finds_the_first(home, start):
    first = start()
    second = start()
    assert second.status is None
    assert second.state.coordinator == first.state.coordinator


def test_error_of_the_coordinator_is_passed_on_and_nothing_stays(home, start, worker):
    with pytest.raises(TandemError, match="the model is damaged") as caught:
        start("error", worker)
    assert caught.value.exit_code == 2
    assert home.read_state() is None
    assert worker.wait(timeout=10) == -signal.SIGTERM


def test_coordinator_that_dies_before_it_is_ready_names_its_log(home, start):
    with pytest.raises(TandemError, match=r"coordinator\.out"):
        start("die")
    assert home.read_state() is None


def test_interrupted_start_leaves_nothing(home, start, worker):
    def interrupt():
        while (state := home.read_state() if home.root.exists() else None) is None or not state.workers:
            pass
        os.kill(os.getpid(), signal.SIGINT)

    threading.Thread(target=interrupt, daemon=True).start()
    with pytest.raises(KeyboardInterrupt):
        start("slow", worker)
    assert home.read_state() is None
    assert worker.wait(timeout=10) == -signal.SIGTERM


def test_stop_during_a_start_ends_both(home, said, start):
    outcome = []

    def stop_when_begun():
        while not home.state_file.exists():
            pass
        outcome.append(stop(home, io.StringIO()))

    stopper = threading.Thread(target=stop_when_begun)
    stopper.start()
    with pytest.raises(TandemError):
        start("slow")
    stopper.join(timeout=20)
    assert outcome
    assert home.read_state() is None


def test_coordinator_that_ignores_the_signal_is_killed(home, said, start):
    started = start("deaf")
    assert "was killed" in stop(home, said, drain_limit_s=0.5)
    assert not started.state.coordinator.alive()


def test_stop_after_the_coordinator_was_killed_ends_its_workers(home, said, start, worker):
    started = start("ready", worker)
    started.process.kill()
    started.process.wait()
    assert stop(home, said) == "The coordinator had already ended; 1 of its workers still ran and were stopped."
    assert worker.wait(timeout=10) == -signal.SIGTERM


def test_start_after_the_coordinator_was_killed_ends_its_workers_and_says_so(home, said, start, worker):
    first = start("ready", worker)
    first.process.kill()
    first.process.wait()
    second = start("ready")
    assert second.status is not None
    assert "had died; 1 of its workers still ran and were stopped" in said.getvalue()
    assert worker.wait(timeout=10) == -signal.SIGTERM


def test_stale_state_with_recycled_pids_harms_nobody(home, said, worker):
    home.create()
    stranger = ProcessIdentity(pid=worker.pid, create_time=1.0)
    home.write_state(
        ClusterState(coordinator=stranger, api="http://x:1", port=1, workers={"w": stranger}, started_at=1.0)
    )
    assert stop(home, said) == "The coordinator had already ended."
    assert worker.poll() is None
    assert home.read_state() is None


def test_damaged_state_is_mentioned_and_forgotten(home, said, start):
    home.create()
    home.state_file.write_bytes(b"{")
    assert stop(home, said) == "Nothing is running."
    assert "damaged" in said.getvalue()
    assert start().status is not None


def test_port_in_use_is_said_before_anything_starts(home, start, port):
    with socket.socket() as other:
        other.bind(("127.0.0.1", port))
        other.listen()
        with pytest.raises(TandemError, match=f"port {port} .*--port"):
            start()
    assert home.read_state() is None
    check_port_free("127.0.0.1", port)
