"""The supervisor's process over a stand-in coordinator: what it passes on, whom it starts again, what it leaves."""

import json
import os
import signal
import subprocess
import sys
from pathlib import Path

import psutil
import pytest

from protocol.home import ClusterState, Home, ProcessIdentity
from tests.support.running_cluster import processes_of, wait_until

CHECKOUT = Path(__file__).resolve().parents[2]


class Supervised:
    """A supervisor that a test holds as `start` does."""

    def __init__(self, home: Home, behaviour: str, worker: int | None):
        self.home = home
        environment = os.environ | {"STUB": behaviour} | ({} if worker is None else {"STUB_WORKER": str(worker)})
        self.process = subprocess.Popen(
            [sys.executable, "-m", "tests.support.supervised_stub", "--home", str(home.root)],
            cwd=CHECKOUT,
            env=environment,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
        )
        identity = ProcessIdentity.of(self.process.pid)
        home.write_state(ClusterState(supervisor=identity, api="http://127.0.0.1:1", port=1, started_at=1.0))

    def begin(self):
        self.process.stdin.write(b"begin\n")
        self.process.stdin.flush()
        return self

    def told(self) -> list[dict]:
        """What it passed on, to the end of its output."""
        lines = self.process.stdout.read().splitlines()
        return [json.loads(line) for line in lines if line.startswith(b"{")]

    @property
    def coordinator(self) -> ProcessIdentity:
        return self.home.read_state().coordinator

    @property
    def num_lives(self) -> int:
        lives = self.home.root / "lives"
        return len(lives.read_text()) if lives.exists() else 0

    def log(self) -> str:
        return (self.home.logs / "supervisor.log").read_text()


@pytest.fixture
def home(tmp_path):
    home = Home(tmp_path / "home")
    home.create()
    yield home
    for process in processes_of(home.root):
        process.kill()


@pytest.fixture
def supervised(home):
    made = []

    def make(behaviour, worker=None):
        made.append(Supervised(home, behaviour, worker))
        return made[-1]

    yield make
    for each in made:
        each.process.kill()
        each.process.wait()
        each.process.stdin.close()
        each.process.stdout.close()


@pytest.fixture
def worker():
    process = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(120)"])
    yield process
    process.kill()
    process.wait()


def test_what_the_coordinator_tells_is_passed_on_until_it_is_ready(supervised):
    ready = supervised("ready").begin()
    progress, status = ready.told()
    assert progress == {"progress": "loading", "again": False}
    assert status["ready"]["state"] == "ready"


def test_supervisor_that_is_not_named_yet_does_nothing(home, supervised):
    unnamed = supervised("ready")
    unnamed.process.stdin.close()
    assert unnamed.process.wait(60) == 1
    assert unnamed.num_lives == 0


@pytest.mark.parametrize(("behaviour", "code"), [("error", 2), ("die", 1)])
def test_first_start_that_fails_ends_with_its_code_and_its_workers(home, supervised, worker, behaviour, code):
    failed = supervised(behaviour, worker.pid).begin()
    assert failed.process.wait(60) == code
    assert worker.wait(60) == -signal.SIGTERM
    assert home.read_state() is None
    assert failed.num_lives == 1


def test_killed_coordinator_is_started_again_and_told_so_and_no_zombie_stays(home, supervised):
    running = supervised("ready").begin()
    running.told()
    first = running.coordinator
    os.kill(first.pid, signal.SIGKILL)
    wait_until(lambda: running.num_lives == 2 and running.coordinator != first, "the second life")
    me = psutil.Process(running.process.pid)
    assert [child.pid for child in me.children()] == [running.coordinator.pid]
    wait_until(lambda: "again" in running.log(), "it says so")


def test_coordinator_that_dies_again_and_again_is_given_up_with_its_workers(home, supervised, worker, monkeypatch):
    monkeypatch.setenv("STUB_DELAY_S", "0.05")
    hopeless = supervised("crash", worker.pid).begin()
    wait_until(lambda: hopeless.num_lives >= 3, "it is tried again")
    assert hopeless.process.wait(120) == 1
    assert hopeless.num_lives == 5
    assert "died too often" in hopeless.log()
    assert worker.wait(60) == -signal.SIGTERM
    assert home.read_state() is not None


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_signal_stops_the_coordinator_and_waits_for_it(home, supervised, number):
    running = supervised("ready").begin()
    running.told()
    running.process.send_signal(number)
    assert running.process.wait(60) == 0
    assert not processes_of(home.root)
    assert home.read_state() is None


def test_coordinator_that_stops_ends_its_supervisor(home, supervised):
    running = supervised("ready").begin()
    running.told()
    running.coordinator.terminate()
    assert running.process.wait(60) == 0
    assert running.num_lives == 1


def test_coordinator_goes_on_without_its_supervisor(home, supervised):
    running = supervised("ready").begin()
    running.told()
    running.process.kill()
    running.process.wait()
    assert running.coordinator.alive()


def test_start_whose_owner_is_gone_ends(home, supervised, worker):
    orphan = supervised("slow", worker.pid).begin()
    wait_until(lambda: home.read_state().workers, "it begins")
    orphan.process.stdin.close()
    assert orphan.process.wait(60) == 0
    assert worker.wait(60) == -signal.SIGTERM
    assert not processes_of(home.root)


def test_supervisor_is_small(supervised):
    running = supervised("ready").begin()
    running.told()
    assert psutil.Process(running.process.pid).memory_info().rss < 40_000_000
