"""Starting and ending the worker processes of this machine."""

import asyncio
import os
import sys
import time

import psutil
import pytest

from cluster.membership import local as processes
from cluster.membership.local import WorkerProcess, default_memory_limit, worker_environment
from protocol.home import Home
from protocol.values import Peer

COORDINATOR = Peer(endpoint="tcp://127.0.0.1:9", public_key="k" * 40)
SAY_TOKEN = (
    "import sys; print(sys.argv[1:]); print('token', sys.stdin.readline().strip(), flush=True); sys.stdin.read()"
)
DEAF = "import sys, time; print('up', flush=True); sys.stdin.read(); time.sleep(60)"


@pytest.fixture
def home(tmp_path):
    home = Home(tmp_path / "home")
    home.create()
    return home


@pytest.fixture
def checkout(tmp_path, request):
    """A folder whose `workers` module runs the script that the test names."""
    package = tmp_path / "checkout" / "workers"
    package.mkdir(parents=True)
    (package / "__init__.py").write_text("")
    (package / "__main__.py").write_text(request.param)
    return package.parent


async def started(home, checkout) -> WorkerProcess:
    return await WorkerProcess.start(
        "worker-0", home=home, checkout=checkout, coordinator=COORDINATOR, token="sesame", memory_limit_bytes=123
    )


def output_with(home, word: str) -> str:
    deadline = time.monotonic() + 20
    while word not in (text := (home.logs / "worker-0.out").read_text()):
        assert time.monotonic() < deadline, text
        time.sleep(0.02)
    return text


@pytest.mark.parametrize("checkout", [SAY_TOKEN], indirect=True)
def test_worker_gets_its_token_on_standard_input_and_never_as_an_argument(home, checkout, monkeypatch):
    monkeypatch.delenv("PYTHONPATH", raising=False)

    async def scenario():
        process = await started(home, checkout)
        try:
            text = await asyncio.to_thread(output_with, home, "token")
            arguments = psutil.Process(process.pid).cmdline()
        finally:
            process.kill()
            await process.end()
        assert "token sesame" in text
        assert not any("sesame" in argument for argument in arguments)
        assert str(home.root) in arguments
        assert "123" in arguments

    asyncio.run(scenario())


@pytest.mark.parametrize("checkout", [DEAF], indirect=True)
def test_worker_that_does_not_end_by_itself_is_killed(home, checkout, monkeypatch):
    monkeypatch.delenv("PYTHONPATH", raising=False)
    monkeypatch.setattr(processes, "_END_GRACE_S", 0.1)

    async def scenario():
        process = await started(home, checkout)
        await asyncio.to_thread(output_with, home, "up")
        await process.end()
        assert not psutil.pid_exists(process.pid)

    asyncio.run(scenario())


@pytest.mark.parametrize("checkout", ["import sys; sys.exit(3)"], indirect=True)
def test_end_of_a_worker_is_told_with_its_status(home, checkout, monkeypatch):
    monkeypatch.delenv("PYTHONPATH", raising=False)

    async def scenario():
        ended = asyncio.get_running_loop().create_future()
        process = await started(home, checkout)
        process.watch(ended.set_result)
        async with asyncio.timeout(20):
            assert await ended == 3
        await process.end()

    asyncio.run(scenario())


@pytest.mark.parametrize("checkout", ["import sys; sys.exit(3)"], indirect=True)
def test_end_that_was_asked_for_is_not_told(home, checkout, monkeypatch):
    monkeypatch.delenv("PYTHONPATH", raising=False)

    async def scenario():
        told = []
        process = await started(home, checkout)
        process.watch(told.append)
        await process.end()
        await asyncio.sleep(0)
        assert told == []

    asyncio.run(scenario())


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
