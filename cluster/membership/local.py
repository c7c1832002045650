"""The worker processes of this machine: started with the right environment, watched, ended.

Workers outlive a coordinator that dies, so who they are must be known to the next one. A worker waits on its standard
input for one line, the join token; it gets it only once it stands in the state file, and ends when the input ends
without it. So at whatever moment a coordinator is killed, every worker that lives on can be found. It says nothing of
why a worker should start, or start again.
"""

import asyncio
import glob
import os
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Protocol

import msgspec

from cluster.settings import Settings
from protocol.home import ClusterState, Home, ProcessIdentity
from protocol.host_memory import read_host_memory
from protocol.values import Peer

WORKER = (sys.executable, "-m", "workers")
END_GRACE_S = 5.0
_POLL_S = 0.25
_OPENBLAS = (
    "/usr/lib/*-linux-gnu/openblas-pthread/libblas.so.3",
    "/usr/lib64/libopenblasp.so.0",
    "/usr/lib/libopenblas.so.0",
)


def default_memory_limit(num_workers: int) -> int:
    """Bytes for one of `num_workers` workers on this machine."""
    return read_host_memory().of_worker(num_workers)


def find_openblas() -> str | None:
    """The system's OpenBLAS on Linux, whose matrix products are many times faster than the BLAS in MLX's wheel."""
    if sys.platform != "linux":
        return None
    return next((match for pattern in _OPENBLAS for match in sorted(glob.glob(pattern))), None)


def worker_environment() -> dict[str, str]:
    """This process's environment, with OpenBLAS preloaded on one thread where the system has it."""
    environment = dict(os.environ)
    library = find_openblas()
    if library is not None:
        earlier = environment.get("LD_PRELOAD")
        environment["LD_PRELOAD"] = f"{library}:{earlier}" if earlier else library
        environment.setdefault("OPENBLAS_NUM_THREADS", "1")
    return environment


def machine_options(settings: Settings) -> tuple[str, ...]:
    """The arguments by which a worker keeps to the settings of its machine: its links, and how it writes its log."""
    links = settings.links
    given = {"--listen": links.addresses, "--prefer": links.prefer, "--exclude": links.exclude}
    options = tuple(word for option, values in given.items() for value in values for word in (option, value))
    return (*options, "--log-format", settings.logs.format)


class Launcher(Protocol):
    """What starts, watches and ends workers somewhere; `LocalLauncher` here.

    ended: called once for each process that ends, also after `kill`, with its exit status, or None where that cannot be
    known; not for those that `end` ends. All of it on one asyncio loop.
    """

    ended: Callable[[str, int | None], None]

    @property
    def identities(self) -> dict[str, ProcessIdentity]:
        """Who runs, by name."""

    async def start(self, name: str, *, coordinator: Peer, token: str, memory_limit_bytes: int) -> ProcessIdentity:
        """Start a worker that will join `coordinator`; one that lives already is taken up. Raises OSError or HostUnavailable."""

    def adopt(self, name: str, identity: ProcessIdentity) -> None:
        """Watch a worker that an earlier coordinator started here."""

    def has_ended(self, name: str) -> bool:
        """Whether its process is gone, which `ended` may not have told yet."""

    def kill(self, name: str) -> None:
        """End one at once, if it runs."""

    async def end(self, *names: str, grace_s: float = END_GRACE_S) -> None:
        """Wait for these (all, without names) to end by themselves, then kill them; returns when they are gone."""


class _Worker:
    """One watched process: our child, or one that we adopted."""

    def __init__(self, identity: ProcessIdentity, child: asyncio.subprocess.Process | None = None):
        self.identity = identity
        self._child = child
        self.watch: asyncio.Task[None] | None = None

    def __repr__(self) -> str:
        return f"_Worker(pid {self.identity.pid}, {'adopted' if self._child is None else 'child'})"

    async def wait(self) -> int | None:
        """Its exit status, once it ended; None where it is not our child."""
        if self._child is not None:
            return await self._child.wait()
        while self.identity.alive():  # noqa: ASYNC110 - the system tells nobody but the parent
            await asyncio.sleep(_POLL_S)
        return None


class LocalLauncher:
    """See `Launcher`. options: further arguments of every worker; command: what runs one; remember: writes down who was started,
    before that one has its token; in the state where it is None.
    """

    def __init__(
        self,
        home: Home,
        checkout: Path,
        options: Sequence[str] = (),
        command: Sequence[str] = WORKER,
        remember: Callable[[str, ProcessIdentity], None] | None = None,
    ):
        self.ended: Callable[[str, int | None], None] = lambda _name, _status: None
        self._home = home
        self._checkout = checkout
        self._options = options
        self._command = command
        self._remember = remember or (lambda name, who: home.update_state(_naming(name, who)))
        self._workers: dict[str, _Worker] = {}

    def __repr__(self) -> str:
        return f"LocalLauncher({', '.join(self._workers)})"

    @property
    def identities(self) -> dict[str, ProcessIdentity]:
        return {name: worker.identity for name, worker in self._workers.items()}

    async def start(self, name: str, *, coordinator: Peer, token: str, memory_limit_bytes: int) -> ProcessIdentity:
        assert name not in self._workers, name
        arguments = ["--name", name, "--join", coordinator.endpoint, "--memory-limit", str(memory_limit_bytes)]
        with (self._home.logs / f"{name}.out").open("wb") as output:
            child = await asyncio.create_subprocess_exec(
                *(*self._command, "--token", "-", "--home", str(self._home.root), *arguments),
                *self._options,
                stdin=asyncio.subprocess.PIPE,
                stdout=output,
                stderr=output,
                cwd=self._checkout,
                env=worker_environment(),
                start_new_session=True,  # Ctrl-C at a terminal is the coordinator's to handle
            )
        worker = _Worker(ProcessIdentity.of(child.pid), child)
        self._watch(name, worker)
        await asyncio.to_thread(self._remember, name, worker.identity)
        assert child.stdin is not None
        child.stdin.write(token.encode() + b"\n")
        child.stdin.close()
        return worker.identity

    def adopt(self, name: str, identity: ProcessIdentity) -> None:
        assert name not in self._workers, name
        self._watch(name, _Worker(identity))

    def has_ended(self, name: str) -> bool:
        worker = self._workers.get(name)
        return worker is None or not worker.identity.alive()

    def kill(self, name: str) -> None:
        if (worker := self._workers.get(name)) is not None:
            worker.identity.kill()

    async def end(self, *names: str, grace_s: float = END_GRACE_S) -> None:
        workers = [self._workers[name] for name in names or self._workers if name in self._workers]
        for worker in workers:
            assert worker.watch is not None
            worker.watch.cancel()
        await asyncio.gather(*(_end(worker, grace_s) for worker in workers))
        self._workers = {name: worker for name, worker in self._workers.items() if worker not in workers}

    def _watch(self, name: str, worker: _Worker) -> None:
        async def wait() -> None:
            status = await worker.wait()
            del self._workers[name]
            self.ended(name, status)

        self._workers[name] = worker
        worker.watch = asyncio.create_task(wait())


async def _end(worker: _Worker, grace_s: float) -> None:
    try:
        await asyncio.wait_for(worker.wait(), grace_s)
    except TimeoutError:
        worker.identity.kill()
        await worker.wait()


def _naming(name: str, identity: ProcessIdentity) -> Callable[[ClusterState], ClusterState]:
    return lambda state: msgspec.structs.replace(state, workers=state.workers | {name: identity})
