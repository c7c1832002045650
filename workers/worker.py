"""One worker process: belongs to a cluster, says that it lives, and has the engine compute.

Three threads that decide nothing together: the main one is the engine's, one reads each inbox, and the *control thread* owns
what is sent to the coordinator about this worker: Joins as `Attachment` asks for them, and a Heartbeat every HEARTBEAT_S. So
a busy compute thread never delays either. The coordinator's end does not end a worker: it waits for it with its weights.
"""

import logging
import os
import queue
import signal
import socket
import threading
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import msgspec

from protocol.codec import PROTOCOL, Envelope
from protocol.home import Home
from protocol.host_specs import read_host_specs
from protocol.interfaces.names import NO_NAMES, LinkNames, unknown_sentence
from protocol.joined import remember_joined
from protocol.messages import (
    Beat,
    CloseSequence,
    CopyArrived,
    CopyPrefix,
    DropPrefix,
    HandedOver,
    HandOver,
    Join,
    KeepPrefix,
    Leave,
    LinkLost,
    LinksMeasured,
    ListModels,
    ModelsListed,
    OpenSequence,
    Pooled,
    ReadingFailed,
    ReadPrompt,
    Rejected,
    Sampled,
    Shutdown,
    Step,
    StepFailed,
    StopReading,
    Welcome,
)
from protocol.transport import LOOPBACK, Admits, KeyPair, Sender, ZmqDataLinks, ZmqInbox, ZmqOutbox
from protocol.transport.addressing import Network, own_networks, permitted_here
from protocol.transport.asking import ZmqAnswerer
from protocol.transport.echo import measure
from protocol.values import COORDINATOR, TO_COORDINATOR, Peer
from workers.attachment import (
    Attachment,
    BeatArrived,
    Cut,
    DropLinks,
    EndProcess,
    Event,
    Reachable,
    Refused,
    SendJoin,
    State,
    Tick,
    Welcomed,
)
from workers.engine.arrivals import Adrift
from workers.engine.compute_thread import put_compute_thread_in_batch_class
from workers.engine.engine import Engine
from workers.engine.resident_memory import keep_resident
from workers.link_choice import LinkChoice
from workers.link_prober import LinkProber
from workers.members import Members
from workers.model.held_models import models_here
from workers.model.shelf import ModelShelf
from workers.model.weights_source import WeightsSource
from workers.step_reporter import StepReporter
from workers.tensor.meeting import RankDoor
from workers.to_coordinator import ToCoordinator
from workers.weights_ways import fetcher

log = logging.getLogger(__name__)

HEARTBEAT_S = 0.5
# For so long a worker that leaves waits to be heard.
_HEARD_WITHIN_S = 1.0
_EXIT_GRACE_S = 3.0
FROM_WORKERS = (
    OpenSequence,
    CloseSequence,
    KeepPrefix,
    DropPrefix,
    CopyPrefix,
    CopyArrived,
    ReadPrompt,
    StopReading,
    HandOver,
    HandedOver,
    ReadingFailed,
    Step,
    Pooled,
    Sampled,
    StepFailed,
)

_SAID = {
    State.JOINING: "asks to be let in",
    State.ATTACHED: "belongs to the cluster",
    State.ADRIFT: "lost the cluster and looks for it",
}

Deliver = Callable[[Envelope], object]
# Opens an inbox under a name for those who are admitted; says where it receives.
OpenInbox = Callable[[str, Deliver, Admits], Peer]


@dataclass(frozen=True, kw_only=True)
class WorkerOptions:
    """coordinator: where it hears strangers, and its key; secret: the token's secret part; listen: at which addresses of this
    host, as of `ZmqInbox`; names: what is preferred and excluded of addresses, here and elsewhere; orphan_s: how long to
    live without the coordinator.
    """

    name: str
    coordinator: Peer
    secret: str
    memory_limit_bytes: int
    listen: tuple[str, ...] = (LOOPBACK,)
    names: LinkNames = NO_NAMES
    orphan_s: float
    home: Home
    model_folders: tuple[Path, ...] = ()
    is_guest: bool = False


class Worker:
    """What a worker does beside computing. members: told who they are; now: a clock that never goes back.

    Only `turn` and `run` belong to the control thread. `exit_later` is called once when the process is to end: the engine is
    told to, and the process must end even if it does not.
    """

    def __init__(
        self,
        options: WorkerOptions,
        *,
        engine: Engine,
        outbox: Sender,
        open_inbox: OpenInbox,
        exit_later: Callable[[], object],
        members: Members | None = None,
        now: Callable[[], float] = time.monotonic,
    ):
        self._options = options
        self._engine = engine
        self._exit_later = exit_later
        self._now = now
        self._attachment = Attachment(options.name, orphan_s=options.orphan_s)
        self._events: queue.SimpleQueue[Event | Envelope] = queue.SimpleQueue()
        self._heartbeat_at = now()
        self._is_ending = threading.Event()
        self._coordinator = ToCoordinator(options.coordinator, outbox, self._remember if options.is_guest else None)
        self._reporter = StepReporter(options.name, engine.timeline)
        self._members = members or Members()
        control = open_inbox("control", self._deliver, lambda key: key == options.coordinator.public_key)
        self._inboxes = (control, open_inbox("data", self._deliver_data, engine.admits))

    def __repr__(self) -> str:
        return f"Worker({self._options.name}, {self._attachment.state.value})"

    # --- on the threads of the inboxes

    def _deliver(self, envelope: Envelope) -> None:
        """From the coordinator."""
        match envelope.message:
            case Welcome(inbox=inbox, door=door):
                self._events.put(Welcomed(inbox, door))
            case Rejected(reason=reason):
                self._events.put(Refused(reason))
            case Beat(members=members, keys=keys, watches_steps=watches_steps):
                self._members.renew(keys)
                if watches_steps:
                    self._engine.timeline.watch(self._now())
                self._events.put(BeatArrived(envelope.epoch, members))
            case ListModels(number=number):
                threading.Thread(target=self._list_models, args=(number,), name="models", daemon=True).start()
            case Shutdown(why=why):
                if why:
                    log.info("ends: %s", why)
                self._end()
            case _ if envelope.number and envelope.sender != COORDINATOR:
                # It would count among those of another worker's link.
                log.warning("dropped a %s of the coordinator from another's place", type(envelope.message).__name__)
            case _:
                self._engine.post(envelope)

    def _list_models(self, number: int) -> None:
        """On a thread of its own, since it reads the headers of every model here."""
        found = models_here(self._options.home, self._options.model_folders)
        models = tuple(each.model for each in found)
        self._events.put(Envelope(0, ModelsListed(worker=self._options.name, number=number, models=models)))

    def _deliver_data(self, envelope: Envelope) -> None:
        """From other workers, which have no say in anything but sequences."""
        if not isinstance(envelope.message, FROM_WORKERS) or not self._engine.post_of_worker(envelope):
            log.warning("dropped a %s from another worker", type(envelope.message).__name__)

    def link_lost(self, peer: str, why: str, epoch: int) -> None:
        """What this worker sent to `peer` in `epoch` may be lost. On any thread."""
        log.warning("the link to %s is lost: %s", peer or "the coordinator", why)
        if peer == TO_COORDINATOR:
            self._events.put(Cut())
        else:
            self._events.put(Envelope(epoch, LinkLost(worker=self._options.name, peer=peer, why=why)))

    def links_measured(self, found: LinksMeasured, epoch: int) -> None:
        """What is known of the ways to other workers in `epoch`. On any thread."""
        self._events.put(Envelope(epoch, found))

    def _end(self) -> None:
        if not self._is_ending.is_set():
            self._is_ending.set()
            self._engine.post(Envelope(0, Shutdown()))
            self._exit_later()

    def _end_once_heard(self) -> None:
        """The coordinator answers a Leave with a Shutdown, where it lives; what a process that ends has not sent yet is lost."""
        timer = threading.Timer(_HEARD_WITHIN_S, self._end)
        timer.daemon = True
        timer.start()

    def leave(self) -> None:
        """End, and let the coordinator know that nobody need wait for this worker. On any thread."""
        self._events.put(Envelope(0, Leave(worker=self._options.name)))

    # --- on the control thread

    def run(self) -> None:
        """Join, and stay in touch until the end."""
        wait_s = self.turn(0.0)
        while wait_s is not None:
            wait_s = self.turn(wait_s)

    def turn(self, wait_s: float) -> float | None:
        """Wait for an event, at most `wait_s`, and do what is due; returns for how long to wait next, None at the end."""
        self._handle_events(wait_s)
        now = self._now()
        timer = self._attachment.next_timer()
        if timer is not None and now >= timer:
            self._handle(Tick())
        if self._is_ending.is_set():
            return None
        if now >= self._heartbeat_at:
            self._heartbeat_at = now + HEARTBEAT_S
            self._coordinator.say(0, msgspec.structs.replace(self._engine.heartbeat(now), clock=time.time()))
        if (report := self._reporter.report(now)) is not None:
            self._coordinator.say(0, *report)
        timers = (self._heartbeat_at, self._attachment.next_timer(), self._reporter.due_at)
        return max(0.0, min(timer for timer in timers if timer is not None) - self._now())

    def _remember(self, door: Peer) -> None:
        remember_joined(self._options.home, self._options.name, door.public_key, door.endpoint)

    def _handle_events(self, wait_s: float) -> None:
        try:
            self._handle(self._events.get(timeout=wait_s))
            while not self._is_ending.is_set():
                self._handle(self._events.get_nowait())
        except queue.Empty:
            return

    def _handle(self, event: Event | Envelope) -> None:
        if isinstance(event, Envelope):  # to pass on
            self._coordinator.say(event.epoch, event.message)
            if isinstance(event.message, Leave):
                self._end_once_heard()
            return
        if isinstance(event, Welcomed):
            self._coordinator.meet(event.inbox, event.door)
        before = self._attachment.state
        for action in self._attachment.handle(event, self._now()):
            match action:
                case SendJoin():
                    self._coordinator.ask(self._join())
                case DropLinks():
                    self._engine.post(Envelope(0, Adrift()))
                case EndProcess(reason=reason):
                    log.error("ends: %s", reason)
                    self._end()
        if self._attachment.state is not before and self._attachment.state in _SAID:
            log.info("%s", _SAID[self._attachment.state])

    def start(self) -> None:
        """The worker can be reached: let it join."""
        self._events.put(Reachable())

    def _join(self) -> Join:
        model, held = self._engine.held
        return Join(
            protocol=PROTOCOL,
            secret=self._options.secret,
            name=self._options.name,
            host=socket.gethostname(),
            pid=os.getpid(),
            peer=self._inboxes[0],
            data=self._inboxes[1],
            memory_limit_bytes=self._options.memory_limit_bytes,
            model=model,
            held=held,
            num_losses=self._attachment.num_losses,
            about=read_host_specs(),
        )


def run_worker(options: WorkerOptions, keys: KeyPair, data_inbox: type[ZmqInbox] = ZmqInbox) -> None:
    """Be a worker until told to end. On the main thread, which becomes MLX's. keys: by which others know this worker;
    data_inbox: where other workers reach it.
    """
    put_compute_thread_in_batch_class()
    keep_resident(options.memory_limit_bytes)
    networks = own_networks()
    listen = _listen(options, networks)
    choice = LinkChoice(networks, {}, time.monotonic, options.names)
    measures = partial(measure, keys=keys)
    fetch = fetcher(options.home.models, keys, choice, measures, is_overtaken=lambda: engine.is_overtaken)
    shelf = ModelShelf(options.home, options.home.cache, options.model_folders, fetch)
    links = ZmqDataLinks(lambda peer, why: worker.link_lost(peer, why, links.epoch), keys, choice)
    engine = Engine(options.name, links, shelf, meet=(ranks := RankDoor(listen, choice.best, links.count)))
    members = Members()
    answerer = ZmqAnswerer(WeightsSource(shelf.find).answer, listen=listen, keys=keys, admits=members.admits)

    def open_inbox(kind: str, deliver: Deliver, admits: Admits) -> Peer:
        inbox = (data_inbox if kind == "data" else ZmqInbox)(deliver, listen=listen, keys=keys, admits=admits)
        inbox.start()
        others = {"answer_port": answerer.port, "rank_port": ranks.port} if kind == "data" else {}
        return msgspec.structs.replace(inbox.peer, **others)

    worker = Worker(
        options, engine=engine, outbox=ZmqOutbox(keys), open_inbox=open_inbox, exit_later=_exit_later, members=members
    )
    worker.start()
    prober = LinkProber(
        options.name,
        choice,
        measures,
        is_busy=lambda: engine.heartbeat(time.monotonic()).running > 0,
        report=lambda found: worker.links_measured(found, links.epoch),
    )
    answerer.start()
    prober.start()
    _leave_when_interrupted(options, worker)
    threading.Thread(target=worker.run, name="control", daemon=True).start()
    engine.run()
    log.info("ended")


def _listen(options: WorkerOptions, networks: Mapping[Network, str]) -> tuple[str, ...]:
    for name in options.names.unknown(networks.values()):
        log.warning("%s", unknown_sentence(name))
    return permitted_here(options.listen, options.names, networks)


def _leave_when_interrupted(options: WorkerOptions, worker: Worker) -> None:
    if options.is_guest:
        for number in (signal.SIGINT, signal.SIGTERM):
            signal.signal(number, lambda *_: worker.leave())


def _exit_later() -> None:
    timer = threading.Timer(_EXIT_GRACE_S, os._exit, (0,))
    timer.daemon = True
    timer.start()
