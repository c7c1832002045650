"""A whole cluster in one thread on a virtual clock: the real API, service, control plane, workers and engines.

Nothing of it waits for a socket, another thread or real time. Computing takes `step_s` of virtual time a turn, by default
none; a wait of a minute takes as long as what happens in it.
"""

import asyncio
import itertools
import shutil
from contextlib import AsyncExitStack

from cluster.api.app import build_app
from cluster.membership.member import Member
from cluster.membership.restarts import Restarts
from cluster.membership.roster import REJOIN_WITHIN_S, Roster
from cluster.planning.control import ControlPlane
from cluster.planning.deployment import Deployment
from cluster.planning.known_model import KnownModel
from cluster.serving.overview import Identity
from cluster.serving.prompts import Prompts
from cluster.serving.service import GenerationService
from cluster.settings import ApiSettings, EngineSettings, ModelSettings, RecoverySettings, Settings, WorkerSettings
from protocol.home import Home
from protocol.model_digest import model_digest
from protocol.transport import InProcessNetwork
from tests.support import virtual_time
from tests.support.fake_cluster import at_once
from tests.support.in_process.client import Client
from tests.support.in_process.mailbox import InProcessMailbox
from tests.support.in_process.workers import InProcessHost, InProcessLauncher

SECRET = "ab" * 16
PLENTY = 1 << 30
CHUNK_TOKENS = 16
# The longest between two looks at engines that have nothing to do: as often as they look at overdue steps by themselves.
_LOOK_EVERY_S = 0.25
_LIMIT_S = 600


class InProcessCoordinator:
    """What a coordinator's process holds, put together as `cluster.coordinator` does."""

    def __init__(self, model, settings, network, host, stir, incarnation):
        loop = asyncio.get_running_loop()
        counter = itertools.count((incarnation << 32) + 1)
        self.mailbox = InProcessMailbox(network, lambda: next(counter), stir)
        self.restarts = Restarts()
        names = tuple(worker.name for worker in settings.workers)
        members = [Member(each.name, memory_limit_bytes=each.memory_limit or PLENTY) for each in settings.workers]
        self._adopted = {name: worker.identity for name, worker in host.workers.items()}
        self.control = ControlPlane(
            KnownModel(model, model_digest(model), settings),
            mailbox=self.mailbox,
            launcher=InProcessLauncher(host, loop),
            roster=Roster(members, secret=SECRET, restarts=self.restarts),
            deployment=Deployment(
                wanted=names,
                kv_copies=settings.recovery.kv_copies,
                waits_until=loop.time() + REJOIN_WITHIN_S if incarnation > 1 else None,
            ),
            now=loop.time,
        )
        self.prompts = Prompts.load(model)
        identity = Identity(model_id=model.name, api="http://tandem", pid=1, has_chat_template=True)
        self.service = GenerationService(
            self.control, self.prompts, settings, identity, now=loop.time, run_in_thread=at_once
        )
        self._running = None

    def __repr__(self):
        return f"InProcessCoordinator({self.control})"

    async def begin(self, group):
        self.control.open()
        for name in self.control.members:
            if name in self._adopted:
                self.control.launching.adopt(name, self._adopted[name])
            else:
                await self.control.launching.start(name)
        self._running = group.create_task(self.control.run())

    def die(self):
        """As if its process were killed: nobody is told anything."""
        self._running.cancel()
        self.mailbox.close()

    async def stop(self):
        await self.control.stop()
        self._running.cancel()


class VirtualCluster:
    """Workers by name with their memory limits, and how to disturb them. step_s: virtual time of a turn of all workers."""

    def __init__(self, model, home, names, *, limits=None, step_s=0.0, settings=None):
        workers = tuple(
            WorkerSettings(name=name, memory_limit=limit)
            for name, limit in zip(names, limits or [None] * len(names), strict=True)
        )
        defaults = {
            "engine": EngineSettings(prefill_chunk=CHUNK_TOKENS),
            "recovery": RecoverySettings(wait_s=60),
            "model": ModelSettings(path=str(model)),
            "workers": workers,
        }
        self.settings = Settings(**defaults | (settings or {}))
        self.names = tuple(names)
        self.step_s = step_s
        self.network = InProcessNetwork()
        self.now = asyncio.get_running_loop().time
        self.host = InProcessHost(self.network, home, self.now)
        self._model = model
        self._stirred = asyncio.Event()
        self._stack = AsyncExitStack()
        self._group = None
        self._at_turn = {}
        self.num_turns = 0
        self.coordinator = self.client = None

    def __repr__(self):
        return f"VirtualCluster({self.coordinator}, {self.host})"

    # --- living

    async def __aenter__(self):
        self._group = await self._stack.enter_async_context(asyncio.TaskGroup())
        pump = self._group.create_task(self._pump())
        self._stack.callback(pump.cancel)
        try:
            await self.start_coordinator()
        except BaseException as error:
            await self.__aexit__(type(error), error, error.__traceback__)
            raise
        return self

    async def __aexit__(self, *error):
        if error[0] is None:
            await self.coordinator.stop()
            assert not self.host.workers, "workers outlive the cluster"
        else:
            self.coordinator.die()
        await self._stack.__aexit__(*error)

    async def start_coordinator(self):
        """The first one, or one in the place of another that died."""
        incarnation = 1 if self.coordinator is None else (self.coordinator.mailbox.epoch >> 32) + 1
        self.coordinator = InProcessCoordinator(
            self._model, self.settings, self.network, self.host, self._stirred.set, incarnation
        )
        app = build_app(self.coordinator.service, ApiSettings(), model_ids=("default",))
        self.client = await self._stack.enter_async_context(Client(app).opened())
        await self.coordinator.begin(self._group)
        await asyncio.wait_for(self.control.starting.ended(), _LIMIT_S)

    async def _pump(self):
        while True:
            worked, due_s = self.host.turn()
            self.num_turns += 1
            if (act := self._at_turn.pop(self.num_turns, None)) is not None:
                act()
                worked = True
            if worked:
                await asyncio.sleep(self.step_s)
                continue
            self._stirred.clear()
            try:
                async with asyncio.timeout(min(due_s if due_s is not None else _LOOK_EVERY_S, _LOOK_EVERY_S)):
                    await self._stirred.wait()
            except TimeoutError:
                continue

    # --- what it is

    @property
    def control(self):
        return self.coordinator.control

    @property
    def plan(self):
        return self.control.plan

    def engine(self, name):
        return self.host.workers[name].engine

    def read_bytes(self, name):
        """Weights that a worker's process has read since it began."""
        return self.engine(name)._loading.read_bytes

    async def until(self, condition, limit_s=120):
        """Returns when the condition holds, as seen ten times a second."""
        async with asyncio.timeout(limit_s):
            while not condition():  # noqa: ASYNC110 - there is nobody to tell
                await asyncio.sleep(0.1)

    async def whole(self):
        """Everybody is part of the plan in force; deaths so far are forgotten, and where prompts went."""
        for name in self.names:
            self.coordinator.restarts.forgive(name)
        self.coordinator.service._decider._visited.clear()
        await self.until(lambda: not any(worker.stands_still for worker in self.host.workers.values()))
        await self.until(lambda: self.plan is not None and set(self.plan.workers) == set(self.names))

    # --- what befalls it

    def worker(self, name):
        return self.host.workers[name]

    def kill(self, name, *, silently=False):
        """SIGKILL. silently: what it sent and is under way is lost, too."""
        if silently:
            for inbox in list(self.network._inboxes):
                self.network._links[name].break_link(inbox, "its process died")
        control = self.worker(name).control
        self.host.kill(name)
        self.coordinator.mailbox.connection_closed(control)
        self._stirred.set()

    def stop(self, name):
        """SIGSTOP."""
        self.worker(name).is_stopped = True

    def go_on(self, name):
        """SIGCONT."""
        self.worker(name).is_stopped = False
        self._stirred.set()

    def reset(self, owner, name):
        """A link between two workers, or with the coordinator ("coordinator" as owner, "" as name), ends with what is on it."""
        self.network.reset(owner, self.host.inbox_of(name, owner))

    def lose_next(self, owner, name):
        """The next message on a link vanishes."""
        self.network.lose_next(owner, self.host.inbox_of(name, owner))

    def at_turn(self, number, act):
        """`act` after so many more turns of everybody: between any two messages, also while a plan is made."""
        self._at_turn[self.num_turns + number] = act

    def forget_faults(self):
        """What was going to happen will not; what happened stays."""
        self._at_turn.clear()
        self.network.heal()
        self.network._vanishing.clear()
        for worker in self.host.workers.values():
            worker.forget_launches()

    # --- what is left

    def assert_at_rest(self):
        """No request, no sequence, no cache, no step in flight, anywhere."""
        assert self.control.listener.is_idle
        for name, worker in self.host.workers.items():
            engine = worker.engine
            executors = engine._runner.stages.executors.values()
            assert sum(map(len, executors)) == 0, (name, engine)
            assert all(not executor._caches._slots and executor.kv_bytes == 0 for executor in executors), (name, engine)
            assert len(engine._heads.handovers) == 0, (name, engine)
            for head in engine._heads:
                assert (len(head), head.num_in_flight, len(head._schedule)) == (0, 0, 0), head


class Workshop:
    """Clusters of one tiny model, each with a home of its own; the model is inspected once."""

    def __init__(self, model, folder):
        self.model = model
        self._folder = folder
        self._num_homes = 0

    def __repr__(self):
        return f"Workshop({self.model.name})"

    def _home(self):
        self._num_homes += 1
        home = Home(self._folder / f"home-{self._num_homes}")
        home.create()
        home.remember_model(model_digest(self.model), self.model)
        for kept in self._folder.glob("inspection-*.json"):
            shutil.copy(kept, home.cache)
        return home

    def run(self, scenario, *names, before=lambda cluster: None, **options):
        """Run `scenario(cluster)` in virtual time with these workers. before: is given the cluster before it starts."""
        home = self._home()

        async def main():
            subject = VirtualCluster(self.model, home, names, **options)
            before(subject)
            async with subject as cluster:
                await scenario(cluster)

        try:
            virtual_time.run(main())
        except ExceptionGroup as group:
            if len(group.exceptions) > 1:
                raise
            raise group.exceptions[0] from None
        for kept in home.cache.glob("inspection-*.json"):
            shutil.copy(kept, self._folder)
