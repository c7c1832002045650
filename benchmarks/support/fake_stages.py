"""A worker without MLX: speaks the wire format, and as head sends tokens at a set pace and notes when.

`python -m benchmarks.support.fake_stages`, started by the coordinator with a worker's arguments. It waits until as many
sequences as `Pace.streams` are there, sends them tokens in messages of `Pace.rows` sequences, evenly spread in time, and
writes the times to a file when all have ended.
"""

import argparse
import os
import queue
import socket
import sys
import time
from array import array
from collections.abc import Sequence
from pathlib import Path

import msgspec

from protocol.codec import PROTOCOL, Envelope
from protocol.join_token import read_token
from protocol.messages import (
    Generate,
    Heartbeat,
    Inspected,
    InspectModel,
    Join,
    KeptPrefix,
    Loaded,
    LoadStage,
    Message,
    Shutdown,
    Tokens,
    Update,
    Welcome,
)
from protocol.transport import KeyPair, ZmqInbox, ZmqOutbox
from protocol.values import Peer, Route
from strategy.memory import KvNeeds

PACE_FILE = "pace.json"
SENT_FILE = "sent.msgpack"
HEARTBEAT_S = 0.5
ADMITTED_WITHIN_S = 60.0


class Pace(msgspec.Struct, frozen=True, kw_only=True):
    """What to send: one token id, over and over. rows: sequences in a message."""

    tokens_per_s: float
    streams: int
    rows: int
    token: int
    num_layers: int


def batches(sequences: Sequence[int], rows: int) -> list[list[int]]:
    """The sequences in groups of at most `rows`."""
    return [list(sequences[start : start + rows]) for start in range(0, len(sequences), rows)]


class FakeStages:
    """See the module."""

    def __init__(self, name: str, coordinator: Peer, secret: str, home: Path):
        self._name = name
        self._coordinator = coordinator
        self._secret = secret
        self._home = home
        self._arrivals: queue.SimpleQueue[Envelope] = queue.SimpleQueue()
        keys = KeyPair.generate()
        self._outbox = ZmqOutbox(keys)
        self._inbox = ZmqInbox(self._arrivals.put, keys=keys)
        self._reply_to: Peer | None = None  # once admitted
        self._epoch = 0
        self._waiting: dict[int, Generate] = {}
        self._beat_at = 0.0
        self._running = True

    def run(self) -> None:
        """Join and serve until a Shutdown arrives or the coordinator is gone."""
        self._inbox.start()
        join = Join(
            protocol=PROTOCOL,
            secret=self._secret,
            name=self._name,
            host=socket.gethostname(),
            pid=os.getpid(),
            peer=self._inbox.peer,
            data=self._inbox.peer,
            memory_limit_bytes=1 << 40,
        )
        self._outbox.send(self._coordinator, 0, join)
        supervisor, begun_at = os.getppid(), time.monotonic()
        while self._running and os.getppid() == supervisor:
            if self._reply_to is None and time.monotonic() - begun_at > ADMITTED_WITHIN_S:
                break  # its coordinator may have ended before it was asked whose child this is
            self._beat()
            self._take(timeout_s=HEARTBEAT_S / 2)
            if self._waiting and len(self._waiting) >= self._pace().streams:
                self._generate(self._pace())

    def _pace(self) -> Pace:
        return msgspec.json.decode((self._home / PACE_FILE).read_bytes(), type=Pace)

    def _send(self, message: Message, buffers: tuple[bytes, ...] = ()) -> None:
        if self._reply_to is not None:
            self._outbox.send(self._reply_to, self._epoch, message, buffers)

    def _beat(self) -> None:
        now = time.monotonic()
        if now - self._beat_at >= HEARTBEAT_S:
            self._beat_at = now
            self._send(Heartbeat(worker=self._name))

    def _take(self, *, timeout_s: float) -> None:
        try:
            envelope = self._arrivals.get(timeout=timeout_s)
        except queue.Empty:
            return
        message = envelope.message
        self._epoch = max(self._epoch, envelope.epoch)
        if isinstance(message, Welcome):
            self._reply_to = message.inbox
        elif isinstance(message, InspectModel):
            self._send(self._inspected())
        elif isinstance(message, LoadStage):
            nothing = KvNeeds(fixed_bytes=0, growth=(), snapshots=False)
            kept = (KeptPrefix(route=Route((self._name,)), needs=nothing),)
            self._send(Loaded(worker=self._name, weights_bytes=0, vocabulary_size=1 << 20, prefixes=kept), (b"", b""))
        elif isinstance(message, Generate):
            self._waiting[message.sequence] = message
        elif isinstance(message, Shutdown):
            self._running = False

    def _inspected(self) -> Inspected:
        num_layers = self._pace().num_layers
        return Inspected(
            worker=self._name,
            architecture="qwen2",
            num_layers=num_layers,
            legal_cuts=tuple(range(1, num_layers)),
            why_not=None,
            batches=True,
            last_position_only=True,
            context_tokens=1 << 20,
        )

    def _generate(self, pace: Pace) -> None:
        """Send every token of the waiting sequences on time; late ones at once."""
        lengths = {number: request.max_tokens for number, request in self._waiting.items()}
        self._waiting.clear()
        sent = {number: array("d") for number in lengths}
        groups = batches(sorted(lengths), pace.rows)
        start, num_sent = time.perf_counter() + 0.2, 0
        for position in range(max(lengths.values())):
            for group in groups:
                rows = [number for number in group if position < lengths[number]]
                self._sleep_until(start + num_sent / pace.tokens_per_s)
                now = time.perf_counter()
                self._send(Tokens(updates=tuple(_update(number, position, lengths[number], pace) for number in rows)))
                for number in rows:
                    sent[number].append(now)
                num_sent += len(rows)
                self._beat()
        times = {number: list(values) for number, values in sent.items()}
        unfinished = self._home / f"{SENT_FILE}.new"
        unfinished.write_bytes(msgspec.msgpack.encode(times))
        unfinished.rename(self._home / SENT_FILE)

    @staticmethod
    def _sleep_until(due: float) -> None:
        if (left := due - time.perf_counter()) > 0:
            time.sleep(left)


def _update(number: int, position: int, length: int, pace: Pace) -> Update:
    return Update(number, (pace.token,), "length" if position == length - 1 else None)


def main() -> None:
    """Run one fake worker."""
    parser = argparse.ArgumentParser()
    for option in ("--name", "--join", "--home"):
        parser.add_argument(option, required=True)
    arguments, _ = parser.parse_known_args()
    public_key, secret = read_token(sys.stdin.readline().strip())
    coordinator = Peer(endpoint=arguments.join, public_key=public_key)
    FakeStages(arguments.name, coordinator, secret, Path(arguments.home)).run()
    os._exit(0)  # the inbox's thread may still wait for the network


if __name__ == "__main__":
    main()
