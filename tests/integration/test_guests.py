"""A worker from another home joins by a token, computes, leaves, comes back without one, and has to go when it is taken back."""

import time
from contextlib import closing

import pytest

from cluster.membership.invitations import InvitationBook
from protocol.home import Home
from protocol.host_specs import read_host_specs
from protocol.join_token import ID_CHARACTERS, make_token
from protocol.model_digest import model_digest
from tests.support.damage import damaged_copy
from tests.support.running_cluster import CHECKOUT, RunningCluster, wait_until

MODEL = CHECKOUT / "models" / "tandem-demo"  # where a worker finds it by its digest
PROMPT = "What is a KV cache?"


@pytest.fixture
def host():
    """A cluster of one worker."""
    with closing(RunningCluster()) as cluster:
        cluster.start(MODEL, "--workers", "1")
        yield cluster


@pytest.fixture
def elsewhere():
    """A home of another machine."""
    with closing(RunningCluster()) as elsewhere:
        yield elsewhere


class Door:
    """Where a cluster lets workers in, and what it gives out."""

    def __init__(self, cluster):
        self._home = Home(cluster.home)
        desired = self._home.read_desired()
        self.address = f"127.0.0.1:{desired.port}"
        self._public_key = desired.public_key

    def token(self, secret):
        return make_token(self._public_key, secret)

    def new_secret(self):
        return InvitationBook(self._home, time.time, read_host_specs()).new(uses=1, lasts_s=600)


def join(elsewhere, door, token=None, name="studio"):
    by = ("--token", token) if token else ()
    return elsewhere.command("worker", "--join", door.address, *by, "--name", name, "--background")


def part_of(cluster, name):
    """The worker's line in the status, once it has a part of the plan."""

    def found():
        status = cluster.ready_status()
        workers = {worker["name"]: worker for worker in status["workers"]} if status else {}
        worker = workers.get(name)
        return worker if worker and worker["state"] == "ready" and worker["layers"] else None

    return wait_until(found, f"{name} having a part of the plan")


def test_worker_from_elsewhere_joins_computes_leaves_returns_and_has_to_go(host, elsewhere):
    alone = host.complete(PROMPT, 12, temperature=0)
    door = Door(host)
    secret = door.new_secret()
    joined = join(elsewhere, door, door.token(secret))
    assert joined.returncode == 0, joined.stderr + elsewhere.logs()
    studio = part_of(host, "studio")
    assert studio["host"] == read_host_specs().name
    together = host.complete(PROMPT, 12, temperature=0, strategy="distributed-cached")
    assert sorted(together["tandem"]["workers"]) == ["studio", "worker-0"]
    assert together["choices"][0]["text"] == alone["choices"][0]["text"]

    verified = host.command("doctor", "--verify")
    assert verified.returncode == 0, verified.stderr
    assert "studio computes layers" in verified.stdout

    assert elsewhere.command("stop").stdout == "Stopped 1 worker of a cluster elsewhere.\n"
    wait_until(lambda: list(host.worker_pids()) == ["worker-0"], "the worker being missed by nobody")
    assert host.complete(PROMPT, 12, temperature=0)["choices"][0]["text"] == alone["choices"][0]["text"]

    copy = damaged_copy(MODEL, elsewhere.home / "copy", studio["layers"][0])
    Home(elsewhere.home).remember_model(model_digest(MODEL), copy)
    returned = join(elsewhere, door)
    assert returned.returncode == 0, returned.stderr + elsewhere.logs()
    assert part_of(host, "studio")["layers"] == studio["layers"]
    verified = host.command("doctor", "--verify")
    problems = [line for line in verified.stdout.splitlines() if line.startswith("problem")]
    assert verified.returncode == 1, verified.stderr
    assert {line.split()[1] for line in problems} == {"studio"}
    taken_back = host.command("token", "revoke", secret[:ID_CHARACTERS], "--end-workers")
    assert taken_back.returncode == 0, taken_back.stderr
    wait_until(lambda: not elsewhere.processes(), "the end of the worker")
    wait_until(lambda: list(host.worker_pids()) == ["worker-0"], "the worker being missed by nobody")


def test_worker_without_a_token_of_the_cluster_is_told_and_leaves_no_trace(host, elsewhere):
    door = Door(host)
    secret = door.new_secret()
    wrong = secret[:-4] + ("0000" if secret[-4:] != "0000" else "1111")
    refused = join(elsewhere, door, door.token(wrong))
    assert refused.returncode == 1
    assert "not one of this cluster" in refused.stderr
    assert list(host.worker_pids()) == ["worker-0"]
    assert not elsewhere.processes()
