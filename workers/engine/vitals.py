"""What a worker says of itself: what its compute thread is at, how much it did, what its caches take.

Written by the compute thread alone. `heartbeat` may be called on another one, most of all while the compute thread is
stuck: so whatever it reads is a frozen value in one attribute.
"""

from collections.abc import Mapping

import msgspec

from protocol.messages import Heartbeat
from protocol.values import LayerRange
from workers.engine.slowness import Slowness
from workers.model.stage_loading import LoadedStages

# How old the figures in a heartbeat may be.
MEASURE_EVERY_S = 0.25
# What is not a step takes a moment, on a crowded machine some seconds.
MESSAGE_LIMIT_S = 5.0
# Parts of caches that are read, written or copied take longer, from the slowest disk a second for so many bytes.
MOVED_BYTES_PER_S = 50e6
# A layer of weights, the largest from the slowest disk; what takes longer will never end.
READING_LIMIT_S = 300.0
# Another rank that is lost or stuck is found out by what it says itself; who waits for it is well, and so for longer.
RANK_LIMIT_S = 60.0
# A thread that waits for messages takes one that comes at once.
DEAF_LIMIT_S = 5.0


def moving_limit_s(num_bytes: int) -> float:
    """How many seconds it may take at most to move this much of caches."""
    return MESSAGE_LIMIT_S + num_bytes / MOVED_BYTES_PER_S


class _Busy(msgspec.Struct, frozen=True):
    since: float
    limit_s: float


class _Done(msgspec.Struct):
    """Since the process began."""

    steps: int = 0
    rows: int = 0
    busy_s: float = 0.0


class Vitals:
    """See the module. sent_bytes: what the links count as they send; held: the model that is open here and its layers whose weights
    were read.
    """

    def __init__(self, worker: str, sent_bytes: Mapping[str, int]):
        self._sent_bytes = sent_bytes
        self._busy: _Busy | None = None
        self._waits = False
        self._num_begun = 0
        self._deaf: tuple[int, float] | None = None  # since when messages wait for a thread that waits for messages
        self._measured_at: float | None = None
        self._measured = Heartbeat(worker=worker)
        self._done = _Done()
        self._read_bytes = 0
        self.slowness = Slowness()
        self.held: tuple[str | None, tuple[LayerRange, ...]] = (None, ())

    def __repr__(self) -> str:
        return f"Vitals({self.num_steps} steps, {self._busy})"

    @property
    def num_steps(self) -> int:
        return self._done.steps

    def begin(self, now: float, limit_s: float = MESSAGE_LIMIT_S) -> None:
        """The compute thread turns to something that should take `limit_s` at most."""
        self._busy = _Busy(now, limit_s)
        self._num_begun += 1

    def rest(self) -> None:
        """The compute thread is at nothing any more."""
        self._busy, self._waits = None, False

    def wait(self) -> None:
        """The compute thread waits for messages."""
        self._busy, self._waits = None, True

    def wait_for_rank(self) -> None:
        """The compute thread waits, in the midst of what it is at, for another worker."""
        if self._busy is not None and self._busy.limit_s < RANK_LIMIT_S:
            self._busy = _Busy(self._busy.since, RANK_LIMIT_S)

    def count(self, num_rows: int, seconds: float) -> None:
        """A step is done."""
        self._done.steps += 1
        self._done.rows += num_rows
        self._done.busy_s += seconds

    def have(self, held: tuple[str | None, tuple[LayerRange, ...]], read_bytes: int) -> None:
        """What is open here now; read_bytes: of weights, since the process began."""
        self.held = held
        self._read_bytes = read_bytes

    def is_due(self, now: float) -> bool:
        """Whether it is time to measure again."""
        return self._measured_at is None or now - self._measured_at >= MEASURE_EVERY_S

    def measure(self, now: float, stages: LoadedStages) -> None:
        """Take the figures that the next heartbeats say."""
        self._measured_at = now
        executors = stages.executors.values()
        self._measured = msgspec.structs.replace(
            self._measured,
            weights_bytes=stages.weights_bytes,
            kv_bytes=sum(executor.kv_bytes for executor in executors)
            + (0 if stages.guessers is None else stages.guessers.kv_bytes),
            prefix_bytes=sum(executor.prefixes.num_bytes for executor in executors),
            shared_bytes=sum(executor.shared_bytes for executor in executors),
            disk_bytes=sum(executor.prefixes.disk_bytes for executor in executors),
            running=sum(len(executor) for executor in executors),
            **msgspec.structs.asdict(self._done),
            read_bytes=self._read_bytes,
            slowness=self.slowness.value(now),
            sent_bytes=dict(self._sent_bytes),
        )

    def heartbeat(self, now: float, *, num_waiting: int) -> Heartbeat:
        """For any thread. num_waiting: messages that the compute thread has not taken yet."""
        busy = self._busy or self._deafness(now, num_waiting)
        return msgspec.structs.replace(
            self._measured,
            queued=num_waiting,
            oldest_step_s=None if busy is None else max(0.0, now - busy.since),
            overdue_s=0.0 if busy is None else busy.limit_s,
        )

    def _deafness(self, now: float, num_waiting: int) -> _Busy | None:
        """A thread that should have woken up for a message long ago is stuck, too."""
        if not num_waiting or not self._waits:
            self._deaf = None
        elif self._deaf is None or self._deaf[0] != self._num_begun:
            self._deaf = (self._num_begun, now)
        return None if self._deaf is None else _Busy(self._deaf[1], DEAF_LIMIT_S)
