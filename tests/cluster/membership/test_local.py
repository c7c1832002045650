"""Starting, adopting, watching and ending the worker processes of this machine."""

import asyncio
import itertools
import os
import subprocess
import sys

import psutil
import pytest

from cluster.membership import local as processes
from cluster.membership.local import LocalLauncher, default_memory_limit, worker_environment
from protocol.home import ClusterState, Home, ProcessIdentity
from protocol.values import Peer
from tests.support.running_cluster import wait_until

COORDINATOR = Peer(endpoint="tcp://127.0.0.1:9", public_key="k" * 40)
LIMIT_S = 60.0
SAY_TOKEN = (
    "import sys; print(sys.argv[1:]); print('token', sys.stdin.readline().strip(), flush=True);"
    "print('then', repr(sys.stdin.read()), flush=True); import time; time.sleep(120)"
)
DEAF = "import time; print('up', flush=True); time.sleep(120)"
FAIL = "import sys; sys.stdin.readline(); sys.exit(3)"


@pytest.fixture
def home(tmp_path):
    home = Home(tmp_path / "home")
    home.create()
    home.write_state(ClusterState(api="http://127.0.0.1:1", port=1, started_at=1.0))
    return home


@pytest.fixture
def launch(home, tmp_path):
    """Makes a launcher whose workers run `script`."""

    def make(script):
        return LocalLauncher(home, tmp_path, ("--orphan-s", "7.5"), (sys.executable, "-c", script))

    return make


async def start(launcher, name="worker-0"):
    return await launcher.start(name, coordinator=COORDINATOR, token="sesame", memory_limit_bytes=123)


async def output_with(home, word: str) -> str:
    output = home.logs / "worker-0.out"
    await asyncio.to_thread(wait_until, lambda: word in output.read_text(), f"output with {word!r}")
    return output.read_text()


def run(scenario):
    asyncio.run(asyncio.wait_for(scenario, 2 * LIMIT_S))


def test_worker_gets_its_token_on_standard_input_and_nothing_after_it(home, launch):
    launcher = launch(SAY_TOKEN)

    async def scenario():
        identity = await start(launcher)
        text = await output_with(home, "then")
        arguments = psutil.Process(identity.pid).cmdline()
        await launcher.end(grace_s=0.0)
        assert "token sesame" in text
        assert "then ''" in text
        assert not any("sesame" in argument for argument in arguments)
        given = dict(itertools.pairwise(arguments))
        assert (given["--token"], given["--home"], given["--name"]) == ("-", str(home.root), "worker-0")
        assert (given["--join"], given["--memory-limit"]) == (COORDINATOR.endpoint, "123")
        assert given["--orphan-s"] == "7.5"

    run(scenario())


def test_worker_has_no_token_before_the_state_names_it(home, launch, monkeypatch):
    launcher = launch(SAY_TOKEN)
    update = home.update_state

    def update_late(change):
        assert "token sesame" not in (home.logs / "worker-0.out").read_text()
        update(change)

    monkeypatch.setattr(home, "update_state", update_late)

    async def scenario():
        identity = await start(launcher)
        assert home.read_state().workers == {"worker-0": identity} == launcher.identities
        await output_with(home, "token sesame")
        await launcher.end(grace_s=0.0)

    run(scenario())


def test_worker_that_does_not_end_by_itself_is_killed(home, launch):
    launcher = launch(DEAF)

    async def scenario():
        identity = await start(launcher)
        await output_with(home, "up")
        await launcher.end(grace_s=0.1)
        assert not identity.alive()
        assert launcher.identities == {}

    run(scenario())


def test_end_of_a_worker_is_told_once_with_its_status_and_it_can_be_started_again(launch):
    launcher = launch(FAIL)

    async def scenario():
        ended = asyncio.Queue()
        launcher.ended = lambda *told: ended.put_nowait(told)
        for _ in range(2):
            await start(launcher)
            assert await ended.get() == ("worker-0", 3)
            assert launcher.identities == {}
        assert ended.empty()

    run(scenario())


def test_end_of_a_worker_that_was_killed_is_told(home, launch):
    launcher = launch(DEAF)

    async def scenario():
        ended = asyncio.get_running_loop().create_future()
        launcher.ended = lambda *told: ended.set_result(told)
        await start(launcher)
        launcher.kill("worker-0")
        launcher.kill("worker-9")
        assert await ended == ("worker-0", -9)

    run(scenario())


def test_end_that_was_asked_for_is_not_told_and_spares_the_others(home, launch):
    launcher = launch(DEAF)

    async def scenario():
        told = []
        launcher.ended = lambda *end: told.append(end)
        await start(launcher)
        other = await start(launcher, "worker-1")
        await launcher.end("worker-0", "worker-9", grace_s=0.0)
        assert launcher.identities == {"worker-1": other}
        assert other.alive()
        await launcher.end(grace_s=0.0)
        await asyncio.sleep(0)
        assert told == []
        assert not other.alive()

    run(scenario())


@pytest.fixture
def stranger():
    """A process that an earlier coordinator started."""
    process = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(120)"])
    yield process
    process.kill()
    process.wait()


def test_end_of_an_adopted_worker_is_told_without_a_status(launch, stranger):
    launcher = launch(DEAF)

    async def scenario():
        ended = asyncio.get_running_loop().create_future()
        launcher.ended = lambda *told: ended.set_result(told)
        launcher.adopt("worker-0", ProcessIdentity.of(stranger.pid))
        assert launcher.identities == {"worker-0": ProcessIdentity.of(stranger.pid)}
        launcher.kill("worker-0")
        assert await ended == ("worker-0", None)

    run(scenario())


def test_adopted_worker_is_ended_like_any_other(launch, stranger):
    launcher = launch(DEAF)

    async def scenario():
        launcher.adopt("worker-0", ProcessIdentity.of(stranger.pid))
        await launcher.end(grace_s=0.1)
        assert stranger.wait(LIMIT_S) == -9

    run(scenario())


def test_openblas_is_preloaded_with_one_thread_beside_what_was_preloaded_before(monkeypatch):
    monkeypatch.setattr(processes, "find_openblas", lambda: "/lib/openblas.so")
    monkeypatch.setenv("LD_PRELOAD", "/lib/other.so")
    monkeypatch.delenv("OPENBLAS_NUM_THREADS", raising=False)
    environment = worker_environment()
    assert environment["LD_PRELOAD"] == "/lib/openblas.so:/lib/other.so"
    assert environment["OPENBLAS_NUM_THREADS"] == "1"


def test_environment_is_unchanged_where_there_is_no_openblas(monkeypatch):
    monkeypatch.setattr(processes, "find_openblas", lambda: None)
    assert worker_environment() == dict(os.environ)


def test_openblas_is_looked_for_on_linux_only(monkeypatch):
    monkeypatch.setattr(sys, "platform", "darwin")
    assert processes.find_openblas() is None


def test_workers_share_the_machines_memory():
    total = psutil.virtual_memory().total
    assert default_memory_limit(2) * 2 <= default_memory_limit(1) < total
