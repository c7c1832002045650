"""Runs steps through the stages that this worker has in its routes, and passes on what comes of them.

Launches and finishes apart, so that the host prepares one step while the device computes the one before; who calls holds
the step in flight. Decides nothing and answers nobody: what goes wrong is raised. On the MLX thread.
"""

from collections.abc import Callable, Sequence

import mlx.core as mx
import msgspec
import numpy as np

from protocol.errors import WireError
from protocol.heap import give_back_memory
from protocol.messages import (
    CloseSequence,
    ComputeFigures,
    CopyArrived,
    CopyPrefix,
    DropPrefix,
    FiguresComputed,
    HandedOver,
    HandOver,
    KeepPrefix,
    OpenSequence,
    Pooled,
    Sampled,
    Step,
)
from protocol.transport import DataLinks
from protocol.values import Buffer, LayerRange, Route, pack_keys, unpack_keys
from strategy.prefix import Key
from workers.cache import kv_parts
from workers.cache.kv_parts import KvPart
from workers.cache.prefix_store import Handed
from workers.engine import together
from workers.engine.actions import AnswerHead, Launch, Passed, Tell
from workers.engine.copying import Copying
from workers.engine.fitness import UnfitMessage, required_buffer
from workers.engine.launched import Launched
from workers.engine.step_kind import kind_of
from workers.engine.timeline import Timeline
from workers.engine.usual_times import UsualTimes
from workers.engine.vitals import Vitals, moving_limit_s
from workers.model import payload
from workers.model.stage_loading import LoadedStages

# How often MLX gives unused buffers back to the system, as mlx-lm does.
_CLEAR_EVERY_STEPS = 256
# A prompt of a few tokens, also on the slowest machine.
_FIGURES_LIMIT_S = 60.0


class StepInFlight(msgspec.Struct, frozen=True, eq=False):
    """A launched step whose end nobody waited for yet. limit_s: how long the wait should take at most; requests: whom it is for, None
    where nobody looks.
    """

    launched: Launched
    tokens: np.ndarray | None
    started_at: float
    limit_s: float
    requests: tuple[str, ...] | None

    @property
    def step(self) -> Step:
        return self.launched.step


class FinishedStep(msgspec.Struct, frozen=True):
    """What came of a step here. told: for the head, nothing where the step went on to another worker."""

    seconds: float
    told: tuple[Tell | AnswerHead, ...] = ()


class StageRunner:
    """See the module. now: a clock that never goes back."""

    def __init__(self, name: str, links: DataLinks, vitals: Vitals, timeline: Timeline, now: Callable[[], float]):
        self._name = name
        self._links = links
        self._vitals = vitals
        self._timeline = timeline
        self._now = now
        self._usual: dict[Route, UsualTimes] = {}
        self._launch_returns_at_once = mx.metal.is_available()
        self._finished_at = now()
        self._copying = Copying(name, links)
        self._leaves_memory = False
        self.stages = LoadedStages()

    def __repr__(self) -> str:
        return f"StageRunner({self._name}, {[str(route) for route in self.stages.executors]})"

    def renew(self, stages: LoadedStages) -> None:
        """Run these from now on."""
        self.stages = stages
        self._leaves_memory = True
        self._copying.renew(stages)
        self._usual = {route: UsualTimes(stages.chunk_costs.get(route)) for route in stages.executors}

    def close_sequences(self) -> None:
        """End every sequence; what is kept of earlier ones stays here, and goes to nobody until the next plan."""
        self._copying.renew(LoadedStages())
        for executor in self.stages.executors.values():
            executor.clear()

    # --- what sequences leave and take

    def passes_on(self, route: Route) -> bool:
        """Whether another worker follows on a route."""
        return bool(route.told_by(self._name))

    def _next_worker(self, route: Route) -> str | None:
        return None if route.is_single else route.next_after(self._name)

    def apply(self, message: Passed, keys: tuple[Key, ...], handed: Handed = ()) -> Sequence[Tell]:
        """Pass a message on and do what it says; what another worker is to be told for it."""
        executor = self.stages.executors[message.route]
        for worker in message.route.told_by(self._name):
            self._links.send(worker, message, [pack_keys(keys)])
        match message:
            case OpenSequence():
                self._timeline.opened(message)
                self._move(executor.prefixes.num_bytes + executor.prefixes.disk_bytes)
                is_open = executor.open(message, keys, handed)
                if keys and not together.agree(self.stages.groups, message.route, is_so=is_open):
                    executor.close(message.sequence)
                self._copying.in_use(message.route, keys)
            case KeepPrefix():
                self._move(executor.kv_bytes)
                executor.keep(message, keys)
                self._copying.in_use(message.route, keys)
            case DropPrefix():
                executor.prefixes.drop(keys)
                self._copying.dropped(message.route, keys)
            case HandOver():
                self._move(executor.kv_bytes)
                return (self._handing_over(message, executor.part(message.sequence, message.start, message.end)),)
            case CloseSequence():
                self._timeline.closed(message)
                executor.close(message.sequence)
        return ()

    def spill(self) -> bool:
        """While no request runs here, put what past ones left on disk, part by part; whether there was any."""
        executors = self.stages.executors.values()
        if any(map(len, executors)):
            return False
        self._move(sum(executor.prefixes.num_bytes for executor in executors))
        return any(executor.prefixes.spill() for executor in executors)

    def rest(self) -> None:
        """Nothing came for a while: where no request runs, what steps and plans no longer use goes back to the system."""
        if self._leaves_memory and not any(map(len, self.stages.executors.values())):
            self._leaves_memory = False
            mx.clear_cache()
            give_back_memory()

    def _move(self, most_bytes: int) -> None:
        """Parts of caches are moved now, no more than so many bytes."""
        self._vitals.begin(self._now(), moving_limit_s(most_bytes))

    # --- prompts that are read for a worker which goes on alone

    def _handing_over(self, message: HandOver, part: KvPart) -> Tell:
        """Raises UnfitMessage for a cache of the model's own, which cannot be sent."""
        encoded = kv_parts.encode(part)
        if encoded is None:
            raise UnfitMessage("a cache of this model's own cannot be handed over")
        spec, buffers = encoded
        handed = HandedOver(
            sequence=message.request,
            route=message.route,
            worker=self._name,
            start=message.start,
            end=message.end,
            part=spec,
        )
        return Tell(message.holder, handed, buffers)

    def handed_over(self, message: HandedOver, buffers: Sequence[Buffer]) -> tuple[LayerRange, KvPart]:
        """What a stage has of a prompt, with its layers. Raises WireError for a part that is none, or of another length."""
        self._move(sum(map(len, buffers)))
        part = kv_parts.decode(message.part, buffers)
        needs = self.stages.needs_of(message.route)
        is_cut = needs is not None and not needs.snapshots
        if part.end != message.end or (is_cut and not part.has_tokens(message.end - message.start)):
            raise WireError(f"a part of a cache does not have the tokens {message.start} to {message.end}")
        return self.stages.pipeline_layers[message.worker], part

    # --- copies of what is kept, for another worker and of another worker

    def copy(self, *, is_idle: bool) -> bool:
        """Hand over what may go now of what is kept here; whether anything went. is_idle: nothing else is to do."""
        return self._copying.go_on(is_idle=is_idle)

    def adopt(self, message: CopyPrefix, buffers: Sequence[Buffer]) -> Sequence[Tell]:
        """Hold what the stage of another worker keeps. Raises WireError for a part that is none."""
        prefixes = self.stages.executors[message.route].prefixes
        self._move(sum(map(len, buffers)))
        try:
            (key,) = unpack_keys(required_buffer(buffers, 0, "the key of the part"))
            prefixes.adopt(message.layers, key, message.part, buffers[1:], is_earlier=message.is_earlier)
        finally:
            self._links.send(message.worker, CopyArrived(route=message.route))
        return ()

    def copied(self, _: CopyArrived, __: Sequence[Buffer]) -> Sequence[Tell]:
        """Another worker is done with a part that it was handed."""
        self._copying.arrived()
        return ()

    def flush(self, is_over: Callable[[], bool] = lambda: False) -> None:
        """Put on disk what past sequences left, until `is_over`."""
        self.stages.flush(is_over)

    def figures(self, message: ComputeFigures) -> FiguresComputed:
        """What this worker's layers make of the fixed input, in caches of its own: sequences do not notice."""
        self._vitals.begin(self._now(), _FIGURES_LIMIT_S)
        self._leaves_memory = True
        executors = self.stages.executors.items()  # parts of a model are nobody else's
        stages = tuple(executor.figures() for route, executor in executors if not route.is_shared)
        return FiguresComputed(worker=self._name, number=message.number, stages=stages)

    # --- steps

    @staticmethod
    def received(step: Step, buffers: Sequence[Buffer]) -> Launch:
        """A step as another worker passed it on, or announced it."""
        ids = np.frombuffer(buffers[0], dtype=np.int32)
        tokens = ids.reshape(len(step.rows), step.num_tokens) if ids.size else None
        return Launch(step, tokens, payload.decode(step.payload, buffers[1:]))

    def announce(self, launch: Launch) -> None:
        """The other ranks of this stage hear of a step that the head is about to launch, whose ids may be sampled by then."""
        step = launch.step
        if step.route.head == self._name:
            for worker in step.route.beside(self._name):
                self._links.send(worker, step, [b"" if launch.tokens is None else launch.tokens.tobytes()])

    def launch_waits(self, route: Route) -> bool:
        """Whether a launch would wait: for other ranks, or where another stage is waiting for the device, as on a CPU until most of the step
        is computed.

        So what somebody waits for goes out before.
        """
        if route.is_shared and not self.stages.groups[route].in_graph:
            return True
        return route.num_stages > 1 and not self._launch_returns_at_once

    def is_awaited(self, in_flight: StepInFlight) -> bool:
        """Whether what a step gives is to be passed on before anything else is looked for: that may take a while, as its head guesses on, or
        where the next launch waits until most of another step is computed, for which nobody should wait with a first token.
        """
        step = in_flight.step
        if self._next_worker(step.route) is None:
            return in_flight.launched.is_first and (self.launch_waits(step.route) or not self._launch_returns_at_once)
        guesses = any(row.num_sampled > 1 for row in step.rows)
        return guesses or self.launch_waits(step.route)

    def launch(self, launch: Launch, before: StepInFlight | None) -> StepInFlight:
        """Begin a step; `before` it another is in flight, for which the device may have to be waited for."""
        step = launch.step
        executor = self.stages.executors[step.route]
        limit_s = self._usual[step.route].limit_s(kind_of(step), step.size)
        started_at = self._now()
        self._vitals.begin(started_at, limit_s if before is None else limit_s + before.limit_s)
        requests = self._timeline.requests_of(step) if self._timeline.is_watched(started_at) else None
        with together.or_nobody(self.stages.groups, step.route):
            launched = executor.launch(step, launch.tokens, launch.received)
        return StepInFlight(launched, launch.tokens, started_at, limit_s, requests)

    def finish(self, in_flight: StepInFlight) -> FinishedStep:
        """Wait for a step, and pass on what came of it."""
        step = in_flight.step
        self._vitals.begin(self._now(), in_flight.limit_s)
        with together.or_nobody(self.stages.groups, step.route):
            output = self.stages.executors[step.route].finish(in_flight.launched)
        if in_flight.launched.is_stale:
            self._note(in_flight, 0.0, None)
            return FinishedStep(0.0, (AnswerHead(Sampled(number=step.number, route=step.route, **output._asdict())),))
        seconds = self._count(in_flight)
        worker = self._next_worker(step.route)
        if worker is None and step.route.last != self._name:  # another rank has the same, and tells
            self._note(in_flight, seconds, None)
            return FinishedStep(seconds)
        if worker is None:
            self._note(in_flight, seconds, None)
            answer = Sampled(number=step.number, route=step.route, **output._asdict())
            return FinishedStep(seconds, (*_vector_of(in_flight.launched), AnswerHead(answer)))
        spec, arrays = payload.encode(output)
        assert in_flight.tokens is not None, "only a route of one stage runs ahead of its ids"
        passed_on: list[Buffer] = [in_flight.tokens.tobytes(), *arrays]
        self._links.send(worker, msgspec.structs.replace(step, payload=spec), passed_on)
        self._note(in_flight, seconds, passed_on)
        return FinishedStep(seconds)

    def _note(self, in_flight: StepInFlight, seconds: float, passed_on: Sequence[Buffer] | None) -> None:
        """For the timeline, while somebody looks. passed_on: to the next worker, where one follows."""
        if in_flight.requests is not None:
            num_bytes = None if passed_on is None else sum(memoryview(buffer).nbytes for buffer in passed_on)
            began_at = self._finished_at - seconds
            self._timeline.ended(in_flight.step, in_flight.requests, began_at, seconds, num_bytes)

    def _count(self, in_flight: StepInFlight) -> float:
        """Seconds that the device was at a step, from when it was free for it."""
        step, kind = in_flight.step, kind_of(in_flight.step)
        started_at = max(in_flight.started_at, self._finished_at)
        self._finished_at = self._now()
        seconds = self._finished_at - started_at
        self._vitals.count(len(step.rows), seconds)
        if speed := self.stages.speeds.get(step.route):
            self._vitals.slowness.observe(speed, step, seconds, self._finished_at)
        self._leaves_memory = True
        self._copying.stepped(step.num_tokens)
        self._usual[step.route].observe(kind, step.size, seconds)
        if self._vitals.num_steps % _CLEAR_EVERY_STEPS == 0:
            mx.clear_cache()
        return seconds


def _vector_of(launched: Launched) -> tuple[Tell, ...]:
    """For the head, where a sequence became one with this step."""
    step, vector = launched.step, launched.vector
    if vector is None:
        return ()
    pooled = Pooled(sequence=step.rows[0].sequence, route=step.route)
    return (Tell(step.route.head, pooled, (np.array(vector).astype("<f4").tobytes(),)),)
