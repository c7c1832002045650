"""State on disk: private, atomic, and never mistaking a stranger for one of ours."""

import os
import stat
import subprocess
import sys
import threading
from pathlib import Path

import msgspec
import psutil
import pytest

from protocol.errors import TandemError
from protocol.home import ClusterState, DamagedState, Home, ProcessIdentity, end_processes


@pytest.fixture
def home(tmp_path):
    home = Home(tmp_path / "home")
    home.create()
    return home


@pytest.fixture
def child():
    process = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(60)"])
    yield process
    process.kill()
    process.wait()


def state_of(identity: ProcessIdentity) -> ClusterState:
    return ClusterState(coordinator=identity, api="http://127.0.0.1:1", port=1, started_at=1.0)


def test_home_comes_from_the_environment_or_the_checkout(tmp_path):
    assert Home.from_environment(tmp_path, {}).root == tmp_path / ".tandem"
    assert Home.from_environment(tmp_path, {"TANDEM_HOME": "/x/y"}).root == Path("/x/y")


def test_home_is_readable_by_its_user_only(home):
    assert stat.S_IMODE(home.root.stat().st_mode) == 0o700
    home.write_state(state_of(ProcessIdentity.of(os.getpid())))
    assert stat.S_IMODE(home.state_file.stat().st_mode) == 0o600


def test_home_that_cannot_be_made_is_a_plain_error(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(TandemError, match="TANDEM_HOME"):
        Home(tmp_path / "file" / "home").create()


def test_home_that_anybody_may_write_to_is_refused(home):
    home.root.chmod(0o777)
    with pytest.raises(TandemError, match="chmod o-w"):
        home.create()
    home.root.chmod(0o770)
    home.create()


def test_process_is_known_when_the_clock_was_set(monkeypatch):
    me = ProcessIdentity.of(os.getpid())
    started, booted = psutil.Process.create_time, psutil.boot_time
    by_s = 3600.0 if sys.platform == "linux" else 0.0  # elsewhere the system does not move what was
    monkeypatch.setattr(psutil.Process, "create_time", lambda self: started(self) + by_s)
    monkeypatch.setattr(psutil, "boot_time", lambda: booted() + by_s)
    assert me.alive()


def test_state_is_written_read_and_cleared(home):
    state = state_of(ProcessIdentity.of(os.getpid()))
    assert home.read_state() is None
    home.write_state(state)
    assert home.read_state() == state
    home.clear_state()
    home.clear_state()
    assert home.read_state() is None
    assert [file.name for file in home.root.iterdir() if file.is_file()] == ["state.lock"]


@pytest.mark.parametrize("content", [b"", b"{", b"[]", b'{"coordinator": 4}', b'{"api": "\xff"}', b"\xff"])
def test_damaged_state_is_told_apart_from_none(home, content):
    home.state_file.write_bytes(content)
    with pytest.raises(DamagedState):
        home.read_state()


def test_writers_of_the_state_lose_nothing_of_each_other(home):
    me = ProcessIdentity.of(os.getpid())
    home.write_state(state_of(me))

    def add(name):
        for number in range(10):
            home.update_state(
                lambda state, new=f"{name}-{number}": msgspec.structs.replace(state, workers=state.workers | {new: me})
            )

    threads = [threading.Thread(target=add, args=(name,)) for name in ("a", "b", "c")]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(home.read_state().workers) == 30


def test_state_that_was_cleared_is_not_brought_back_by_a_late_writer(home):
    home.update_state(lambda _: pytest.fail("there is nothing to change"))
    assert home.read_state() is None


def test_process_forgets_only_its_own_cluster(home):
    me = ProcessIdentity.of(os.getpid())
    home.write_state(msgspec.structs.replace(state_of(me), supervisor=ProcessIdentity(pid=1, create_time=1.0)))
    home.clear_state(ProcessIdentity(pid=2, create_time=2.0))
    assert home.read_state() is not None
    home.clear_state(ProcessIdentity(pid=1, create_time=1.0))
    assert home.read_state() is None
    home.clear_state(me)
    home.write_state(state_of(me))
    home.clear_state(me)
    assert home.read_state() is None


def test_every_coordinator_has_an_incarnation_of_its_own_and_the_same_keys(home):
    first = home.next_incarnation(lambda: ("public", "secret"))
    assert (first.incarnation, first.public_key, first.secret_key, first.port) == (1, "public", "secret", 0)
    home.write_desired(msgspec.structs.replace(first, port=4711, members=("worker-0",), counter=9))
    second = Home(home.root).next_incarnation(lambda: pytest.fail("the keys are known"))
    assert second == msgspec.structs.replace(first, incarnation=2, port=4711, members=("worker-0",))
    assert home.read_desired() == second
    assert stat.S_IMODE((home.root / "deployment.json").stat().st_mode) == 0o600


@pytest.mark.parametrize("content", [b"", b"{", b"[]", b'{"incarnation": -1}', b'{"secret": "\xff"}', b"\xff"])
def test_damaged_desire_begins_anew_with_keys_that_let_no_old_worker_in(home, content):
    old = home.next_incarnation(lambda: ("old", "old"))
    (home.root / "deployment.json").write_bytes(content)
    assert home.read_desired() is None
    anew = home.next_incarnation(lambda: ("new", "new"))
    assert (anew.incarnation, anew.public_key) == (1, "new")
    assert anew.secret != old.secret


def test_who_does_not_end_when_asked_is_killed():
    deaf = "import signal, time; signal.signal(signal.SIGTERM, signal.SIG_IGN); print('up', flush=True); time.sleep(60)"
    with subprocess.Popen([sys.executable, "-c", deaf], stdout=subprocess.PIPE) as process:
        assert process.stdout.readline() == b"up\n"
        gone = ProcessIdentity(pid=process.pid, create_time=1.0)
        assert end_processes([ProcessIdentity.of(process.pid), gone], 0.1) == 1
        assert process.wait(timeout=10) == -9


def test_running_process_is_alive_and_can_be_ended(child):
    identity = ProcessIdentity.of(child.pid)
    assert identity.alive()
    assert identity.terminate()
    child.wait(timeout=10)
    assert not identity.alive()
    assert not identity.terminate()
    assert not identity.kill()


def test_zombie_counts_as_gone(child):
    identity = ProcessIdentity.of(child.pid)
    identity.kill()
    assert identity.wait_gone(10)


def test_recycled_pid_is_never_signalled(child):
    stranger = ProcessIdentity(pid=child.pid, create_time=ProcessIdentity.of(child.pid).create_time - 100)
    assert not stranger.alive()
    assert not stranger.terminate()
    assert not stranger.kill()
    assert child.poll() is None


def test_identity_of_nobody_is_an_error(child):
    child.kill()
    child.wait()
    with pytest.raises(ProcessLookupError):
        ProcessIdentity.of(child.pid)


def test_lock_is_held_by_one_and_freed(home):
    with home.lock(0), pytest.raises(TimeoutError), Home(home.root).lock(0):
        pass
    with home.lock(0):
        pass
