"""State on disk: private, atomic, and never mistaking a stranger for one of ours."""

import os
import stat
import subprocess
import sys
from pathlib import Path

import pytest

from protocol.errors import TandemError
from protocol.home import ClusterState, DamagedState, Home, ProcessIdentity


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


def test_state_is_written_read_and_cleared(home):
    state = state_of(ProcessIdentity.of(os.getpid()))
    assert home.read_state() is None
    home.write_state(state)
    assert home.read_state() == state
    home.clear_state()
    home.clear_state()
    assert home.read_state() is None
    assert [file.name for file in home.root.iterdir() if file.is_file()] == []


@pytest.mark.parametrize("content", [b"", b"{", b"[]", b'{"coordinator": 4}', b"\xff"])
def test_damaged_state_is_told_apart_from_none(home, content):
    home.state_file.write_bytes(content)
    with pytest.raises(DamagedState):
        home.read_state()


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
