"""Hosts that give models to each other in one process, with whatever goes wrong between them; no socket, no worker."""

import queue
import threading
from pathlib import Path

from protocol.model_digest import model_digest
from protocol.values import LayerRange, Peer
from workers.model.needed_tensors import needed_tensors
from workers.model.weights_fetch import Outside, WeightsFetcher
from workers.model.weights_source import ABSENT, GIVEN, WeightsSource

PATIENCE_S = 3.0


def peer(name):
    return Peer(endpoint="tcp://127.0.0.1:1", public_key=name, answer_port=1)


class MemoryConnection:
    """Answers at once, by asking the host in the thread that asks."""

    def __init__(self, host):
        self._host = host
        self._answers = queue.SimpleQueue()

    def ask(self, number, asked):
        answer = self._host.answer(asked)
        if answer is not None:
            self._answers.put((number, [memoryview(frame) for frame in answer]))

    def receive(self, timeout_s):
        try:
            return self._answers.get(timeout=min(timeout_s, 0.1))
        except queue.Empty:
            return None

    def close(self):
        pass


class SourceHost:
    """Has one model. spoil: what it does with an answer, given the number of answers with a piece before; None gives none."""

    def __init__(self, name, path, spoil=lambda _, answer: answer):
        self.peer = peer(name)
        self.source = WeightsSource(lambda digest: path if digest == model_digest(path) else None)
        self.spoil = spoil
        self.num_bytes = 0
        self.num_given = 0
        self._lock = threading.Lock()

    def answer(self, asked):
        answer = self.source.answer(asked)
        with self._lock:
            if answer is ABSENT or answer[0] != GIVEN or b"piece" not in asked[:16]:
                return answer
            self.num_given += 1
            self.num_bytes += len(answer[1])
            return self.spoil(self.num_given, answer)


def fetcher(root, *hosts, **options):
    """One that reaches these hosts."""
    by_key = {host.peer.public_key: host for host in hosts}
    given = {"needed": needed_tensors, "patience_s": PATIENCE_S, "lost": lambda _: None} | options
    return WeightsFetcher(
        Path(root), Outside(connect=lambda source: MemoryConnection(by_key[source.public_key]), **given), "me"
    )


def fetch(fetching, digest, hosts, *ranges):
    """The folder with these ranges of layers."""
    return fetching(digest, [LayerRange(*each) for each in ranges], [host.peer for host in hosts], lambda *_: None)
