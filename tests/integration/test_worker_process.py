"""Worker processes on their own, with a test as their coordinator: joining, serving, losing the coordinator, ending."""

import base64
import contextlib
import os
import queue
import secrets
import subprocess
import sys
import threading
import time
from contextlib import closing

import numpy as np
import psutil
import pytest

from protocol.home import Home
from protocol.messages import (
    Beat,
    Generate,
    Heartbeat,
    Inspected,
    InspectModel,
    Join,
    Loaded,
    LoadStage,
    OpenSequence,
    Rejected,
    Shutdown,
    StagePlan,
    Tokens,
    Welcome,
)
from protocol.model_digest import model_digest
from protocol.transport import KeyPair, ZmqInbox, ZmqOutbox
from protocol.transport.addressing import LOOPBACK, endpoint_of
from protocol.transport.echo import measure
from protocol.values import KvSettings, LayerRange, Route, Sampling
from tests.support.in_process_cluster import alone
from tests.support.running_cluster import CHECKOUT

LIMIT_S = 60.0
PROMPT = list(range(30, 60))


class TestCoordinator:
    """Starts workers, and speaks with them over real sockets. Beats whenever it waits, unless it is `silent`."""

    __test__ = False

    def __init__(self, folder, model):
        self.home = Home(folder)
        self.home.create()
        self.digest = model_digest(model)
        self.home.remember_model(self.digest, model)
        self._arrivals = queue.SimpleQueue()
        keys = KeyPair.generate()
        self._inbox = ZmqInbox(self._arrivals.put, keys=keys)
        self._inbox.start()
        self._outbox = ZmqOutbox(keys)
        self._secret = secrets.token_bytes(16)
        self.epoch = 1 << 32
        self.joins, self.processes = {}, {}
        self.members_keys = ()
        self.silent = False

    @property
    def inbox(self):
        return self._inbox.peer

    @property
    def token(self):
        return base64.urlsafe_b64encode(self._inbox.peer.public_key.encode() + self._secret).decode().rstrip("=")

    def start(self, name, *options, by_environment=False):
        command = [sys.executable, "-m", "workers", "--name", name, "--join", self._inbox.peer.endpoint]
        command += ["--memory-limit", str(1 << 30), "--home", str(self.home.root), *options]
        process = subprocess.Popen(
            command if by_environment else [*command, "--token", "-"],
            cwd=CHECKOUT,
            env=os.environ | ({"TANDEM_TOKEN": self.token} if by_environment else {}),
            stdin=subprocess.PIPE,
        )
        self.processes[name] = process
        if not by_environment:
            process.stdin.write(self.token.encode() + b"\n")
        process.stdin.close()

    def send(self, worker, message, buffers=()):
        self._outbox.send(self.joins[worker].peer, self.epoch, message, buffers)

    def await_message(self, kind, *, of=None, limit_s=LIMIT_S):
        """The next message of a kind, of a worker where one is named."""
        deadline = time.monotonic() + limit_s
        while (left := deadline - time.monotonic()) > 0:
            if not self.silent:
                for worker in self.joins:
                    self.send(worker, Beat(members=tuple(self.joins), keys=self.members_keys))
            with contextlib.suppress(queue.Empty):
                message = self._arrivals.get(timeout=min(left, 0.2)).message
                if isinstance(message, kind) and of in {
                    None,
                    getattr(message, "worker", getattr(message, "name", None)),
                }:
                    return message
        raise AssertionError(f"no {kind.__name__} came within {limit_s:g} s")

    def await_of_each(self, kind):
        """A message of a kind of each worker, by its name."""
        found = {}
        while found.keys() != self.joins.keys():
            message = self.await_message(kind)
            found[message.name if isinstance(message, Join) else message.worker] = message
        return found

    def admit(self, name):
        self.joins[name] = self.await_message(Join, of=name)
        self.send(name, Welcome(inbox=self._inbox.peer, door=self._inbox.peer))
        return self.joins[name]

    def load(self, found):
        """A plan of all workers, half of the layers each."""
        names, middle = sorted(self.joins), found.legal_cuts[len(found.legal_cuts) // 2]
        bounds = [(0, middle), (middle, found.num_layers)]
        stages = tuple(
            StagePlan(worker=name, peer=self.joins[name].data, layers=LayerRange(*layers), holds_full_model=False)
            for name, layers in zip(names, bounds, strict=True)
        )
        plan = LoadStage(
            model=self.digest,
            reply_to=self._inbox.peer,
            kv=KvSettings(),
            prefix_memory_bytes=0,
            prefix_disk_bytes=0,
            stages=stages,
            pipeline=Route(tuple(names)),
            last_position_only=found.last_position_only,
            batches=found.batches,
            prefill_chunk_tokens=None,
        )
        for name in names:
            self.send(name, plan)
        self.await_of_each(Loaded)

    def serve(self):
        """Two workers with a plan; what the inspection found."""
        for name in ("alpha", "beta"):
            self.start(name)
            self.admit(name)
        self.send("alpha", InspectModel(model=self.digest, reply_to=self.inbox))
        found = self.await_message(Inspected)
        self.load(found)
        return found

    def generate(self, max_tokens):
        request = Generate(
            sequence=1,
            route=Route(tuple(sorted(self.joins))),
            cached=True,
            max_tokens=max_tokens,
            end_tokens=(),
            sampling=Sampling(),
            seed=0,
        )
        self.send("alpha", request, (np.array(PROMPT, np.int32).tobytes(),))
        found = []
        while len(found) < max_tokens:
            found += self.await_message(Tokens).updates[0].tokens
        return found

    def close(self):
        for process in self.processes.values():
            process.kill()
            process.wait(10)
        self._outbox.close()
        self._inbox.close()


@pytest.fixture
def coordinator(tiny_model, tmp_path):
    with contextlib.closing(TestCoordinator(tmp_path / "home", tiny_model)) as coordinator:
        yield coordinator


def test_workers_serve_lose_the_coordinator_and_serve_again_with_what_they_held(coordinator, tiny_model):
    found = coordinator.serve()
    assert coordinator.generate(8) == alone(tiny_model, PROMPT, 8)
    assert coordinator.await_message(Heartbeat, of="beta").read_bytes > 0

    coordinator.silent = True
    coordinator.joins = coordinator.await_of_each(Join)
    for join in coordinator.joins.values():
        assert join.model == coordinator.digest
        assert join.held
    coordinator.silent = False
    coordinator.epoch += 1
    coordinator.load(found)
    assert coordinator.generate(8) == alone(tiny_model, PROMPT, 8)

    for name, process in coordinator.processes.items():
        coordinator.send(name, Shutdown())
        assert process.wait(10) == 0


def test_token_from_the_environment_admits_and_stands_in_no_argument(coordinator):
    coordinator.start("alpha", by_environment=True)
    join = coordinator.admit("alpha")
    assert join.peer != join.data
    assert not any(coordinator.token in argument for argument in psutil.Process(join.pid).cmdline())


def test_refused_worker_ends(coordinator):
    coordinator.start("alpha")
    coordinator.joins["alpha"] = coordinator.await_message(Join)
    coordinator.silent = True
    coordinator.send("alpha", Rejected(reason="the token is not this cluster's"))
    assert coordinator.processes["alpha"].wait(10) == 0


def test_orphan_ends_after_its_time_and_not_when_its_input_does(coordinator):
    coordinator.start("alpha", "--orphan-s", "4")
    coordinator.admit("alpha")
    coordinator.await_message(Heartbeat)
    coordinator.silent = True
    began = time.monotonic()
    coordinator.processes["alpha"].wait(15)
    assert time.monotonic() - began > 2


def test_member_that_is_not_of_the_plan_gets_nothing_from_a_stage(coordinator, tiny_model):
    """Its key is valid: the coordinator names it to everybody as a member, and so the echo answers it."""
    coordinator.serve()
    outsider = KeyPair.generate()
    coordinator.members_keys = (outsider.public,)
    stage = coordinator.joins["beta"].data
    echo = endpoint_of(LOOPBACK, stage.answer_port)
    while measure(echo, stage.public_key, outsider, with_load=False) is None:
        coordinator.await_message(Heartbeat, of="beta")
    opening = OpenSequence(
        sequence=1, route=Route(("alpha", "beta")), cached=True, sampling=Sampling(), seed=0, history=(), max_length=40
    )
    refused = threading.Event()
    with closing(ZmqOutbox(outsider, linger_ms=0)) as outbox:
        outbox.watch(stage, refused.set)
        outbox.send(stage, coordinator.epoch, opening)
        assert refused.wait(LIMIT_S)
    assert coordinator.generate(8) == alone(tiny_model, PROMPT, 8)
