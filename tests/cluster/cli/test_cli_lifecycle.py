"""`start` and `stop` over a real supervisor and a stand-in coordinator: whatever happens, it is said, and no process
stays."""

import io
import os
import signal
import socket
import subprocess
import sys
import threading
from pathlib import Path

import pytest

from cluster.cli.finding import started_settings
from cluster.cli.last_start import last_start
from cluster.cli.starting import Starter, check_port_free
from cluster.cli.stopping import stop_cluster
from cluster.cli.terminal import Terminal
from cluster.config import Flags, load_settings
from protocol.errors import TandemError
from protocol.home import ClusterState, Home, ProcessIdentity
from tests.support.running_cluster import processes_of, wait_until

CHECKOUT = Path(__file__).resolve().parents[3]
SUPERVISED_STUB = (sys.executable, "-m", "tests.support.supervised_stub")


@pytest.fixture
def home(tmp_path):
    home = Home(tmp_path / "home")
    yield home
    for process in processes_of(home.root):
        process.kill()


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
        starter = Starter(home, CHECKOUT, Terminal(said), SUPERVISED_STUB)
        return starter.start(
            lambda: load_settings(
                None, checkout=CHECKOUT, working_directory=CHECKOUT, environment={}, flags=Flags(port=port)
            )
        )

    return start_stub


def stop(home, said, drain_limit_s=10.0):
    return stop_cluster(home, Terminal(said), drain_limit_s)


def kill(identity):
    identity.kill()
    assert identity.wait_gone(20)


def assert_nothing_left(home):
    assert not processes_of(home.root)
    assert home.read_state() is None


def test_start_waits_until_ready_and_stop_ends_it(home, said, start):
    started = start()
    assert started.status["state"] == "ready"
    assert home.read_state() == started.state
    assert started.state.is_coordinated
    assert started.state.is_supervised
    assert last_start(home).settings == started_settings(home)
    assert stop(home, said) == "Stopped the cluster."
    assert_nothing_left(home)
    assert stop(home, said) == "Nothing is running."


def test_second_start_finds_the_first(home, start):
    first = start()
    second = start()
    assert second.status is None
    assert second.state == first.state


def test_error_of_the_coordinator_is_passed_on_and_nothing_stays(home, start, worker):
    with pytest.raises(TandemError, match="the model is damaged") as caught:
        start("error", worker)
    assert caught.value.exit_code == 2
    assert last_start(home) is None
    assert_nothing_left(home)
    assert worker.wait(timeout=10) == -signal.SIGTERM


def test_coordinator_that_dies_before_it_is_ready_names_its_log_and_is_not_started_again(home, start):
    with pytest.raises(TandemError, match=r"coordinator\.out"):
        start("die")
    assert_nothing_left(home)
    assert (home.root / "lives").read_text() == "x"


def begun(home):
    """The state, once the coordinator has named its workers."""
    state = home.read_state() if home.root.exists() else None
    return state if state is not None and state.workers else None


@pytest.fixture
def interruptible():
    """Ctrl-C is heard, also where the tests run in the background of a shell, which has it ignored there."""
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    signal.signal(signal.SIGINT, before)


@pytest.mark.usefixtures("interruptible")
def test_interrupted_start_leaves_nothing(home, start, worker):
    def interrupt():
        wait_until(lambda: begun(home), "the coordinator begins")
        os.kill(os.getpid(), signal.SIGINT)

    threading.Thread(target=interrupt, daemon=True).start()
    with pytest.raises(KeyboardInterrupt):
        start("slow", worker)
    assert_nothing_left(home)
    assert worker.wait(timeout=10) == -signal.SIGTERM


def test_stop_during_a_start_ends_both(home, said, start):
    outcome = []

    def stop_when_begun():
        wait_until(home.state_file.exists, "the start begins")
        outcome.append(stop(home, io.StringIO()))

    stopper = threading.Thread(target=stop_when_begun)
    stopper.start()
    with pytest.raises(TandemError):
        start("slow")
    stopper.join(timeout=20)
    assert outcome
    assert_nothing_left(home)


@pytest.mark.parametrize("begun_far", [False, True])
def test_start_that_is_killed_takes_everything_with_it(home, port, worker, begun_far):
    """`begun_far`: only once the coordinator runs; else as soon as there is anything."""
    script = (
        "import sys; from pathlib import Path; from cluster.cli.starting import Starter;"
        "from cluster.cli.terminal import standard_terminal; from cluster.config import Flags, load_settings;"
        "from protocol.home import Home; here = Path.cwd();"
        "load = lambda: load_settings(None, checkout=here, working_directory=here, environment={},"
        f"    flags=Flags(port={port}));"
        f"Starter(Home(Path({str(home.root)!r})), here, standard_terminal(), {SUPERVISED_STUB!r}).start(load)"
    )
    environment = os.environ | {"STUB": "slow", "STUB_WORKER": str(worker.pid), "PYTHONPATH": str(CHECKOUT)}
    starting = subprocess.Popen([sys.executable, "-c", script], cwd=CHECKOUT, env=environment)
    try:
        wait_until((lambda: begun(home)) if begun_far else home.state_file.exists, "it begins")
    finally:
        starting.kill()
        starting.wait()
    wait_until(lambda: not processes_of(home.root), "all of it ends")
    if begun_far:
        assert worker.wait(timeout=10) == -signal.SIGTERM
        assert home.read_state() is None


def test_coordinator_that_ignores_the_signal_is_killed(home, said, start):
    start("deaf")
    assert "was killed" in stop(home, said, drain_limit_s=0.5)
    assert_nothing_left(home)


def test_coordinator_that_was_killed_is_started_again_and_can_be_stopped(home, said, start):
    first = start().state
    kill(first.coordinator)
    second = wait_until(lambda: (state := home.read_state()).coordinator != first.coordinator and state, "a second")
    assert second.supervisor == first.supervisor
    assert stop(home, said) == "Stopped the cluster."
    assert_nothing_left(home)


def test_stop_while_a_restart_is_waited_for_ends_the_supervisor(home, said, start):
    state = start("ready,die").state
    kill(state.coordinator)
    wait_until(lambda: (home.root / "lives").read_text() == "xx", "the second life")
    assert stop(home, said) == "Stopped the cluster."
    assert_nothing_left(home)


def test_stop_after_the_supervisor_was_killed_drains_as_ever(home, said, start):
    kill(start().state.supervisor)
    assert stop(home, said) == "Stopped the cluster."
    assert_nothing_left(home)


def test_start_after_the_supervisor_was_killed_puts_another_in_its_place(home, said, start):
    first = start().state
    kill(first.supervisor)
    assert first.is_coordinated
    assert start().status is None
    assert "supervisor had died" in said.getvalue()
    second = home.read_state()
    assert second.is_supervised
    assert second.coordinator == first.coordinator
    kill(second.coordinator)
    wait_until(lambda: home.read_state().coordinator != second.coordinator, "the adopted one is started again")
    assert stop(home, said) == "Stopped the cluster."
    assert_nothing_left(home)


def test_adopted_coordinator_that_is_stopped_ends_its_supervisor(home, said, start):
    first = start().state
    kill(first.supervisor)
    start()
    first.coordinator.terminate()
    wait_until(lambda: not processes_of(home.root), "both end")
    assert home.read_state() is None


def test_stop_after_all_leaders_were_killed_ends_the_workers(home, said, start, worker):
    state = start("ready", worker).state
    kill(state.supervisor)
    kill(state.coordinator)
    assert stop(home, said) == "The coordinator had already ended; 1 of its workers still ran and were stopped."
    assert worker.wait(timeout=10) == -signal.SIGTERM


def test_start_after_all_leaders_were_killed_ends_the_workers_and_says_so(home, said, start, worker):
    first = start("ready", worker).state
    kill(first.supervisor)
    kill(first.coordinator)
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
