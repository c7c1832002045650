"""Workers without processes: a real Worker and its real Engine each, turned by whoever turns the host, and their faults."""

import asyncio
from collections import Counter

from cluster.membership.local import END_GRACE_S
from protocol.home import ProcessIdentity
from protocol.join_token import read_token
from protocol.values import TO_COORDINATOR, Peer
from tests.support.in_process.mailbox import ENDPOINT
from tests.support.told_timer import ToldTimer
from workers.engine.engine import Engine
from workers.model.shelf import ModelShelf
from workers.worker import Worker, WorkerOptions

KILLED = -9
ORPHAN_S = 120.0
_POLL_S = 0.05


class _Halted(BaseException):
    """The compute thread comes no further: its process died or hangs in this step. No `except Exception` holds it up."""


class InProcessWorker:
    """One worker as its process would run it. pid: none of the system's; number: of its life, in its inboxes' names."""

    def __init__(self, options, network, pid, number, now, meet):
        self.name = options.name
        self.identity = ProcessIdentity(pid=pid, create_time=float(pid))
        self.control, self.data = (f"{options.name}.{number} {kind}" for kind in ("control", "data"))
        self.is_over = self.is_stopped = self.is_blocked = False
        self._at_launch = {}
        self.num_launched = 0
        self.key = f"the key of {options.name}"
        links = network.links(options.name, self._link_lost, key=self.key)
        shelf = ModelShelf(options.home, options.home.cache)
        self.engine = Engine(options.name, links, shelf, now=now, make_timer=ToldTimer, meet=meet)
        self._links = links
        self._launch, self.engine._runner.launch = self.engine._runner.launch, self._launched
        self._now = now
        self.worker = Worker(
            options,
            engine=self.engine,
            outbox=network.outbox(self.key),
            open_inbox=lambda kind, deliver, admits: network.inbox(
                getattr(self, kind), deliver, key=self.key, admits=admits
            ),
            exit_later=lambda: None,
            now=now,
        )
        self.worker.start()
        self._worked = True

    def __repr__(self):
        return f"InProcessWorker({self.name}, {self.worker})"

    def _link_lost(self, peer, why):
        self.worker.link_lost(peer, why, self._links.epoch)

    # --- faults

    def at_launch(self, number, act):
        """`act` when this worker's engine launches its step of that number from now on, before anything is computed."""
        self._at_launch[self.num_launched + number] = act

    def _launched(self, launch, before):
        self.num_launched += 1
        act = self._at_launch.pop(self.num_launched, None)
        if act is not None:
            act()
        if self.is_over or self.is_blocked:
            raise _Halted
        return self._launch(launch, before)

    def forget_launches(self):
        """Nothing is done `at_launch` any more."""
        self._at_launch.clear()

    def block(self):
        """The next step that is launched never ends."""
        self.at_launch(1, self.hang)

    def hang(self):
        """What the compute thread is at never ends."""
        self.is_blocked = True

    def end(self, network):
        """The process is gone: nobody receives at its inboxes, and who had links to them is told."""
        self.is_over = True
        network.remove(self.control)
        network.remove(self.data)
        opened = self.engine._loading._loader._open
        if opened is not None:
            opened.tiers.close()

    # --- life

    @property
    def stands_still(self):
        """Whether anybody waits for it in vain, which will be noticed."""
        return self.is_stopped or (self.is_blocked and self.engine._arrivals.num_waiting > 0)

    def _stand_still(self):
        """One that hung while it had nothing to do hangs in the first message that it takes."""
        vitals = self.engine._vitals
        if vitals._busy is None and self.engine._arrivals.num_waiting:
            vitals.begin(self._now())

    def turn(self):
        """What its threads do at this moment; whether anything was done, and after how long to look again."""
        if self.is_stopped:
            return False, None
        if self.is_blocked:
            self._stand_still()
        else:
            try:
                self._worked = self.engine.turn(wait_s=None if self._worked else 0.0)
            except _Halted:
                self._worked = False
        if self.is_over or self.is_stopped:
            return self._worked, None
        wait_s = self.worker.turn(0.0)
        if wait_s is None:
            if not self.is_blocked:
                self.engine.run()  # to its end
            self.is_over = True
        return self._worked, wait_s


class InProcessHost:
    """The machine that workers run on; they outlive launchers. `ended` is told of each that ends, as a launcher is.

    deaths: how many processes ended, by name; meet: as of `Company`.
    """

    def __init__(self, network, home, now):
        self._network = network
        self._home = home
        self._now = now
        self._num_started = 0
        self.meet = None
        self.deaths = Counter()
        self.workers = {}
        self.ended = lambda name, status: None

    def __repr__(self):
        return f"InProcessHost({list(self.workers.values())})"

    def start(self, name, coordinator, token, memory_limit_bytes):
        assert name not in self.workers, name
        self._num_started += 1
        public_key, secret = read_token(token)
        options = WorkerOptions(
            name=name,
            coordinator=Peer(endpoint=coordinator.endpoint, public_key=public_key),
            secret=secret,
            memory_limit_bytes=memory_limit_bytes,
            orphan_s=ORPHAN_S,
            home=self._home,
        )
        number = self._num_started
        worker = InProcessWorker(options, self._network, 100_000 + number, number, self._now, self.meet)
        self.workers[name] = worker
        return worker.identity

    def turn(self):
        """A turn of everybody, in which messages are delivered first; whether anything was done, and when to look again."""
        worked, due = self._network.run() > 0, []
        for name, worker in list(self.workers.items()):
            if worker.is_over:
                continue
            did, wait_s = worker.turn()
            worked = worked or did
            if wait_s is not None:
                due.append(wait_s)
            if worker.is_over and self.workers.get(name) is worker:
                self._gone(name, 0)
        return worked, min(due, default=None)

    def kill(self, name):
        """SIGKILL."""
        if name in self.workers:
            self._gone(name, KILLED)

    def _gone(self, name, status):
        self.workers.pop(name).end(self._network)
        self.deaths[name] += 1
        self.ended(name, status)

    def inbox_of(self, name, owner=None):
        """Where `owner` reaches a worker, or the coordinator for the name that its links have for it."""
        if name == TO_COORDINATOR:
            return ENDPOINT
        worker = self.workers[name]
        return worker.control if owner == ENDPOINT else worker.data


class InProcessLauncher:
    """`cluster.membership.local.Launcher` on an `InProcessHost`."""

    def __init__(self, host, loop):
        self._host = host
        self._loop = loop
        self._watched = set()
        self.ended = None
        host.ended = self._told

    def __repr__(self):
        return f"InProcessLauncher({sorted(self._watched)})"

    @property
    def identities(self):
        return {name: self._host.workers[name].identity for name in self._watched}

    def _told(self, name, status):
        self._loop.call_soon(self._tell, name, status)

    def _tell(self, name, status):
        if name in self._watched:
            self._watched.discard(name)
            self.ended(name, status)

    async def start(self, name, *, coordinator, token, memory_limit_bytes):
        identity = self._host.start(name, coordinator, token, memory_limit_bytes)
        self._watched.add(name)
        return identity

    def adopt(self, name, identity):
        assert self._host.workers[name].identity == identity
        self._watched.add(name)

    def has_ended(self, name):
        return name not in self._host.workers

    def kill(self, name):
        if name in self._watched:
            self._host.kill(name)

    async def end(self, *names, grace_s=END_GRACE_S):
        wanted = set(names or self._watched)
        self._watched -= wanted
        until = self._loop.time() + grace_s
        while wanted & self._host.workers.keys() and self._loop.time() < until:  # noqa: ASYNC110 - as a process is waited for
            await asyncio.sleep(_POLL_S)
        for name in wanted:
            self._host.kill(name)
