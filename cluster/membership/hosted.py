"""The other end of the coordinator's ssh: starts its workers on this host, tells of their ends, and goes when it goes.

A worker is its own process, started as `LocalLauncher` does, and outlives this one: the end of the connection, or silence on it,
ends nobody, since the coordinator may begin again; without one, workers end after `recovery.orphan_s`. Who lives, and for which
cluster, stands in a file of the home, by which the next connection finds them.
"""

import asyncio
import contextlib
import os
import shutil
from collections.abc import Callable, Mapping

import msgspec

from cluster.membership.host_orders import (
    EndOrder,
    HostGreeting,
    HostHello,
    KillOrder,
    Order,
    Report,
    StartOrder,
    WorkerEnded,
    WorkerRefused,
    WorkerStarted,
    read_order,
)
from cluster.membership.local import LocalLauncher, default_memory_limit
from protocol.home import Home, ProcessIdentity, end_processes
from protocol.host_specs import read_host_specs
from protocol.transport.addressing import host_of, nearest, own_networks
from protocol.values import Peer

FILE = "hosted.json"
# A coordinator says several times as often that it lives.
SILENCE_S = 15.0
_EARLIER_GRACE_S = 1.0


Remember = Callable[[str, ProcessIdentity], None]
MakeLauncher = Callable[[float, Remember], LocalLauncher]


class HostedWorker(msgspec.Struct, frozen=True, kw_only=True):
    """A worker that was started for a cluster elsewhere, whose public key this is."""

    cluster: str
    process: ProcessIdentity


class HostedBook:
    """The workers of one home that belong to clusters elsewhere, as they are on disk."""

    def __init__(self, home: Home):
        self._home = home
        self._file = home.root / FILE

    def __repr__(self) -> str:
        return f"HostedBook({self._file})"

    def read(self) -> dict[str, HostedWorker]:
        """Those that live, by name."""
        try:
            known = msgspec.json.decode(self._file.read_bytes(), type=dict[str, HostedWorker])
        except (OSError, ValueError):
            return {}
        return {name: worker for name, worker in known.items() if worker.process.alive()}

    def add(self, name: str, worker: HostedWorker) -> None:
        """One more; those that ended are forgotten."""
        with self._home.writing():
            self._home.write_private(self._file, msgspec.json.encode(self.read() | {name: worker}))


class HostedWorkers:
    """See the module. make_launcher: of a launcher whose workers live for so many seconds without a coordinator, and that hands
    who it starts to what it is given; say: tells the coordinator; reached_from: the coordinator's address, as the connection has
    it, empty where that is not known.
    """

    def __init__(
        self,
        home: Home,
        make_launcher: MakeLauncher,
        say: Callable[[Report], None],
        reached_from: str,
    ):
        self._home = home
        self._book = HostedBook(home)
        self._make_launcher = make_launcher
        self._say = say
        self._reached_from = reached_from
        self._starting: set[asyncio.Task[None]] = set()

    def __repr__(self) -> str:
        return f"HostedWorkers({self._home})"

    async def run(self, orders: asyncio.StreamReader) -> None:
        """Do what comes, until it says so, or nobody is there any more."""
        greeting = await _next(orders)
        if not isinstance(greeting, HostGreeting):
            return
        launcher = await self._greet(greeting)
        while (order := await _next(orders)) is not None:
            match order:
                case StartOrder():
                    task = asyncio.create_task(self._start(order, launcher))
                    self._starting.add(task)
                    task.add_done_callback(self._starting.discard)
                case KillOrder(name=name):
                    launcher.kill(name)
                case EndOrder(grace_s=grace_s):
                    await asyncio.gather(*self._starting)
                    await launcher.end(grace_s=grace_s)
                    return

    async def _greet(self, greeting: HostGreeting) -> LocalLauncher:
        """Take up who lives of this cluster, or end them."""
        cluster = greeting.cluster
        found = {name: each.process for name, each in self._book.read().items() if each.cluster == cluster}
        num_ended = 0
        if greeting.is_new:
            num_ended = await asyncio.to_thread(end_processes, found.values(), _EARLIER_GRACE_S)
            found = {}
        launcher = self._make_launcher(
            greeting.orphan_s,
            lambda name, process: self._book.add(name, HostedWorker(cluster=cluster, process=process)),
        )
        launcher.ended = lambda name, status: self._say(WorkerEnded(name=name, status=status))
        for name, process in found.items():
            launcher.adopt(name, process)
        free_bytes = shutil.disk_usage(self._home.root).free
        self._say(HostHello(about=read_host_specs(), free_bytes=free_bytes, workers=found, num_ended=num_ended))
        return launcher

    async def _start(self, order: StartOrder, launcher: LocalLauncher) -> None:
        name = order.name
        if (running := launcher.identities.get(name)) is not None:
            self._say(WorkerStarted(name=name, process=running))
            return
        if name in self._book.read():
            why = f"a worker {name} of another cluster runs there; stop that cluster, or give this host another name"
            self._say(WorkerRefused(name=name, why=why))
            return
        limit = order.memory_limit_bytes or await asyncio.to_thread(default_memory_limit, order.num_workers)
        coordinator = Peer(endpoint=reachable(order.door, self._reached_from), public_key=order.door.public_key)
        try:
            process = await launcher.start(name, coordinator=coordinator, token=order.token, memory_limit_bytes=limit)
        except OSError as error:
            self._say(WorkerRefused(name=name, why=f"it cannot be started there: {error}"))
            return
        self._say(WorkerStarted(name=name, process=process))


async def _next(orders: asyncio.StreamReader) -> Order | None:
    """None where nobody is there any more."""
    try:
        line = await asyncio.wait_for(orders.readline(), SILENCE_S)
    except TimeoutError:
        return None
    return read_order(line) if line else None


def reachable(door: Peer, reached_from: str) -> str:
    """Where a worker here reaches the coordinator: at the address that its ssh came from, where it listens there."""
    listens = {host_of(address.endpoint): address.endpoint for address in door.addresses}
    if reached_from in listens:
        return listens[reached_from]
    return nearest(door.addresses, own_networks()) if door.addresses else door.endpoint


def client_address(environment: Mapping[str, str]) -> str:
    """Whose connection sshd says this is; empty without one."""
    return (environment.get("SSH_CONNECTION") or "").partition(" ")[0]


def say_on(descriptor: int, line: bytes) -> None:
    """Nobody may listen any more, which the end of the orders tells, too."""
    with contextlib.suppress(OSError):
        os.write(descriptor, line)
