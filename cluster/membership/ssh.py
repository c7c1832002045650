"""Workers of other hosts: one ssh connection a host, over which `./launch.sh hosted` starts them, ends them and tells of their ends.

ssh starts and never keeps alive. A connection that is lost costs no worker: who beats goes on, and the host is asked again
until it says who lives there. Workers outlive a coordinator that is killed, with its connections, for `recovery.orphan_s`, and the
next one takes them up. Whatever keeps a host from taking part is a `HostUnavailable`; when to try again is decided elsewhere.
"""

import asyncio
import contextlib
import logging
from collections import deque
from collections.abc import Callable, Coroutine, Mapping, Sequence
from typing import Any

import msgspec

from cluster.membership.host_orders import (
    EndOrder,
    HostGreeting,
    HostHello,
    KillOrder,
    Order,
    Report,
    StartOrder,
    StillHere,
    WorkerEnded,
    WorkerRefused,
    WorkerStarted,
    read_report,
    to_line,
)
from cluster.membership.local import END_GRACE_S
from cluster.membership.ssh_command import SSH, HostUnavailable, no_ssh, ssh_command, why_failed
from cluster.settings import HostSettings
from protocol.codec import PROTOCOL
from protocol.errors import TandemError
from protocol.home import ProcessIdentity
from protocol.host_specs import HostSpecs, difference
from protocol.values import Peer

log = logging.getLogger(__name__)

# A host that makes its environment takes minutes to say hello, one that says nothing for longer is stuck.
HELLO_WITHIN_S = 900.0
_ANSWER_WITHIN_S = 30.0
_SAY_EVERY_S = 3.0
_END_MARGIN_S = 1.0
_END_WITHIN_S = 30.0
_LONGEST_RETRY_S = 8.0
# Logs, keys and the list of workers need little; what is kept of prompts has limits of its own.
LEAST_FREE_BYTES = 64_000_000
_HELLO = b'{"type":"hello"'
_LINES_KEPT = 40


class SshTerms(msgspec.Struct, frozen=True, kw_only=True):
    """What holds for all hosts. about: this one; tell: hears what a host does before it says hello; is_new: no earlier
    coordinator's workers are to be taken up; allow_mixed: as of `difference`; program: the ssh.
    """

    orphan_s: float
    about: HostSpecs
    tell: Callable[[str], None]
    is_new: bool
    allow_mixed: bool = False
    program: str = SSH


class HostLink:
    """One host: its connection, made when it is needed, and its workers as far as they are known. ended: as of `Launcher`."""

    def __init__(self, host: HostSettings, terms: SshTerms, ended: Callable[[str, int | None], None]):
        self.host = host
        self.workers: dict[str, ProcessIdentity] = {}
        self._terms = terms
        self._ended = ended
        self._is_new = terms.is_new
        self._cluster = ""
        self._process: asyncio.subprocess.Process | None = None
        self._connecting = asyncio.Lock()
        self._starting: dict[str, asyncio.Future[ProcessIdentity]] = {}
        self._said: deque[str] = deque(maxlen=_LINES_KEPT)
        self._tasks: set[asyncio.Task[None]] = set()
        self._is_ending = False

    def __repr__(self) -> str:
        return f"HostLink({self.host.name}, {'apart' if self._process is None else 'connected'})"

    async def start(self, order: StartOrder) -> ProcessIdentity:
        """See Launcher. Raises HostUnavailable."""
        self._cluster = order.door.public_key
        await self._connect()
        answer = self._starting[order.name] = asyncio.get_running_loop().create_future()
        self._say(order)
        try:
            return await asyncio.wait_for(answer, _ANSWER_WITHIN_S)
        except TimeoutError:
            raise HostUnavailable(f"{self.host.name} does not answer any more; look at it") from None
        finally:
            self._starting.pop(order.name, None)

    def kill(self, name: str) -> None:
        """Where there is no connection, the next one tells whether it still lives."""
        self._say(KillOrder(name=name))

    async def end(self, grace_s: float) -> None:
        """End its workers and the connection."""
        self._is_ending = True
        process = self._process
        if process is not None:
            self._say(EndOrder(grace_s=grace_s))
            try:
                await asyncio.wait_for(process.wait(), grace_s + _END_MARGIN_S)
            except TimeoutError:
                log.warning("%s does not end its workers; without a coordinator they end by themselves", self.host.name)
        for task in tuple(self._tasks):
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)
        if process is not None:
            await _kill(process)
        self.workers.clear()

    # --- the connection

    async def _connect(self) -> None:
        """Raises HostUnavailable."""
        async with self._connecting:
            if self._process is not None:
                return
            self._said.clear()
            process = await _spawn(self.host, self._terms.program)
            errors = self._begin(self._read_errors(process))
            try:
                hello = await self._hello(process, errors)
            except BaseException:
                await _kill(process)
                raise
            self._process, self._is_new = process, False
            self._begin(self._read(process))
            self._begin(self._keep_saying())
            self._take_up(hello.workers)

    async def _hello(self, process: asyncio.subprocess.Process, errors: "asyncio.Task[None]") -> HostHello:
        """What the host is, if it may take part. Raises HostUnavailable."""
        name = self.host.name
        greeting = HostGreeting(cluster=self._cluster, is_new=self._is_new, orphan_s=self._terms.orphan_s)
        _write(process, greeting)
        try:
            async with asyncio.timeout(HELLO_WITHIN_S):
                line = await _line_after_noise(process)
                if not line:
                    await errors
                    raise HostUnavailable(why_failed(self.host, await process.wait(), "\n".join(self._said)))
        except TimeoutError:
            raise HostUnavailable(f"{name} said nothing for {HELLO_WITHIN_S:.0f} s; look at it") from None
        hello = _read_hello(name, line)
        if why := difference(self._terms.about, hello.about, allow_mixed=self._terms.allow_mixed):
            raise HostUnavailable(f"{name} cannot take part: {why}")
        if hello.free_bytes < LEAST_FREE_BYTES:
            raise HostUnavailable(f"the disk of {name} is full; make room there")
        return hello

    def _take_up(self, found: Mapping[str, ProcessIdentity]) -> None:
        """Who ended while nobody could tell has ended now."""
        gone = self.workers.keys() - found.keys()
        self.workers = dict(found)
        for name in gone:
            self._ended(name, None)

    async def _read(self, process: asyncio.subprocess.Process) -> None:
        assert process.stdout is not None
        while line := await process.stdout.readline():
            try:
                report = read_report(line)
            except ValueError:
                log.warning("%s said what is no report", self.host.name)
                continue
            self._heard(report)
        await process.wait()
        self._lost()

    def _heard(self, report: Report) -> None:
        match report:
            case WorkerStarted(name=name, process=identity):
                self.workers[name] = identity
                self._answer(name, identity)
            case WorkerRefused(name=name, why=why):
                self._answer(name, HostUnavailable(f"{self.host.name} cannot start {name}: {why}"))
            case WorkerEnded(name=name, status=status):
                self.workers.pop(name, None)
                self._ended(name, status)

    def _answer(self, name: str, found: ProcessIdentity | HostUnavailable) -> None:
        answer = self._starting.get(name)
        if answer is None or answer.done():
            return
        if isinstance(found, HostUnavailable):
            answer.set_exception(found)
        else:
            answer.set_result(found)

    def _lost(self) -> None:
        process, self._process = self._process, None
        assert process is not None
        if self._is_ending:
            return
        why = why_failed(self.host, process.returncode, "\n".join(self._said))
        log.warning("the connection to %s ended: %s", self.host.name, why)
        for name in tuple(self._starting):
            self._answer(name, HostUnavailable(why))
        if self.workers:
            self._begin(self._connect_again())

    async def _connect_again(self) -> None:
        """Ask the host who lives there, for as long as somebody might."""
        wait_s = 1.0
        while self.workers and self._process is None:
            await asyncio.sleep(wait_s)
            wait_s = min(2 * wait_s, _LONGEST_RETRY_S)
            try:
                await self._connect()
            except HostUnavailable as error:
                log.warning("%s", error)

    async def _keep_saying(self) -> None:
        """That the coordinator lives."""
        while self._process is not None:
            await asyncio.sleep(_SAY_EVERY_S)
            self._say(StillHere())

    async def _read_errors(self, process: asyncio.subprocess.Process) -> None:
        """What launch.sh says there is of interest to whoever waits; all of it explains a failure."""
        assert process.stderr is not None
        while raw := await process.stderr.readline():
            line = raw.decode(errors="replace").strip()
            self._said.append(line)
            if line.startswith("tandem: "):
                with contextlib.suppress(TandemError):  # that nobody waits any more is noticed elsewhere
                    self._terms.tell(f"{self.host.name}: {line.removeprefix('tandem: ')}")

    def _say(self, order: Order) -> None:
        if self._process is not None:
            _write(self._process, order)

    def _begin(self, work: Coroutine[Any, Any, None]) -> "asyncio.Task[None]":
        task = asyncio.create_task(work)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)
        return task


def _read_hello(host: str, line: bytes) -> HostHello:
    """Raises HostUnavailable where another version said it."""
    try:
        hello = read_report(line)
    except ValueError:
        hello = None
    if not isinstance(hello, HostHello) or hello.protocol != PROTOCOL:
        raise HostUnavailable(f"{host} has another version of Tandem; bring both checkouts to the same commit")
    return hello


async def end_left_behind(host: HostSettings, cluster: str, program: str = SSH) -> int:
    """End the workers that coordinators of the cluster with this public key left on a host; returns how many lived.

    Raises:
        HostUnavailable: it cannot be asked.
    """
    process = await _spawn(host, program)
    greeting = to_line(HostGreeting(cluster=cluster, is_new=True, orphan_s=0.0))
    try:
        output, errors = await asyncio.wait_for(process.communicate(greeting), _END_WITHIN_S)
    except TimeoutError:
        raise HostUnavailable(f"{host.name} said nothing for {_END_WITHIN_S:.0f} s; look at it") from None
    finally:
        await _kill(process)
    line = next((line for line in output.splitlines() if line.startswith(_HELLO)), None)
    if line is None:
        raise HostUnavailable(why_failed(host, process.returncode, errors.decode(errors="replace")))
    return _read_hello(host.name, line).num_ended


async def _spawn(host: HostSettings, program: str) -> asyncio.subprocess.Process:
    """Raises HostUnavailable."""
    try:
        return await asyncio.create_subprocess_exec(
            *ssh_command(host, program),
            stdin=asyncio.subprocess.PIPE,
            stdout=asyncio.subprocess.PIPE,
            stderr=asyncio.subprocess.PIPE,
            start_new_session=True,  # Ctrl-C at a terminal is the coordinator's to handle
        )
    except OSError as error:
        raise no_ssh(error) from None


def _write(process: asyncio.subprocess.Process, order: Order) -> None:
    """One that ended hears nothing, which its end tells."""
    assert process.stdin is not None
    if not process.stdin.is_closing():
        process.stdin.write(to_line(order))


async def _line_after_noise(process: asyncio.subprocess.Process) -> bytes:
    """The hello, behind whatever the shells there print; empty where there is none."""
    assert process.stdout is not None
    while line := await process.stdout.readline():
        if line.startswith(_HELLO):
            return line
    return b""


async def _kill(process: asyncio.subprocess.Process) -> None:
    with contextlib.suppress(ProcessLookupError):
        process.kill()
    if process.stdin is not None:
        process.stdin.close()
    with contextlib.suppress(TimeoutError):  # what it started may hold its outputs open
        await asyncio.wait_for(process.wait(), _END_MARGIN_S)


class SshLauncher:
    """A `Launcher` for the workers of other hosts."""

    def __init__(self, hosts: Sequence[HostSettings], terms: SshTerms):
        self.ended: Callable[[str, int | None], None] = lambda _name, _status: None
        links = [HostLink(host, terms, self._tell_of_end) for host in hosts]
        self._links = {name: link for link in links for name in link.host.worker_names}

    def _tell_of_end(self, name: str, status: int | None) -> None:
        self.ended(name, status)

    def __repr__(self) -> str:
        return f"SshLauncher({', '.join(self._links)})"

    @property
    def identities(self) -> dict[str, ProcessIdentity]:
        """See Launcher; pids are those of their hosts."""
        return {name: link.workers[name] for name, link in self._links.items() if name in link.workers}

    async def start(self, name: str, *, coordinator: Peer, token: str, memory_limit_bytes: int) -> ProcessIdentity:
        """See Launcher."""
        link = self._links[name]
        order = StartOrder(
            name=name,
            door=coordinator,
            token=token,
            memory_limit_bytes=memory_limit_bytes,
            num_workers=link.host.workers,
        )
        return await link.start(order)

    def adopt(self, name: str, identity: ProcessIdentity) -> None:
        """See Launcher."""
        self._links[name].workers[name] = identity

    def has_ended(self, name: str) -> bool:
        """See Launcher."""
        return name not in self._links[name].workers

    def kill(self, name: str) -> None:
        """See Launcher."""
        self._links[name].kill(name)

    async def end(self, *names: str, grace_s: float = END_GRACE_S) -> None:
        """See Launcher; a host ends as a whole."""
        links = {self._links[name] for name in names or self._links if name in self._links}
        await asyncio.gather(*(link.end(grace_s) for link in links))
