"""The compute thread of a worker: takes messages in order, runs stages and heads, sends results.

Everything that touches MLX happens here, on the thread that calls `run` (mlx refuses arrays that another thread made).
Other threads only `post` messages and read `stats`. One turn of the loop handles what arrived, then lets each head run
one step: so a stage's arrivals and the routes that begin here share the thread fairly, and a cancellation is seen
after at most one step.
"""

import contextlib
import logging
import queue
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import mlx.core as mx
import msgspec
import numpy as np

from protocol.codec import Envelope
from protocol.errors import TandemError
from protocol.messages import (
    Cancel,
    CloseSequence,
    DropPrefix,
    ForgetConversation,
    Generate,
    Heartbeat,
    Inspected,
    InspectModel,
    KeepPrefix,
    KnownPrefix,
    Loaded,
    LoadFailed,
    LoadProgress,
    LoadStage,
    Message,
    OpenSequence,
    Sampled,
    Shutdown,
    Step,
    StepFailed,
)
from protocol.transport import Sender
from protocol.values import Buffer, Peer, Route, pack_ids, pack_keys, unpack_ids, unpack_keys
from strategy.chunking import ChunkSize
from strategy.prefix import Key, PrefixDirectory
from strategy.scheduling import NO_SLOT
from workers.engine.executor import Launched
from workers.engine.head import Head
from workers.engine.trace import Tracer
from workers.model import payload
from workers.model.inspection import inspect
from workers.model.shelf import ModelShelf
from workers.model.stage_loading import LoadedStages, load_stages

log = logging.getLogger(__name__)

_STATS_EVERY_S = 0.25
# How often MLX gives unused buffers back to the system, as mlx-lm does.
_CLEAR_EVERY_STEPS = 256
_Passed = OpenSequence | CloseSequence | KeepPrefix | DropPrefix


@dataclass(frozen=True)
class _Pending:
    """A launched step whose end nobody waited for yet. started_ns: when the device was free for it."""

    launched: Launched
    tokens: np.ndarray
    started_ns: int


class Engine:
    """See the module. `coordinator` is where reports go; `name` is this worker's name in plans."""

    def __init__(self, name: str, coordinator: Peer, outbox: Sender, shelf: ModelShelf, tracer: Tracer | None = None):
        self._name = name
        self._coordinator = coordinator
        self._outbox = outbox
        self._shelf = shelf
        self._tracer = tracer
        self._arrivals: queue.SimpleQueue[Envelope] = queue.SimpleQueue()
        self._epoch = 0
        self._peers: dict[str, Peer] = {}
        self._stages = LoadedStages()
        self._heads: dict[Route, Head] = {}
        self._directories: dict[Route, PrefixDirectory] = {}
        self._num_steps = 0
        self._num_rows = 0
        self._busy_s = 0.0
        self._pending: _Pending | None = None
        self._launch_returns_at_once = mx.metal.is_available()
        self._finished_ns = 0
        self._running = True
        self._stats_at = 0.0
        self.stats = self._measure()
        self._handlers: Mapping[type[Message], Callable[[Any, tuple[Buffer, ...]], None]] = {
            InspectModel: self._inspect,
            LoadStage: self._load,
            Generate: self._generate,
            Cancel: self._cancel,
            KnownPrefix: self._know,
            ForgetConversation: self._forget,
            OpenSequence: self._pass_on,
            CloseSequence: self._pass_on,
            KeepPrefix: self._pass_on,
            DropPrefix: self._pass_on,
            Step: self._arrived,
            Sampled: self._sampled,
            StepFailed: self._step_failed,
            Shutdown: self._shutdown,
        }

    def __repr__(self) -> str:
        return f"Engine({self._name}, epoch {self._epoch}, heads {list(self._heads.values())})"

    def post(self, envelope: Envelope) -> None:
        """Hand in a message; callable from any thread."""
        self._arrivals.put(envelope)

    def run(self) -> None:
        """Work until a Shutdown arrives."""
        idle = True
        while self._running:
            self._take(block=idle)
            idle = not (self._advance_heads() or self._finish_pending() or self._spill())
            self._update_stats()
        self._stages.flush()

    def turn(self) -> bool:
        """One turn without waiting, for tests; whether anything was done."""
        return self._take(block=False) or self._advance_heads() or self._finish_pending() or self._spill()

    def _take(self, *, block: bool) -> bool:
        """Handle everything that arrived; with `block`, wait a while for something."""
        taken = False
        while self._running:
            try:
                envelope = self._arrivals.get(block and not taken, timeout=_STATS_EVERY_S)
            except queue.Empty:
                return taken
            taken = True
            self._handle(envelope)
        return taken

    def _handle(self, envelope: Envelope) -> None:
        if envelope.epoch < self._epoch:
            log.info("dropped %s of epoch %d", type(envelope.message).__name__, envelope.epoch)
            return
        self._epoch = envelope.epoch
        handler = self._handlers.get(type(envelope.message))
        if handler is None:
            log.warning("dropped an unexpected %s", type(envelope.message).__name__)
            return
        handler(envelope.message, envelope.buffers)

    def _advance_heads(self) -> bool:
        worked = False
        for head in list(self._heads.values()):
            if issued := head.next_step():
                worked = True
                step, tokens = issued
                with self._failing_only(step):
                    self._launch(step, tokens, None)
                    head.launched(step)
        return worked

    def _spill(self) -> bool:
        """While no request runs here, put what past ones left on disk, part by part."""
        executors = self._stages.executors.values()
        return not any(len(executor) for executor in executors) and any(
            executor.prefixes.spill() for executor in executors
        )

    # --- loading

    def _inspect(self, message: InspectModel, _: tuple[Buffer, ...]) -> None:
        try:
            found = inspect(self._shelf.place(message.model), self._shelf.cache)
        except TandemError as error:
            self._report(LoadFailed(worker=self._name, message=str(error)))
            return
        self._report(
            Inspected(
                worker=self._name,
                architecture=found.architecture,
                num_layers=found.num_layers,
                legal_cuts=found.legal_cuts,
                why_not=found.why_not,
                batches=found.batches,
                last_position_only=found.last_position_only,
                context_tokens=found.context_tokens,
                uncached_in_caches=found.uncached_in_caches,
                whole_prompts=found.whole_prompts,
            )
        )

    def _load(self, message: LoadStage, _: tuple[Buffer, ...]) -> None:
        self._stages.flush()
        self._peers = {stage.worker: stage.peer for stage in message.stages}
        self._heads.clear()
        self._directories.clear()
        try:
            self._stages = load_stages(self._name, message, self._shelf, self._report_loaded)
        except TandemError as error:
            self._report(LoadFailed(worker=self._name, message=str(error)))
            return
        except (RuntimeError, ValueError, MemoryError) as error:
            log.exception("loading failed")
            self._report(LoadFailed(worker=self._name, message=f"{self._name} could not load the model: {error}"))
            return
        prefixes = self._stages.prefixes
        loaded = Loaded(worker=self._name, weights_bytes=self._stages.weights_bytes, prefixes=prefixes)
        kept = [self._stages.executors[prefix.route].prefixes.on_disk for prefix in prefixes]
        self._send(self._coordinator, loaded, [buffer for keys in kept for buffer in _packed(keys)])

    def _report_loaded(self, num_bytes: int) -> None:
        self._report(LoadProgress(worker=self._name, loaded_bytes=num_bytes))

    def _shutdown(self, _: Shutdown, __: tuple[Buffer, ...]) -> None:
        self._running = False

    # --- head of routes that begin here

    def _generate(self, message: Generate, buffers: tuple[Buffer, ...]) -> None:
        self._head(message.route).begin(message, unpack_ids(buffers[0]))

    def _head(self, route: Route) -> Head:
        if route not in self._heads:
            self._heads[route] = Head(
                route,
                chunk_size=ChunkSize(
                    num_stages=len(route),
                    cost=self._stages.chunk_costs[route],
                    fixed_tokens=self._stages.fixed_chunk_tokens,
                ),
                max_rows=self._stages.max_rows,
                prefixes=self._directories.get(route),
                report=self._report,
                forward=self._apply_and_pass_on,  # type: ignore[arg-type]
            )
        return self._heads[route]

    def _know(self, message: KnownPrefix, buffers: tuple[Buffer, ...]) -> None:
        """Reuse of prefixes begins on a route that has its head here."""
        directory = PrefixDirectory(capacity=message.capacity, snapshots=message.snapshots)
        lengths = unpack_ids(buffers[1])
        gone = directory.restore(zip(unpack_keys(buffers[0]), lengths, strict=True))
        self._directories[message.route] = directory
        if gone:
            self._apply_and_pass_on(DropPrefix(route=message.route), tuple(gone))

    def _forget(self, message: ForgetConversation, _: tuple[Buffer, ...]) -> None:
        for head in self._heads.values():
            head.forget_conversation(message.conversation)

    def _cancel(self, message: Cancel, _: tuple[Buffer, ...]) -> None:
        for head in self._heads.values():
            head.cancel(message.sequence)

    def _sampled(self, message: Sampled, _: tuple[Buffer, ...]) -> None:
        self._heads[message.route].sampled(message.number, message.tokens)

    def _step_failed(self, message: StepFailed, _: tuple[Buffer, ...]) -> None:
        self._heads[message.route].failed(message.number, message.message)

    # --- stage

    def _next_worker(self, route: Route) -> Peer | None:
        following = route.next_after(self._name)
        return None if following is None else self._peers[following]

    def _pass_on(self, message: _Passed, buffers: tuple[Buffer, ...]) -> None:
        self._apply_and_pass_on(message, unpack_keys(buffers[0]) if buffers else ())

    def _apply_and_pass_on(self, message: _Passed, keys: tuple[Key, ...] = ()) -> None:
        executor = self._stages.executors[message.route]
        peer = self._next_worker(message.route)
        if peer is not None:
            self._finish_pending()  # what was launched before must arrive before
            self._send(peer, message, [pack_keys(keys)])
        match message:
            case OpenSequence():
                executor.open(message, keys)
            case KeepPrefix():
                executor.keep(message, keys)
            case DropPrefix():
                executor.prefixes.drop(keys)
            case CloseSequence():
                executor.close(message.sequence)

    def _arrived(self, step: Step, buffers: tuple[Buffer, ...]) -> None:
        with self._failing_only(step):
            tokens = np.frombuffer(buffers[0], dtype=np.int32).reshape(len(step.rows), step.num_tokens)
            self._launch(step, tokens, payload.decode(step.payload, buffers[1:]))

    def _launch(self, step: Step, tokens: np.ndarray, received: Any) -> None:
        """Begin a step, then finish the one before: the host prepares one while the device computes the other.

        Not for a step that another stage waits for, on a CPU: there a launch blocks until most of the step is computed.
        """
        if not step.route.is_single and not self._launch_returns_at_once:
            self._finish_pending()
        started_ns = time.time_ns()
        launched = self._stages.executors[step.route].launch(step, tokens, received)
        self._finish_pending()
        self._pending = _Pending(launched, tokens, max(started_ns, self._finished_ns))

    def _finish_pending(self) -> bool:
        """Wait for the step in progress and send what came of it; False when there is none."""
        pending, self._pending = self._pending, None
        if pending is None:
            return False
        step = pending.launched.step
        with self._failing_only(step):
            output = self._stages.executors[step.route].finish(pending.launched)
            self._count(step, pending.started_ns)
            if peer := self._next_worker(step.route):
                spec, arrays = payload.encode(output)
                passed_on = msgspec.structs.replace(step, payload=spec)
                self._send(peer, passed_on, [pending.tokens.tobytes(), *arrays])
            else:
                self._answer(step, Sampled(number=step.number, route=step.route, tokens=tuple(output)))
        return True

    @contextlib.contextmanager
    def _failing_only(self, step: Step) -> Iterator[None]:
        """One request must never take the worker down: what goes wrong with a step is the failure of its rows."""
        try:
            yield
        except Exception as error:  # the request's boundary: a damaged message, or what the model's code raises
            log.exception("step %d failed", step.number)
            self._answer(step, StepFailed(number=step.number, route=step.route, message=f"{self._name}: {error}"))

    def _count(self, step: Step, started_ns: int) -> None:
        self._finished_ns = time.time_ns()
        seconds = (self._finished_ns - started_ns) / 1e9
        self._num_steps += 1
        self._num_rows += len(step.rows)
        self._busy_s += seconds
        if step.route.head == self._name:
            self._heads[step.route].ran(step, seconds)
        if self._num_steps % _CLEAR_EVERY_STEPS == 0:
            mx.clear_cache()
        if self._tracer is not None:
            kind = "decode" if step.slot != NO_SLOT else "prefill" if step.cached else "recompute"
            sequences = [row.sequence for row in step.rows]
            self._tracer.event(kind, started_ns, step=step.number, sequences=sequences, tokens=step.num_tokens)

    def _answer(self, step: Step, answer: Sampled | StepFailed) -> None:
        """To the head of the step's route, directly when that is here."""
        if step.route.head == self._name:
            self._handlers[type(answer)](answer, ())
        else:
            self._send(self._peers[step.route.head], answer)

    # --- reporting

    def _report(self, message: Message) -> None:
        self._send(self._coordinator, message)

    def _send(self, peer: Peer, message: Message, buffers: list[Buffer] | None = None) -> None:
        self._outbox.send(peer, self._epoch, message, buffers or ())

    def _update_stats(self) -> None:
        now = time.monotonic()
        if now - self._stats_at >= _STATS_EVERY_S:
            self._stats_at = now
            self.stats = self._measure()

    def _measure(self) -> Heartbeat:
        return Heartbeat(
            worker=self._name,
            weights_bytes=self._stages.weights_bytes,
            kv_bytes=sum(executor.kv_bytes for executor in self._stages.executors.values()),
            prefix_bytes=sum(executor.prefixes.num_bytes for executor in self._stages.executors.values()),
            shared_bytes=sum(executor.shared_bytes for executor in self._stages.executors.values()),
            disk_bytes=sum(executor.prefixes.disk_bytes for executor in self._stages.executors.values()),
            running=sum(len(executor) for executor in self._stages.executors.values()),
            queued=self._arrivals.qsize(),
            steps=self._num_steps,
            rows=self._num_rows,
            busy_s=self._busy_s,
        )


def _packed(keys: list[tuple[Key, int]]) -> tuple[bytes, bytes]:
    """Keys, and their numbers of tokens, as two buffers."""
    return pack_keys([key for key, _ in keys]), pack_ids(length for _, length in keys)
