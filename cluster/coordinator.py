"""The coordinator process: `python -m cluster.coordinator --home HOME [--again]`.

Reads HOME/settings.json, brings the workers and the API up, and serves until SIGTERM or SIGINT, which drain and stop
everything. While it starts, it tells its parent how that goes (`StartReport`). A first start whose parent is gone ends; one
that takes the place of a coordinator that died (--again) goes on.
"""

import argparse
import asyncio
import errno
import gc
import itertools
import logging
import os
import signal
import socket
import time
from asyncio import FIRST_COMPLETED
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NoReturn

import msgspec
from starlette.applications import Starlette

from cluster.api.app import build_app
from cluster.api.dashboard import Dashboard
from cluster.api.server import bind, serve
from cluster.membership.discovery import AnnouncedDoor, Announcer, own_door, register_by_mdns
from cluster.membership.invitations import InvitationBook
from cluster.membership.local import WORKER, Launcher, LocalLauncher, default_memory_limit, machine_options
from cluster.membership.mailbox import ZmqMailbox
from cluster.membership.member import Member, Whereabouts
from cluster.membership.placed import PlacedLauncher
from cluster.membership.restarts import Restarts
from cluster.membership.roster import REJOIN_WITHIN_S, Roster
from cluster.membership.ssh import SshLauncher, SshTerms
from cluster.planning.control import ControlPlane
from cluster.planning.deployment import Deployment
from cluster.planning.draft_files import ChosenDraft, choose_draft
from cluster.planning.known_model import KnownModel
from cluster.planning.model_files import check_weights, resolve_model
from cluster.serving.cache_use import read_measured_use
from cluster.serving.grammars_apart import GrammarsApart
from cluster.serving.overview import Identity
from cluster.serving.service import GenerationService
from cluster.serving.templates import Templates
from cluster.serving.trace_recording import TraceFile
from cluster.serving.transformers_import import last_lines_read
from cluster.settings import Settings
from cluster.start_report import StartReport
from cluster.started_logs import started_log_format
from protocol.descriptors import allow_descriptors, limits_kept
from protocol.errors import AddressUnavailable, TandemError
from protocol.home import DesiredState, Home, ProcessIdentity, end_processes
from protocol.host_specs import read_host_specs
from protocol.logs import configure_logging
from protocol.model_digest import model_digest
from protocol.model_search import model_name
from protocol.transport import KeyPair
from protocol.transport.addressing import advertised, host_of, own_networks, permitted_here
from protocol.values import LayerRange, Peer
from strategy.cache_use import MeasuredUse

log = logging.getLogger(__name__)

DRAIN_S = 20.0
EARLIER_GRACE_S = 1.0
# The process for chat templates begins when the first of them comes, or when the start has been over for so long.
TEMPLATES_AFTER_S = 5.0
# With fewer files and connections at once not even workers could join.
LEAST_DESCRIPTORS = 64
_TOO_FEW_FILES = (
    f"this machine lets a process open fewer than {LEAST_DESCRIPTORS} files at once; allow more with `ulimit -n 1024`"
)
CHECKOUT = Path(__file__).resolve().parent.parent


class Coordinator:
    """Owns the control plane, the service and the API server of one cluster."""

    def __init__(
        self, home: Home, settings: Settings, report: StartReport, launcher: Launcher, *, is_again: bool = False
    ):
        """is_again: takes the place of a coordinator that died, whose workers may still live."""
        self._home = home
        self._settings = settings
        self._report = report
        self._launcher = launcher
        self._is_again = is_again
        self._stopping = asyncio.Event()
        self._draining, self._served = asyncio.Event(), asyncio.Event()
        self._control: ControlPlane | None = None
        self._apart: tuple[Templates, GrammarsApart] | None = None
        self._announcer: Announcer | None = None
        self._tasks: list[asyncio.Task[None]] = []

    def __repr__(self) -> str:
        return f"Coordinator({self._home})"

    async def run(self) -> None:
        """Start, serve, stop; a start that is interrupted stops too, and is told as an error.

        Raises:
            TandemError: the start failed; everything is stopped again.
        """
        loop = asyncio.get_running_loop()
        starting = asyncio.create_task(self._start())
        for number in (signal.SIGTERM, signal.SIGINT):
            loop.add_signal_handler(number, self._asked_to_stop, starting)
        try:
            service = await starting
            self._report.tell(ready=msgspec.to_builtins(service.status()))
            self._report.close()
            if self._apart is not None and service.status().model.has_chat_template:
                loop.call_later(TEMPLATES_AFTER_S, loop.run_in_executor, None, self._apart[0].begin)
            gc.freeze()  # what is loaded stays: a full collection over it would hold every stream up for tens of ms
            await asyncio.wait([*self._tasks, asyncio.create_task(self._stopping.wait())], return_when=FIRST_COMPLETED)
            self._draining.set()
            await service.drain(DRAIN_S)
        except asyncio.CancelledError:
            self._report.tell(error="the start was interrupted; nothing is left running", exit_code=1)
        finally:
            await self._stop()

    def _asked_to_stop(self, starting: "asyncio.Task[GenerationService]") -> None:
        log.info("asked to stop")
        self._stopping.set()
        starting.cancel()

    async def _start(self) -> GenerationService:
        """The API answers as soon as there is a tokenizer; workers come meanwhile."""
        if allow_descriptors(LEAST_DESCRIPTORS) < LEAST_DESCRIPTORS:  # libraries would wait for some without a word
            raise TandemError(_TOO_FEW_FILES)
        api = self._settings.api
        listener = bind(api.host, api.port)
        port = listener.getsockname()[1]
        url = f"http://{'127.0.0.1' if api.host == '0.0.0.0' else api.host}:{port}"  # noqa: S104
        trace = self._settings.engine.trace
        trace_file = None if trace is None else TraceFile(Path(trace), is_again=self._is_again)
        path = await asyncio.to_thread(resolve_model, self._settings.model.path, self._report.progress)
        self._apart = Templates(path, CHECKOUT), GrammarsApart(path, CHECKOUT)
        prompts = asyncio.create_task(asyncio.to_thread(_load_prompts, path, *self._apart))
        await asyncio.to_thread(check_weights, path)
        control = await self._take_up(path, url, port)
        identity = Identity(
            model_id=self._settings.model.served_name or model_name(path),
            api=url,
            pid=os.getpid(),
            has_chat_template=(await prompts).has_chat_template,
        )
        service = GenerationService(control, prompts.result(), self._settings, identity, self._measured_use(path))
        dashboard = Dashboard(service, self._home.logs)
        serving = serve(self._app(service, dashboard), listener, stopping=self._served, draining=self._draining)
        self._tasks += asyncio.create_task(serving), asyncio.create_task(dashboard.run(self._served))
        if trace_file is not None:
            self._tasks.append(asyncio.create_task(trace_file.keep(service)))
        service.check_mode(await control.starting.ended())
        if self._announcer is not None:
            self._announcer.start()
        return service

    async def _take_up(self, path: Path, url: str, port: int) -> ControlPlane:
        """The control plane, with the workers that an earlier coordinator left and new ones for the rest."""
        home, settings = self._home, self._settings
        earlier = await asyncio.to_thread(self._earlier_workers)
        desired = await asyncio.to_thread(home.next_incarnation, _make_keys)
        listen = permitted_here(settings.links.addresses, settings.links.names, own_networks())
        mailbox = _mailbox(desired, listen)
        desired = msgspec.structs.replace(desired, port=int(mailbox.door.endpoint.rpartition(":")[2]))
        await asyncio.to_thread(home.write_desired, desired)
        self._announcer = _announcer(mailbox.door, desired, listen)
        digest = await asyncio.to_thread(model_digest, path)
        home.remember_model(digest, path)
        draft = await asyncio.to_thread(self._draft, path)
        self._report.tell(progress="starting the workers")
        now = asyncio.get_running_loop().time
        members = await asyncio.to_thread(_members, settings)
        book = InvitationBook(home, time.time, read_host_specs(), allow_mixed=settings.allow_mixed)
        control = self._control = ControlPlane(
            KnownModel(path, digest, settings, draft),
            mailbox=mailbox,
            launcher=self._launcher,
            roster=Roster(members, secret=desired.secret, restarts=Restarts(), guests=book),
            deployment=Deployment(
                wanted=tuple(member.name for member in members),
                kv_copies=settings.recovery.kv_copies,
                waits_until=now() + REJOIN_WITHIN_S if self._is_again else None,
            ),
            now=now,
        )
        control.starting.tell = self._report.progress
        control.open()
        self._write_state(url, port, earlier)
        await _launch(control, members, earlier)
        for name in book.names if self._is_again else ():
            control.roster.invite(name)
            control.roster.expect(name, REJOIN_WITHIN_S, now())
        self._tasks.append(asyncio.create_task(control.run()))
        return control

    def _draft(self, path: Path) -> ChosenDraft:
        """Who is to guess next tokens of the model there; where a draft model lies is noted."""
        wanted = self._settings.speculation.draft
        found = choose_draft(wanted, path, CHECKOUT / "models", self._report.progress)
        if found.path is not None and found.guessing is not None and found.guessing.draft is not None:
            self._home.remember_model(found.guessing.draft, found.path)
        return found

    def _earlier_workers(self) -> dict[str, ProcessIdentity]:
        """Workers that still live: of a coordinator that died they will join again; anybody else's are ended."""
        state = self._home.read_state()
        alive = {name: who for name, who in (state.workers if state else {}).items() if who.alive()}
        if self._is_again:
            return alive
        end_processes(alive.values(), EARLIER_GRACE_S)
        return {}

    def _write_state(self, url: str, port: int, workers: dict[str, ProcessIdentity]) -> None:
        me = ProcessIdentity.of(os.getpid())
        self._home.update_state(
            lambda state: msgspec.structs.replace(state, coordinator=me, api=url, port=port, workers=workers)
        )

    def _measured_use(self, path: Path) -> MeasuredUse | None:
        if not self._settings.kv_cache.adaptive:
            return None
        found = read_measured_use(self._home, path)
        if found is None:
            self._report.tell(progress="kv_cache.adaptive has no effect before ./launch.sh bench kv-cache has measured")
        return found

    def _app(self, service: GenerationService, dashboard: Dashboard) -> Starlette:
        return build_app(
            service,
            self._settings.api,
            model_ids=(self._settings.model.path,),
            scope_by_key=self._settings.cache.scope == "api-key",
            dashboard=dashboard,
        )

    async def _stop(self) -> None:
        """End what was started; workers of an earlier coordinator only when that was asked for: another may take them up."""
        self._served.set()
        if self._announcer is not None:
            self._announcer.end()
        for apart in self._apart or ():
            apart.close()
        if self._control is not None and (self._stopping.is_set() or not self._is_again):
            await self._control.stop()
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)
        if self._announcer is not None:
            await asyncio.to_thread(self._announcer.close)
        if self._stopping.is_set():
            self._home.clear_state(ProcessIdentity.of(os.getpid()))
        log.info("stopped")


def _worker_options(settings: Settings) -> tuple[str, ...]:
    return ("--orphan-s", f"{settings.recovery.orphan_s:g}", *machine_options(settings))


def _make_keys() -> tuple[str, str]:
    keys = KeyPair.generate()
    return keys.public, keys.secret


def _mailbox(desired: DesiredState, listen: tuple[str, ...]) -> ZmqMailbox:
    """Where earlier workers look for their coordinator, unless somebody else took that port meanwhile."""
    keys = KeyPair(desired.public_key, desired.secret_key)
    counter = itertools.count((desired.incarnation << 32) + 1)
    try:
        return ZmqMailbox(keys, desired.port or None, lambda: next(counter), listen)
    except AddressUnavailable as error:
        log.warning("%s", error)
        return ZmqMailbox(keys, None, lambda: next(counter), listen)


def _announcer(door: Peer, desired: DesiredState, listen: tuple[str, ...]) -> Announcer:
    """Of the door, at the addresses that other machines reach it at while they do."""

    def wanted() -> AnnouncedDoor | None:
        addresses = [host_of(each.endpoint) for each in advertised(listen, desired.port, own_networks())]
        if not addresses:
            return None
        return own_door(socket.gethostname(), desired.incarnation, door.public_key, desired.port, addresses)

    return Announcer(wanted, register_by_mdns)


def _launcher(
    home: Home, settings: Settings, report: StartReport, worker: Sequence[str], *, is_again: bool
) -> Launcher:
    """Of the workers here and, where the configuration names other hosts, of those there."""
    here = LocalLauncher(home, CHECKOUT, _worker_options(settings), worker)
    if not settings.hosts:
        return here
    terms = SshTerms(
        orphan_s=settings.recovery.orphan_s,
        about=read_host_specs(),
        tell=lambda text: report.tell(progress=text),
        is_new=not is_again,
        allow_mixed=settings.allow_mixed,
    )
    names = [name for host in settings.hosts for name in host.worker_names]
    return PlacedLauncher(here, SshLauncher(settings.hosts, terms), names)


async def _launch(control: ControlPlane, members: Sequence[Member], earlier: Mapping[str, ProcessIdentity]) -> None:
    """Start who is not among the earlier; those on other hosts take their time, and are taken up there."""
    for member in members:
        if member.is_hosted:
            control.launching.begin(member.name)
        elif member.name in earlier:
            control.launching.adopt(member.name, earlier[member.name])
        else:
            await control.launching.start(member.name)


def _members(settings: Settings) -> list[Member]:
    """The workers here, then those of other hosts, which say their limits when they join."""
    here = [
        Member(
            worker.name,
            memory_limit_bytes=worker.memory_limit or default_memory_limit(len(settings.workers)),
            manual_layers=None if worker.layers is None else LayerRange(*worker.layers),
        )
        for worker in settings.workers
    ]
    elsewhere = [
        Member(name, memory_limit_bytes=host.memory_limit or 0, place=Whereabouts(host=host.name))
        for host in settings.hosts
        for name in host.worker_names
    ]
    return [*here, *elsewhere]


def _load_prompts(model_path: Path, templates: Templates, grammars: GrammarsApart) -> Any:
    # Importing the tokenizer takes a second, which the workers' own start hides.
    with limits_kept(), last_lines_read():
        from cluster.serving.prompts import Prompts

    return Prompts.load(model_path, templates.render, grammars.compile)


def main(worker: Sequence[str] = WORKER) -> int:
    """Run the coordinator of one home. worker: what runs a worker."""
    parser = argparse.ArgumentParser(prog="coordinator", description="The coordinator of a Tandem cluster.")
    parser.add_argument("--home", required=True)
    parser.add_argument("--again", action="store_true", help="take the place of a coordinator that died")
    arguments = parser.parse_args()
    home = Home(Path(arguments.home))
    configure_logging(home, "coordinator", started_log_format(home))
    report = StartReport(must_be_heard=not arguments.again)
    try:
        settings = msgspec.json.decode(home.settings_file.read_bytes(), type=Settings)
        launcher = _launcher(home, settings, report, worker, is_again=arguments.again)
        asyncio.run(Coordinator(home, settings, report, launcher, is_again=arguments.again).run())
    except TandemError as error:
        log.error("%s", error)
        report.tell(error=str(error), exit_code=error.exit_code)
        return error.exit_code
    except Exception as error:
        log.exception("the coordinator failed")
        report.tell(error=_why_failed(error), exit_code=1)
        return 1
    return 0


def _why_failed(error: Exception) -> str:
    if isinstance(error, OSError) and error.errno in (errno.EMFILE, errno.ENFILE):
        return _TOO_FEW_FILES
    return f"the coordinator failed: {error}; see ./launch.sh logs"


def run(worker: Sequence[str] = WORKER) -> NoReturn:
    """`main`, and the end of the process, at once: MLX, which the tokenizer's library brings, may abort an orderly one."""
    status = main(worker)
    logging.shutdown()
    os._exit(status)


if __name__ == "__main__":
    run()
