"""The compute thread of a worker: a loop that takes messages in order, lets each head run a step, and performs actions.

Everything that touches MLX happens here, on the thread that calls `run` (mlx refuses arrays that another thread made). Other threads
only `post` messages and read `heartbeat` and `held`. One turn of the loop handles what arrived, then lets each head run one step: so a
stage's arrivals and the routes that begin here share the thread fairly, and a cancellation is seen after at most one step.

What is decided and computed is elsewhere: `Arrivals` says which messages count, `Heads` what is to be done for them, `StageRunner` runs
it. Handlers return actions; `_perform` is the one place that performs them, and `_attempt` the one boundary: whatever goes wrong with a
message or a step is its failure and no other's.
"""

import contextlib
import logging
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from functools import partial
from typing import Any, TypeVar

from protocol.codec import Envelope
from protocol.errors import TandemError
from protocol.messages import (
    Cancel,
    CloseSequence,
    ComputeFigures,
    CopyArrived,
    CopyPrefix,
    DropPrefix,
    ForgetConversation,
    Generate,
    HandedOver,
    HandOver,
    Heartbeat,
    InspectModel,
    KeepPrefix,
    KnownPrefix,
    LinkLost,
    LoadProgress,
    LoadStage,
    Message,
    OpenSequence,
    Pooled,
    PrepareStage,
    ReadingFailed,
    ReadPrompt,
    Sampled,
    Shutdown,
    Step,
    StepFailed,
    StopReading,
)
from protocol.transport import DataLinks
from protocol.values import TO_COORDINATOR, Buffer, LayerRange, Peer, unpack_ids, unpack_keys
from workers.engine.actions import Action, AnswerHead, Forward, Launch, Passed, Report, Tell, split_reports
from workers.engine.arrivals import Adrift, Arrivals
from workers.engine.checks import Checks, Handler
from workers.engine.failures import failure_of
from workers.engine.fitness import UnfitMessage
from workers.engine.heads import Heads
from workers.engine.loading import Loading
from workers.engine.stage_runner import StageRunner, StepInFlight
from workers.engine.timeline import Timeline
from workers.engine.vitals import MEASURE_EVERY_S, READING_LIMIT_S, Vitals
from workers.model.shelf import ModelShelf
from workers.model.stage_loading import LoadedStages, MakeTimer, StageLoader
from workers.tensor.company import Company, Meet

log = logging.getLogger(__name__)

# For what is kept of past sequences, when the process ends; what does not get to the disk is read again.
_FLUSH_S = 0.5
_Buffers = tuple[Buffer, ...]
_Look = TypeVar("_Look", InspectModel, PrepareStage)
_Result = TypeVar("_Result")


class Engine:
    """See the module. name: this worker's in plans; links: to other workers and, for what is reported, to the coordinator;
    now: a clock that never goes back; clock: Unix seconds; make_timer: as of `StageLoader`; meet: as of `Company`.
    """

    def __init__(
        self,
        name: str,
        links: DataLinks,
        shelf: ModelShelf,
        *,
        now: Callable[[], float] = time.monotonic,
        clock: Callable[[], float] = time.time,
        make_timer: MakeTimer | None = None,
        meet: Meet | None = None,
    ):
        self._name, self._now, self._links = name, now, links
        self._vitals = Vitals(name, links.sent_bytes)
        company = Company(meet, lambda: self.is_overtaken, waits=self._vitals.wait_for_rank)
        self._arrivals = Arrivals(name, company)
        self._heads = Heads(name)
        self.timeline = Timeline(now, clock)
        self._runner = StageRunner(name, self._links, self._vitals, self.timeline, now)
        self._loading = Loading(name, shelf, StageLoader(shelf, make_timer, company), self._report_progress)
        self._in_flight: StepInFlight | None = None  # between turns only; within one it is handed on
        self._is_running = True
        checks = Checks(name, lambda: self._runner.stages)
        self._handlers = {kind: checks.before(handler) for kind, handler in self._handlers_by_kind().items()}

    def _handlers_by_kind(self) -> Mapping[type[Message], Handler]:
        return {
            InspectModel: partial(self._look_after, self._loading.inspect),
            PrepareStage: partial(self._look_after, self._loading.prepare),
            LoadStage: self._load,
            ComputeFigures: lambda message, _: [Report(self._runner.figures(message))],
            Generate: lambda message, buffers: self._heads.begin(message, unpack_ids(buffers[0])),
            Cancel: lambda message, _: self._heads.cancel(message),
            KnownPrefix: lambda it, buffers: self._heads.know(it, unpack_keys(buffers[0]), unpack_ids(buffers[1])),
            ForgetConversation: lambda message, _: self._heads.forget_conversation(message),
            OpenSequence: _passed_on,
            CloseSequence: _passed_on,
            KeepPrefix: _passed_on,
            DropPrefix: _passed_on,
            ReadPrompt: lambda message, buffers: self._heads.read(message, unpack_ids(buffers[0])),
            StopReading: lambda message, _: self._heads.stop_reading(message),
            HandOver: _passed_on,
            HandedOver: self._handed_over,
            ReadingFailed: lambda message, _: self._heads.handovers.failed(message),
            CopyPrefix: self._runner.adopt,
            CopyArrived: self._runner.copied,
            Step: lambda step, buffers: [self._runner.received(step, buffers)],
            Pooled: lambda message, buffers: self._heads.pooled(message, buffers[0]),
            Sampled: self._answered,
            StepFailed: self._answered,
            LinkLost: lambda message, _: [Report(message)],
            Adrift: self._go_adrift,
            Shutdown: self._shut_down,
        }

    def __repr__(self) -> str:
        return f"Engine({self._name}, {self._arrivals}, {self._heads})"

    # --- for other threads

    def post(self, envelope: Envelope) -> None:
        """Hand in a message."""
        self._arrivals.post(envelope)

    def admits(self, key: str) -> bool:
        """Whether a worker of the plan in force has this public key."""
        return self._arrivals.admits(key)

    @property
    def is_overtaken(self) -> bool:
        """As `Arrivals` says it."""
        return self._arrivals.is_overtaken

    def post_of_worker(self, envelope: Envelope) -> bool:
        """Hand in what another worker said; whether it is of the plan in force and from whom it says."""
        if is_of_the_plan := self._arrivals.is_of_the_plan(envelope):
            self.post(envelope)
        return is_of_the_plan

    def heartbeat(self, now: float) -> Heartbeat:
        """What this worker says of itself, its compute thread stuck or not."""
        return self._vitals.heartbeat(now, num_waiting=self._arrivals.num_waiting)

    @property
    def held(self) -> tuple[str | None, tuple[LayerRange, ...]]:
        """The digest of the model that is open here, and its layers whose weights were read."""
        return self._vitals.held

    # --- the loop

    def run(self) -> None:
        """Work until a Shutdown arrives."""
        worked = True
        while self._is_running:
            worked = self.turn(wait_s=None if worked else MEASURE_EVERY_S)
        self._vitals.rest()
        deadline = self._now() + _FLUSH_S
        self._runner.flush(lambda: self._now() > deadline)
        self._links.close()

    def turn(self, *, wait_s: float | None = None) -> bool:
        """One turn; whether anything was done. wait_s: how long to wait for a first message, None for not at all."""
        in_flight, taken = self._take(self._in_flight, wait_s)
        in_flight, stepped = self._step(in_flight)
        self._in_flight, told = self._look(in_flight)
        worked = taken or stepped or told
        worked = self._runner.copy(is_idle=not worked) or worked or self._runner.spill()
        if not worked and wait_s is not None:
            self._runner.rest()
        return worked

    def _take(self, in_flight: StepInFlight | None, wait_s: float | None) -> tuple[StepInFlight | None, bool]:
        """Handle everything that arrived."""
        taken = False
        if wait_s is not None:
            self._vitals.wait()
        while self._is_running and (envelope := self._arrivals.next(wait_s=wait_s)):
            in_flight = self._handle(envelope, in_flight)
            wait_s, taken = self._heads.gathering_s(envelope.message), True
        return in_flight, taken

    def _step(self, in_flight: StepInFlight | None) -> tuple[StepInFlight | None, bool]:
        """A step of each head; where there is none to begin, the end of the one in flight."""
        stepped = False
        for head in self._heads:
            if launch := head.next_step(self._now()):
                in_flight, stepped = self._launch(launch, in_flight), True
                in_flight = self._perform(self._heads.launched(head, launch.step), in_flight)
                if in_flight is not None and self._runner.is_awaited(in_flight):
                    self._finish(in_flight)
                    in_flight = None
        if stepped or in_flight is None:
            return in_flight, stepped
        self._finish(in_flight)
        return None, True

    def _look(self, in_flight: StepInFlight | None) -> tuple[StepInFlight | None, bool]:
        """Now and then: what there is to say of this worker, and steps that do not come back."""
        now = self._now()
        if not self._vitals.is_due(now):
            return in_flight, False
        self._vitals.measure(now, self._runner.stages)
        overdue = self._heads.overdue(now)
        return self._perform(overdue, in_flight), bool(overdue)

    def _handle(self, envelope: Envelope, in_flight: StepInFlight | None) -> StepInFlight | None:
        message = envelope.message
        if not self._arrivals.counts(envelope):
            log.info("dropped %s %d of epoch %d", type(message).__name__, envelope.number, envelope.epoch)
            return in_flight
        handler = self._handlers.get(type(message))
        if handler is None:
            log.warning("dropped an unexpected %s", type(message).__name__)
            return in_flight
        self._vitals.begin(self._now())
        if isinstance(message, LoadStage | Adrift):
            self._end_epoch(in_flight)
            in_flight = None
        if isinstance(message, LoadStage):
            self._arrivals.renew(envelope, {stage.worker: stage.peer.public_key for stage in message.stages})
            self.timeline.renew(envelope.epoch)
            self._renew_links(message.reply_to)  # whatever becomes of it, it is answered there
        return self._follow(in_flight, message, handler, message, envelope.buffers)

    def _follow(
        self, in_flight: StepInFlight | None, message: Message, act: Callable[..., Iterable[Action]], *arguments: Any
    ) -> StepInFlight | None:
        """Perform what `act` gives, or what follows where it fails."""
        actions, failure = self._attempt(message, act, *arguments)
        return self._perform(failure if actions is None else actions, in_flight)

    def _perform(self, actions: Iterable[Action], in_flight: StepInFlight | None) -> StepInFlight | None:
        """Perform actions in order; returns the step that is in flight then."""
        for action in actions:
            match action:
                case Report(message=message, buffers=buffers):
                    self._links.send(TO_COORDINATOR, message, buffers)
                case Tell():
                    in_flight = self._tell(action, in_flight)
                case Forward():
                    in_flight = self._forward(action, in_flight)
                case Launch():
                    in_flight = self._launch(action, in_flight)
                case AnswerHead(message=message):
                    in_flight = self._answer(message, in_flight)
        return in_flight

    def _forward(self, forward: Forward, in_flight: StepInFlight | None) -> StepInFlight | None:
        message = forward.message
        if in_flight is not None and self._runner.passes_on(message.route):
            self._finish(in_flight)  # what was launched before must arrive before
            in_flight = None
        return self._follow(in_flight, message, self._runner.apply, message, forward.keys, forward.handed)

    def _tell(self, tell: Tell, in_flight: StepInFlight | None) -> StepInFlight | None:
        message = tell.message
        if tell.worker == self._name:
            return self._follow(in_flight, message, self._handlers[type(message)], message, tell.buffers)
        _, failure = self._attempt(message, self._links.send, tell.worker, message, tell.buffers)
        return self._perform(failure, in_flight)

    def _launch(self, launch: Launch, in_flight: StepInFlight | None) -> StepInFlight | None:
        """Begin a step, then finish the one before: the host prepares one while the device computes the other."""
        step, behind = launch.step, list[Action]()
        if failure := self._attempt(step, self._runner.announce, launch)[1]:
            return self._perform(failure, in_flight)
        if in_flight is not None and self._runner.launch_waits(step.route):
            behind = self._finish(in_flight, is_announced=launch.tokens is None)
            in_flight = None
        launched, failure = self._attempt(step, self._runner.launch, launch, in_flight)
        if launched is None:
            return self._perform([*behind, *failure], in_flight)
        if in_flight is not None:
            self._finish(in_flight)
        return self._perform(behind, launched)

    def _finish(self, in_flight: StepInFlight, *, is_announced: bool = False) -> list[Action]:
        """Wait for the step in flight, and tell its head what came of it where that is known here. is_announced: other ranks were told of the
        step behind it; so what changes sequences is not done but returned, to be done behind that one.
        """
        step = in_flight.step
        finished, failure = self._attempt(step, self._runner.finish, in_flight)
        if finished is not None:
            self._heads.ran(step, finished.seconds)
        told = failure if finished is None else finished.told
        if not is_announced or not isinstance(answer := next(iter(told), None), AnswerHead):
            self._perform(told, None)
            return []
        found, failure = self._attempt(answer.message, self._answered, answer.message, ())
        reports, others = split_reports(failure if found is None else found)
        self._perform(reports, None)
        return others

    def _answer(self, message: Sampled | StepFailed, in_flight: StepInFlight | None) -> StepInFlight | None:
        """To the head of the step's route, directly when that is here."""
        if message.route.head != self._name:
            return self._tell(Tell(message.route.head, message), in_flight)
        return self._follow(in_flight, message, self._answered, message, ())

    def _attempt(
        self, message: Message, act: Callable[..., _Result], *arguments: Any
    ) -> tuple[_Result | None, Sequence[Action]]:
        """What `act` gives or, when it raises, the failure of the message that it was done for."""
        try:
            return act(*arguments), ()
        except (UnfitMessage, TandemError) as error:
            log.warning("dropped %s: %s", type(message).__name__, error)
            return None, failure_of(message, error, self._name)
        except Exception as error:  # the boundary of one message: a damaged one, or what the model's code raises
            log.exception("%s failed", type(message).__name__)
            return None, failure_of(message, error, self._name)

    # --- plans

    def _end_epoch(self, in_flight: StepInFlight | None) -> None:
        """Nothing of the epoch that was in force goes on."""
        if in_flight is not None:
            self._finish(in_flight)
        self._perform(self._heads.abandon(), None)
        self._heads.renew(LoadedStages())
        self._runner.close_sequences()

    def _renew_links(self, coordinator: Peer, place: int = 0, others: Mapping[str, Peer] | None = None) -> None:
        self._links.renew(self._arrivals.epoch, place, {**(others or {}), TO_COORDINATOR: coordinator})

    def _go_adrift(self, _: Adrift, __: _Buffers) -> Sequence[Action]:
        self._arrivals.suspend()
        self._links.renew(self._arrivals.epoch, 0, {})
        return ()

    def _load(self, message: LoadStage, _: _Buffers) -> Sequence[Action]:
        names = [stage.worker for stage in message.stages]
        others = {stage.worker: stage.peer for stage in message.stages if stage.worker != self._name}
        self._renew_links(message.reply_to, names.index(self._name), others)
        self._runner.renew(LoadedStages())
        with self._taking_its_time():
            stages, report = self._loading.load(message)
        self._runner.renew(stages)
        self._heads.renew(stages)
        self._vitals.measure(self._now(), stages)  # what says that this is loaded is not followed by older figures
        return (report,)

    def _look_after(self, look: Callable[[_Look], Report], message: _Look, _: _Buffers) -> tuple[Report]:
        """Where no plan is in force, the coordinator that asks is answered, which may be another than before."""
        if self._arrivals.is_suspended:
            self._renew_links(message.reply_to)
        with self._taking_its_time():
            return (look(message),)

    @contextlib.contextmanager
    def _taking_its_time(self) -> Iterator[None]:
        """While weights are read nobody can say how long all of it takes, only how long until the next of them; what is
        open afterwards is noted.
        """
        self._vitals.begin(self._now(), READING_LIMIT_S)
        try:
            yield
        finally:
            self._vitals.have(self._loading.held, self._loading.read_bytes)
            self._vitals.begin(self._now())

    def _report_progress(self, progress: LoadProgress) -> None:
        self._vitals.begin(self._now(), READING_LIMIT_S)
        self._links.send(TO_COORDINATOR, progress)

    def _shut_down(self, _: Shutdown, __: _Buffers) -> Sequence[Action]:
        self._is_running = False
        return ()

    # --- sequences

    def _handed_over(self, message: HandedOver, buffers: _Buffers) -> list[Action]:
        return self._heads.handovers.handed_over(message, self._runner.handed_over(message, buffers))

    def _answered(self, message: Sampled | StepFailed, _: _Buffers) -> list[Action]:
        return self._heads.answered(message, self._now())


def _passed_on(message: Passed, buffers: _Buffers) -> list[Action]:
    return [Forward(message, unpack_keys(buffers[0]) if buffers else ())]
