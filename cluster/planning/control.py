"""The control plane: what roster and deployment decide, done. Hears workers, starts them, sends plans, tells serving.

Owns nothing but the order of things; who is there is the roster's, which plan is wanted the deployment's, what a plan
says the assembly's. Knows nothing of HTTP or requests beyond `Listener`. Everything runs on one asyncio loop.
"""

import asyncio
import logging
from collections.abc import Callable, Mapping, Sequence

from cluster.membership import roster as membership
from cluster.membership.local import Launcher
from cluster.membership.mailbox import Mailbox
from cluster.membership.member import Member, WorkerEvent, WorkerState
from cluster.membership.roster import Roster
from cluster.planning import deployment as planning
from cluster.planning.assembly import Assembly, Part
from cluster.planning.deployment import Deployment
from cluster.planning.events import EventLog
from cluster.planning.inquiries import Answer, Inquiries
from cluster.planning.interface import Listener
from cluster.planning.known_model import KnownModel
from cluster.planning.launching import Launching
from cluster.planning.plan import Loss, Plan
from cluster.planning.starting import Starting
from protocol.codec import Envelope
from protocol.errors import ModelError, TandemError, UsageError
from protocol.messages import (
    Embedded,
    FiguresComputed,
    Heartbeat,
    Inspected,
    Join,
    Leave,
    LinkLost,
    LinksMeasured,
    Loaded,
    LoadFailed,
    LoadProgress,
    Message,
    ModelsListed,
    PrefillProgress,
    Prepared,
    PromptLogprobs,
    Rejected,
    Reused,
    SequenceFailed,
    Shutdown,
    StepOverdue,
    StepsRecorded,
    Tokens,
    Welcome,
)
from protocol.values import Buffer

log = logging.getLogger(__name__)

CHECK_EVERY_S, BEAT_EVERY_S = 0.25, 0.5
# A check that comes later than this after its time finds heartbeats that nobody has read yet.
_HELD_UP_S = 0.5
# A connection closes a moment before its process has ended; which of the two it was makes a difference.
_ENDING_S = 0.05


class ControlPlane:
    """See the module."""

    def __init__(
        self,
        model: KnownModel,
        *,
        mailbox: Mailbox,
        launcher: Launcher,
        roster: Roster,
        deployment: Deployment,
        now: Callable[[], float],
    ):
        self._model = model
        self._mailbox = mailbox
        self.roster = roster
        self._deployment, self._now = deployment, now
        self._assembly: Assembly | None = None
        self.plan: Plan | None = None
        self.listener: Listener | None = None
        self.starting = Starting()
        self.events = EventLog()
        self.inquiries = Inquiries(mailbox.tell, self.send, roster.may_be_away)
        self.launching = Launching(launcher, roster, door=lambda: mailbox.door, now=now, failed=self._not_started)

    def __repr__(self) -> str:
        return f"ControlPlane(epoch {self._mailbox.epoch}, {self._deployment})"

    @property
    def members(self) -> Mapping[str, Member]:
        """Every worker of the configuration, by name."""
        return self.roster.members

    @property
    def epoch(self) -> int:
        """The number of the plan in force or on its way."""
        return self._mailbox.epoch

    @property
    def missing(self) -> tuple[str, ...]:
        """Workers that should be there and are not, or not part of the plan in force yet."""
        return self.roster.missing(None if self.plan is None else self.plan.workers)

    def open(self) -> None:
        """Begin to hear workers; `launching` starts them."""
        self._mailbox.open(self._receive, self._closed)
        self.launching.launcher.ended = self._process_ended

    async def run(self) -> None:
        """Beat, and look after what is due, until cancelled."""
        checked_at = beaten_at = self._now()
        while True:
            await asyncio.sleep(CHECK_EVERY_S)
            now = self._now()
            if now - checked_at - CHECK_EVERY_S > _HELD_UP_S:
                self.roster.excuse(now - checked_at - CHECK_EVERY_S, now)
            checked_at = now
            if now - beaten_at >= BEAT_EVERY_S:
                beaten_at = now
                self._beat()
            self._perform_all(self.roster.tick(now))
            self._plan_all(self._deployment.tick(now, **self._demand))

    def _beat(self) -> None:
        """To everybody who may live: whoever was given up learns from it that it has to join again."""
        self._deployment.paced(self._model.candidates(self.roster, self._now()))
        beat = self.roster.muster(watches_steps=self.inquiries.steps.are_watched)
        for name in self.members:
            self._mailbox.tell(name, beat)

    @property
    def _demand(self) -> dict[str, bool]:
        heard = self.listener
        return {"is_idle": heard is None or heard.is_idle, "is_awaited": heard is not None and heard.is_awaited}

    def send(self, worker: str, message: Message, buffers: tuple[bytes, ...] = ()) -> None:
        """Say something of the plan in force; nothing happens where there is none or the worker is not in it."""
        if self.plan is not None and worker in self.plan.workers:
            self._mailbox.send(worker, message, buffers)

    def mend(self) -> list[str]:
        """Start every worker that is not there, also those left out; returns who will be taken in."""
        self.roster.mend(self._now())
        return list(self.missing)

    async def stop(self) -> None:
        """End every worker; returns when their processes are gone."""
        self._deployment.stop()
        for member in self.roster.members.values():
            self._mailbox.tell(member.name, Shutdown(why="the cluster was stopped"))
            if not member.is_there:
                self.launching.launcher.kill(member.name)  # it cannot be told
            member.apply(WorkerEvent.STOP)
        await self.launching.stop()
        self._mailbox.close()

    # --- what arrives

    def _receive(self, envelope: Envelope) -> None:
        match envelope.message:
            case Join() as join:
                self._perform_all(self.roster.joined(join, self._now()))
            case Heartbeat() | Leave() | ModelsListed() | FiguresComputed() | StepsRecorded() as said:
                self._of_no_plan(said, envelope.buffers)
            case LinksMeasured() as found if envelope.epoch == self.epoch:
                self.roster.members[found.worker].links = found.links
                self._plan_all(self._deployment.move(found.move, self._now()))
            case Inspected() as inspected:
                self._inspected(inspected)
            case Prepared(worker=name, layers=layers) if self._deployment.awaits(name):
                (member := self.roster.members[name]).held += (layers,)
                self._plan_all(self._deployment.prepared(name, member.held, self._now(), **self._demand))
            case LoadFailed(worker=name) as failed if envelope.epoch == self.epoch or self._deployment.awaits(name):
                self._load_failed(failed)
            case LinkLost(worker=name, peer=peer, why=why) if envelope.epoch == self.epoch:
                self._suspect(f"the link from {name} to {peer}: {why}")
            case message:
                if self._mailbox.accepts(envelope):
                    self._of_the_plan(message, envelope.buffers)

    def _of_no_plan(self, message: Heartbeat | Leave | Answer, buffers: tuple[Buffer, ...]) -> None:
        if isinstance(message, Heartbeat):
            self.roster.beat(message, self._now())
        elif isinstance(message, Leave):
            self._perform_all(self.roster.dismiss(message.worker, "left"))
        else:
            self.inquiries.answered(message, buffers)

    def _of_the_plan(self, message: Message, buffers: tuple[Buffer, ...]) -> None:
        match message:
            case Tokens():
                self._listening.tokens(message)
            case Embedded():
                self._listening.embedded(message, buffers[0])
            case PrefillProgress() | PromptLogprobs():
                self._listening.progress(message)
            case SequenceFailed():
                self._listening.failed(message)
            case Reused():
                self._listening.reused(message)
            case LoadProgress() as progress if self._assembly is not None:
                self.starting.tell(self._assembly.progress(progress))
            case Loaded():
                self._loaded(message, buffers)
            case StepOverdue(worker=name, route=route, seconds=seconds):
                self._overdue(f"a step of {name} on {route} takes longer than {seconds:.1f} s")
            case _:
                log.warning("dropped an unexpected %s", type(message).__name__)

    @property
    def _listening(self) -> Listener:
        assert self.listener is not None
        return self.listener

    def _inspected(self, found: Inspected) -> None:
        try:
            facts = self._model.inspected(found)
        except TandemError as error:
            self.starting.fail(error)
            return
        self._plan_all(self._deployment.inspected(found, facts.sizes, self._now()))

    def _loaded(self, message: Loaded, buffers: tuple[Buffer, ...]) -> None:
        assert self._assembly is not None
        member = self.roster.members[message.worker]
        if member.state is not WorkerState.LOADING:
            return
        member.loaded(message)
        member.held = self._assembly.held(message.worker)
        self._model.learn(message)
        self.events.add(*filter(None, [message.unmet]))
        self._assembly.loaded(message, buffers)
        self._plan_all(self._deployment.loaded(message.worker, member.held, self._now(), self._assembly.unmet))

    def _load_failed(self, failed: LoadFailed) -> None:
        """A worker cannot load: at the start that is the end, later it is as if the worker had died."""
        log.error("%s: %s", failed.worker, failed.message)
        if self.roster.is_guest(failed.worker):
            self._perform_all(self.roster.dismiss(failed.worker, f"cannot take part: {failed.message}"))
            return
        is_hosted = self.roster.may_be_away(failed.worker)
        if not (self._deployment.has_served or is_hosted):
            self.starting.fail(ModelError(failed.message))
            return
        self.events.add(f"refused {failed.worker}: {failed.message}")
        self.launching.launcher.kill(failed.worker)
        if is_hosted:
            self._leave_out(failed.worker, f"{failed.worker} cannot take part: {failed.message}")

    # --- what breaks

    def _process_ended(self, name: str, status: int | None) -> None:
        log.error("worker %s ended with status %s", name, status)
        self._mailbox.forget(name)
        self._perform_all(self.roster.process_ended(name, status, self._now()))

    def _not_started(self, name: str, why: str | None) -> None:
        """One that came by itself meanwhile needs no start."""
        if why is None:
            self._process_ended(name, None)
        elif not self.members[name].is_there:
            self._leave_out(name, why)

    def _leave_out(self, name: str, why: str) -> None:
        self._mailbox.forget(name)
        self._perform_all(self.roster.unavailable(name, why, self._now()))

    def _closed(self, worker: str, why: str) -> None:
        """A connection to a worker closed; that its process ended is known a moment later."""
        if worker in self.members and self.members[worker].is_there:
            self._unless_replanned(lambda: self._still_closed(worker, why))

    def _still_closed(self, worker: str, why: str) -> None:
        if not self.roster.is_guest(worker) and self.launching.launcher.has_ended(worker):
            self._process_ended(worker, None)
        else:
            log.warning("%s: %s", worker, why)
            self._perform_all(self.roster.closed(worker, self._now()))

    def _suspect(self, what: str) -> None:
        """A link between workers broke, unless one of them turns out to have ended."""

        def broke() -> None:
            self.events.add(f"lost {what}")
            self._plan_all(self._deployment.broken(f"lost {what}", self._now()))

        self._unless_replanned(broke)

    def _unless_replanned(self, act: Callable[[], None]) -> None:
        """Act once a process that ended has been noticed, where that has not changed everything."""
        epoch = self.epoch
        asyncio.get_running_loop().call_later(_ENDING_S, lambda: act() if self.epoch == epoch else None)

    def _overdue(self, sentence: str) -> None:
        """Somebody may be stuck, who is lost then; else a link must have lost the step."""
        self._perform_all(self.roster.tick(self._now()))
        log.warning("%s", sentence)
        self._plan_all(self._deployment.broken(sentence, self._now()))

    # --- what roster and deployment want

    def _perform_all(self, actions: Sequence[membership.Action]) -> None:
        for action in actions:
            self._perform(action)

    def _perform(self, action: membership.Action) -> None:
        match action:
            case membership.Admitted(name=name):
                self._admit(self.roster.members[name])
            case membership.RefuseJoin(peer=peer, reason=reason):
                log.warning("refused a worker: %s", reason)
                self._mailbox.answer(peer, Rejected(reason=reason))
            case membership.Lost() as lost:
                self._lose(lost)
            case membership.Kill(name=name):
                self.launching.launcher.kill(name)
            case membership.Gone(peer=peer, why=why):
                self._mailbox.answer(peer, Shutdown(why=why))
            case membership.Start(name=name):
                log.info("starting %s again", name)
                self.launching.begin(name)

    def _admit(self, member: Member) -> None:
        assert member.join is not None
        self._mailbox.know(member.name, member.join.peer)
        self._mailbox.tell(member.name, Welcome(inbox=self._mailbox.inbox, door=self._mailbox.door))
        member.held = member.join.held if member.join.model == self._model.digest else ()
        self.events.add(f"joined {member.name}")
        self._changed(member.name, Loss(workers=(), sentence=f"worker {member.name} lost the coordinator, is back"))
        self._beat()

    def _lose(self, lost: membership.Lost) -> None:
        log.error("%s", lost.sentence)
        self.events.add(f"lost {lost.name}: {lost.sentence}")
        if not (self._deployment.has_served or self.roster.may_be_away(lost.name)):
            self.starting.fail(TandemError(lost.sentence))
            return
        self._changed(lost.name, Loss(workers=lost.who_died, sentence=lost.sentence, was_silence=lost.was_silent))
        if lost.died:
            self._mailbox.forget(lost.name)
        else:
            self._beat()

    def _changed(self, name: str, loss: Loss) -> None:
        """Other workers are there, or one of them with nothing of the plan that it had."""
        now = self._now()
        self._deployment.want(self.roster.awaited)
        self._plan_all(self._deployment.changed(self._model.candidates(self.roster, now), now, loss, name))

    def _plan_all(self, actions: Sequence[planning.Action]) -> None:
        for action in actions:
            self._plan(action)

    def _plan(self, action: planning.Action) -> None:
        match action:
            case planning.Inspect(worker=name):
                self._mailbox.tell(name, self._model.to_inspect(self._mailbox.inbox, self.roster.sources))
            case planning.Prepare(worker=name, layers=layers):
                self._mailbox.tell(name, self._model.to_prepare(layers, self._mailbox.inbox, self.roster.sources))
            case planning.SendPlan(partition=found):
                self._load(found)
            case planning.BeginPlan():
                self._begin()
            case planning.EndPlan(loss=loss):
                self._end(loss)
            case planning.Refuse(reason=reason, settings_at_fault=settings_at_fault):
                if not self._deployment.has_served:
                    self.starting.fail((UsageError if settings_at_fault else ModelError)(reason))

    def _load(self, found: planning.Partition) -> None:
        self.roster.release()
        parts = {}
        for stage in found.stages:
            member = self.roster.members[stage.worker]
            member.apply(WorkerEvent.LOAD)
            assert member.join is not None
            parts[stage.worker] = Part(member.memory_limit_bytes, member.join.data)
        epoch = self._mailbox.begin_epoch(tuple(parts))
        self._assembly = self._model.assemble(epoch, found, parts)
        self.events.add(f"replanned, epoch {epoch & 0xFFFFFFFF}: {self._assembly.described}")
        for worker, message in self._assembly.messages(self._mailbox.inbox, self.roster.sources).items():
            self._mailbox.send(worker, message)

    def _begin(self) -> None:
        assert self._assembly is not None
        self.plan = plan = self._assembly.plan()
        for route, (message, buffers) in self._assembly.known_prefixes().items():
            self._mailbox.send(route.head, message, buffers)
        if self.listener is not None:
            self.listener.plan_began(plan)
        self.starting.succeed(plan)

    def _end(self, loss: Loss) -> None:
        self.plan = None
        if self.listener is not None:
            self.listener.plan_ended(loss)
