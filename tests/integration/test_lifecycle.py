"""Starting, stopping, and processes that die: every end is a good one, and nobody is left behind."""

import json
import os
import signal
import socket
import subprocess
import sys
import threading
from contextlib import closing

import httpx
import psutil
import pytest

from protocol.home import ClusterState, Home, ProcessIdentity
from tests.support.running_cluster import CHECKOUT, RunningCluster, launcher, wait_until

NOTICED_S = 3.0
PROMPT = list(range(30, 60))
LETTERS = {str(token): 50 for token in range(69, 95)}


@pytest.fixture(scope="module")
def mended():
    """The home of a cluster that one test breaks after the other; when all are through, `stop` must end what is there."""
    with closing(RunningCluster()) as cluster:
        yield cluster


@pytest.fixture
def standing(mended, tiny_model):
    """Two workers, as after `start`, whatever befell them before."""
    if not mended.processes():
        mended.start(tiny_model)
    wait_until(mended.ready_status, "it is whole")
    return mended


class LongRequest:
    """A streamed request that runs until something ends it; `error` is what its client was told."""

    def __init__(self, cluster, strategy):
        self._cluster = cluster
        self._strategy = strategy
        self.error = None
        self.ended = threading.Event()
        self._begun = threading.Event()
        threading.Thread(target=self._read, daemon=True).start()
        assert self._begun.wait(30)

    def _read(self):
        try:
            with self._cluster.stream(PROMPT, 3900, strategy=self._strategy, logit_bias=LETTERS) as events:
                for event in events:
                    self._begun.set()
                    self.error = event.get("error", {}).get("message")
        except httpx.HTTPError as error:
            self.error = repr(error)
        self.ended.set()


class Stream:
    """A streamed request that began; `end` gives what its last chunk tells."""

    def __init__(self, cluster, strategy, max_tokens):
        self._cluster = cluster
        self._fields = {"strategy": strategy, "stream_options": {"include_usage": True}}
        self._max_tokens = max_tokens
        self._told = None
        self._begun = threading.Event()
        self._reading = threading.Thread(target=self._read, daemon=True)
        self._reading.start()
        assert self._begun.wait(60)

    def _read(self):
        with self._cluster.stream(PROMPT, self._max_tokens, **self._fields) as events:
            for event in events:
                self._begun.set()
                self._told = event.get("tandem") or event.get("error") or self._told

    def end(self):
        self._reading.join(120)
        return self._told


def test_two_workers_share_the_layers_and_everything_can_be_said_twice(standing, tiny_model):
    status = standing.status()
    assert status["state"] == "ready"
    assert status["api"] == standing.url
    first, second = status["workers"]
    assert first["layers"][0] == 0
    assert first["layers"][1] == second["layers"][0]
    assert second["layers"][1] == status["model"]["layers"] == 8
    supervisor = Home(standing.home).read_state().supervisor
    pids = {first["pid"], second["pid"], status["coordinator"]["pid"], supervisor.pid}
    assert len(pids) == 4
    assert {process.pid for process in standing.processes()} == pids
    assert all(worker["memory"]["weights_bytes"] > 0 for worker in status["workers"])

    again = standing.command("start", "--port", str(standing.port), "--model", str(tiny_model))
    assert again.returncode == 0
    assert "Already running" in again.stdout
    other = standing.command("start", "--port", str(standing.port), "--model", str(tiny_model), "--workers", "3")
    assert other.returncode == 2
    assert "2 workers, not 3" in other.stderr
    assert {process.pid for process in standing.processes()} == pids

    assert "Stopped" in standing.stop()
    standing.assert_no_process_left()
    assert "Nothing is running" in standing.stop()
    assert standing.status()["state"] == "stopped"


def test_three_workers_share_the_layers_when_asked_for_and_one_takes_their_place(cluster, tiny_model):
    cluster.start(tiny_model, "--workers", "3", environment={"USE_DISTRIBUTED_INFERENCE": "always"})
    status = cluster.status()
    assert status["mode"] == "always"
    bounds = [worker["layers"] for worker in status["workers"]]
    assert [start for start, _ in bounds] == [0, *[end for _, end in bounds[:-1]]]
    assert bounds[-1][1] == 8
    assert len({worker["pid"] for worker in status["workers"]}) == 3
    answer = cluster.complete(PROMPT, 5)
    assert answer["tandem"]["workers"] == ["worker-0", "worker-1", "worker-2"]
    cluster.start(tiny_model, "--workers", "1", "--replace")
    assert [worker["name"] for worker in cluster.status()["workers"]] == ["worker-0"]


def test_killed_coordinator_is_started_again_and_answers(standing):
    workers = standing.worker_pids()
    request = LongRequest(standing, "distributed-cached")
    first = standing.status()["coordinator"]["pid"]
    os.kill(first, signal.SIGKILL)
    assert request.ended.wait(NOTICED_S)
    assert request.error
    assert standing.status()["state"] in ("starting", "degraded", "ready")
    second = wait_until(standing.ready_status, "it is ready again")
    assert second["coordinator"]["pid"] != first
    assert {worker["name"]: worker["pid"] for worker in second["workers"]} == workers
    assert standing.complete(PROMPT, 3)["usage"]["completion_tokens"] == 3
    assert len(standing.processes()) == 4


def test_cluster_goes_on_without_its_supervisor_and_start_puts_another_in_its_place(standing, tiny_model):
    home = Home(standing.home)
    home.read_state().supervisor.kill()
    assert standing.status()["state"] == "ready"
    again = standing.command("start", "--port", str(standing.port), "--model", str(tiny_model))
    assert again.returncode == 0
    assert "supervisor had died" in again.stderr
    assert home.read_state().is_supervised
    assert "Stopped" in standing.stop()
    standing.assert_no_process_left()


def test_workers_outlive_their_leaders_and_the_next_start_ends_them(standing, tiny_model):
    workers = standing.worker_pids().values()
    state = Home(standing.home).read_state()
    state.supervisor.kill()
    state.coordinator.kill()
    wait_until(lambda: standing.status()["state"] == "stopped", "status says so", NOTICED_S)
    with pytest.raises(httpx.HTTPError):
        standing.api_status()
    assert all(psutil.pid_exists(pid) for pid in workers)
    done = standing.command("start", "--port", str(standing.port), "--model", str(tiny_model))
    assert "had died; 2 of its workers still ran and were stopped" in done.stderr
    assert len(standing.processes()) == 4
    assert standing.complete(PROMPT, 3)["usage"]["completion_tokens"] == 3


@pytest.mark.parametrize("reached", ["supervisor", "coordinator", "workers"])
def test_start_that_is_killed_leaves_nothing(cluster, tiny_model, reached):
    def has_come_so_far():
        state = Home(cluster.home).read_state()
        return state is not None and getattr(state, reached)

    process = subprocess.Popen(
        [*launcher(), "start", "--port", str(cluster.port), "--model", str(tiny_model)],
        cwd=CHECKOUT,
        env=cluster.environment,
        stdout=subprocess.DEVNULL,
    )
    try:
        wait_until(has_come_so_far, f"the start comes to its {reached}")
    finally:
        process.kill()
        process.wait()
    wait_until(lambda: not cluster.processes(), "all of it ends")


@pytest.mark.parametrize("killed", ["worker-0", "worker-1"])
def test_killed_worker_is_said_its_requests_go_on_and_it_comes_back_by_itself(standing, killed):
    strategies = ("single-device-cached", "distributed-cached", "distributed-no-cache")
    expected = {strategy: standing.complete(PROMPT, 200, strategy=strategy) for strategy in strategies}
    requests = {strategy: Stream(standing, strategy, 200) for strategy in strategies}
    os.kill(standing.worker_pids()[killed], signal.SIGKILL)

    status = wait_until(
        lambda: (status := standing.api_status())["state"] != "ready" and status, "the API says so", NOTICED_S
    )
    assert {worker["name"]: worker["state"] for worker in status["workers"]}[killed] == "lost"
    for strategy, request in requests.items():
        told = request.end()
        assert told["token_ids"] == expected[strategy]["tandem"]["token_ids"]
        assert told["strategy"] == strategy
    # Not at any moment: where it is back already, the plan with it replaces the one without it.
    wait_until(lambda: httpx.get(f"{standing.url}/health").status_code == 200, "the API says that it serves")
    wait_until(lambda: standing.api_status()["state"] == "ready", "it comes back")
    assert any(killed in event["what"] and "lost" in event["what"] for event in standing.api_status()["events"])
    assert standing.complete(PROMPT, 3, use_distributed_inference="always")["tandem"]["workers"] == [
        "worker-0",
        "worker-1",
    ]


def test_stopped_worker_is_replaced_and_its_requests_go_on(standing):
    """SIGSTOP is what a machine that hangs looks like: the connection stays, the heartbeats do not."""
    expected = standing.complete(PROMPT, 200, strategy="distributed-cached")
    request = Stream(standing, "distributed-cached", 200)
    stopped = standing.worker_pids()["worker-1"]
    os.kill(stopped, signal.SIGSTOP)
    assert request.end()["token_ids"] == expected["tandem"]["token_ids"]
    wait_until(
        lambda: (ready := standing.ready_status()) and stopped not in [worker["pid"] for worker in ready["workers"]],
        "another is in its place",
    )
    wait_until(lambda: len(standing.processes()) == 4, "the one that stood still is gone")


def test_everything_killed_at_once_leaves_a_home_that_starts_again(standing, tiny_model):
    for process in standing.processes():
        process.kill()
    wait_until(lambda: not standing.processes(), "all are gone")
    standing.start(tiny_model)
    assert standing.status()["state"] == "ready"


def test_terminated_coordinator_lets_a_running_request_finish(standing):
    answers = []
    asking = threading.Thread(target=lambda: answers.append(standing.complete(PROMPT, 300, logit_bias=LETTERS)))
    asking.start()
    wait_until(lambda: standing.api_status()["requests"]["running"] == 1, "the request runs")
    os.kill(standing.status()["coordinator"]["pid"], signal.SIGTERM)
    asking.join(30)
    assert answers[0]["usage"]["completion_tokens"] == 300
    wait_until(lambda: not standing.processes(), "all end")
    assert standing.status()["state"] == "stopped"


def test_foreground_cluster_ends_with_its_command(cluster, tiny_model):
    process = subprocess.Popen(
        [*launcher(), "start", "--foreground", "--port", str(cluster.port), "--model", str(tiny_model)],
        cwd=CHECKOUT,
        env=cluster.environment,
        stdout=subprocess.PIPE,
        text=True,
    )
    try:
        assert process.stdout.readline().startswith("Tandem is ready")
        process.terminate()
        assert process.wait(30) == 0
    finally:
        process.kill()
        process.wait()
        process.stdout.close()
    cluster.assert_no_process_left()


def test_stale_state_never_costs_a_stranger_its_life(cluster):
    """The pids of a dead cluster may belong to anybody now."""
    stranger = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(60)"])
    try:
        home = Home(cluster.home)
        home.create()
        stale = ProcessIdentity(pid=stranger.pid, create_time=psutil.Process(stranger.pid).create_time() - 1000)
        home.write_state(
            ClusterState(
                coordinator=stale, api=cluster.url, port=cluster.port, workers={"worker-0": stale}, started_at=0.0
            )
        )
        assert cluster.status()["state"] == "stopped"
        assert cluster.command("stop").returncode == 0
        assert stranger.poll() is None
        assert not home.state_file.exists()
    finally:
        stranger.kill()
        stranger.wait()


def test_port_in_use_is_said_and_nothing_starts(cluster, tiny_model):
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", cluster.port))
        taken.listen()
        done = cluster.command("start", "--port", str(cluster.port), "--model", str(tiny_model))
    assert done.returncode == 1
    assert f"Port {cluster.port}" in done.stderr
    assert "--port" in done.stderr
    cluster.assert_no_process_left()


def test_prompt_starts_nothing_twice_and_prints_one_object(serving, tiny_model):
    done = serving.command("prompt", "hello", "--json", "--max-tokens", "5", "--temperature", "0")
    assert done.returncode == 0, done.stderr
    answer = json.loads(done.stdout)
    assert answer["strategy"] == "distributed-no-cache"
    assert answer["workers"] == ["worker-0", "worker-1"]
    assert answer["completion_tokens"] == len(answer["token_ids"]) == 5
    for key in ("text", "reason", "prompt_tokens", "finish_reason", "ttft_s", "decode_tokens_per_s"):
        assert key in answer


@pytest.mark.parametrize(("mode", "strategy"), [("always", "distributed-no-cache"), ("never", "single-device-cached")])
def test_environment_of_one_prompt_decides_its_mode(serving, mode, strategy):
    environment = {"USE_DISTRIBUTED_INFERENCE": mode}
    prompted = serving.command("prompt", "hello", "--json", "--max-tokens", "3", environment=environment)
    assert json.loads(prompted.stdout)["strategy"] == strategy
    explained = serving.command("explain", "hello", "--json", environment=environment)
    assert json.loads(explained.stdout)["strategy"] == strategy
