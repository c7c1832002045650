"""The coordinator process: `python -m cluster.coordinator --home HOME [--again]`.

Reads HOME/settings.json, brings the workers and the API up, and serves until SIGTERM or SIGINT, which drain and stop
everything. While it starts, it tells its parent on standard output, a JSON object a line: `{"progress": text}`, then
`{"ready": status}` or `{"error": sentence, "exit_code": n}`; after that it closes standard output. A first start whose
parent is gone ends; one that takes the place of a coordinator that died (--again) goes on.
"""

import argparse
import asyncio
import gc
import logging
import os
import signal
import socket
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NoReturn

import msgspec

from cluster.api.app import build_app
from cluster.api.server import bind, serve
from cluster.config import Settings
from cluster.membership.local import WORKER, Launcher, LocalLauncher
from cluster.planning.control import ControlPlane
from cluster.planning.model_files import check_weights, resolve_model
from cluster.serving.cache_use import read_measured_use
from cluster.serving.requests import Service
from cluster.serving.service import GenerationService
from protocol.errors import TandemError
from protocol.home import Home, ProcessIdentity, end_processes
from protocol.logs import configure_logging

log = logging.getLogger(__name__)

DRAIN_S = 20.0
EARLIER_GRACE_S = 1.0
ORPHAN_S = 120.0
CHECKOUT = Path(__file__).resolve().parent.parent


class StartReport:
    """The lines that tell the parent how the start goes. must_be_heard: whether it needs a parent."""

    def __init__(self, *, must_be_heard: bool) -> None:
        self._open = True
        self._must_be_heard = must_be_heard

    def tell(self, **line: Any) -> None:
        """Write one line. Raises TandemError when nobody hears it who must."""
        if not self._open:
            return
        try:
            os.write(1, msgspec.json.encode(line) + b"\n")
        except OSError:
            self.close()
            if self._must_be_heard:
                raise TandemError("whoever asked for the start is gone; nothing is left running") from None

    def close(self) -> None:
        """Nothing more will be told."""
        if self._open:
            self._open = False
            with Path(os.devnull).open("wb") as nowhere:
                os.dup2(nowhere.fileno(), 1)


class Coordinator:
    """Owns the control plane, the service and the API server of one cluster."""

    def __init__(self, home: Home, settings: Settings, report: StartReport, launcher: Launcher):
        self._home = home
        self._launcher = launcher
        self._settings = settings
        self._report = report
        self._stopping = asyncio.Event()
        self._control: ControlPlane | None = None
        self._service: GenerationService | None = None
        self._listener: socket.socket | None = None

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
            self._report.tell(ready=service.status())
            self._report.close()
            gc.freeze()  # what is loaded stays: a full collection over it would hold every stream up for tens of ms
            await self._serve(service)
        except asyncio.CancelledError:
            self._report.tell(error="the start was interrupted; nothing is left running", exit_code=1)
        finally:
            await self._stop()

    def _asked_to_stop(self, starting: "asyncio.Task[GenerationService]") -> None:
        log.info("asked to stop")
        self._stopping.set()
        starting.cancel()

    async def _start(self) -> GenerationService:
        api = self._settings.api
        self._listener = bind(api.host, api.port)
        model_path = await asyncio.to_thread(resolve_model, self._settings.model.path)
        self._report.tell(progress="starting the workers")
        url = f"http://{'127.0.0.1' if api.host == '0.0.0.0' else api.host}:{self._listener.getsockname()[1]}"  # noqa: S104
        await asyncio.to_thread(self._end_earlier_workers)
        self._write_state(url)
        self._control = ControlPlane(self._settings, model_path, self._home, self._launcher)
        await self._control.spawn()
        prompts = asyncio.create_task(asyncio.to_thread(_load_prompts, model_path))
        await asyncio.to_thread(check_weights, model_path)
        loading = asyncio.create_task(self._control.load(lambda text: self._report.tell(progress=text)))
        try:
            await asyncio.gather(prompts, loading)
        finally:
            loading.cancel()
        measured_use = read_measured_use(self._home, model_path) if self._settings.kv_cache.adaptive else None
        if self._settings.kv_cache.adaptive and measured_use is None:
            self._report.tell(progress="kv_cache.adaptive has no effect before ./launch.sh bench kv-cache has measured")
        self._service = GenerationService(
            self._control, prompts.result(), self._settings, model_path.name, url, os.getpid(), measured_use
        )
        self._service.check_mode()
        return self._service

    def _end_earlier_workers(self) -> None:
        """Those of a coordinator that died do not know this one."""
        state = self._home.read_state()
        if state is not None:
            end_processes(state.workers.values(), EARLIER_GRACE_S)

    def _write_state(self, url: str) -> None:
        assert self._listener is not None
        port = self._listener.getsockname()[1]
        me = ProcessIdentity.of(os.getpid())
        self._home.update_state(
            lambda state: msgspec.structs.replace(state, coordinator=me, api=url, port=port, workers={})
        )

    async def _serve(self, service: Service) -> None:
        assert self._listener is not None
        model = service.models()[0]
        app = build_app(
            service,
            api_key=self._settings.api.api_key,
            model_ids=(self._settings.model.path, model.id),
            scope_by_key=self._settings.cache.scope == "api-key",
        )
        done = asyncio.Event()
        server = asyncio.create_task(serve(app, self._listener, stopping=done))
        stopping = asyncio.create_task(self._stopping.wait())
        await asyncio.wait({server, stopping}, return_when=asyncio.FIRST_COMPLETED)
        assert self._service is not None
        await self._service.drain(DRAIN_S)
        done.set()
        stopping.cancel()
        await server

    async def _stop(self) -> None:
        if self._control is not None:
            await self._control.stop()
        if self._listener is not None:
            self._listener.close()
        if self._stopping.is_set():
            self._home.clear_state(ProcessIdentity.of(os.getpid()))
        log.info("stopped")


def _load_prompts(model_path: Path) -> Any:
    # Importing the tokenizer takes a second, which the workers' own start hides.
    from cluster.serving.prompts import Prompts

    return Prompts.load(model_path)


def main(worker: Sequence[str] = WORKER) -> int:
    """Run the coordinator of one home. worker: what runs a worker."""
    parser = argparse.ArgumentParser(prog="coordinator", description="The coordinator of a Tandem cluster.")
    parser.add_argument("--home", required=True)
    parser.add_argument("--again", action="store_true", help="take the place of a coordinator that died")
    arguments = parser.parse_args()
    home = Home(Path(arguments.home))
    configure_logging(home, "coordinator")
    report = StartReport(must_be_heard=not arguments.again)
    try:
        settings = msgspec.json.decode(home.settings_file.read_bytes(), type=Settings)
        launcher = LocalLauncher(home, CHECKOUT, ORPHAN_S, worker)
        asyncio.run(Coordinator(home, settings, report, launcher).run())
    except TandemError as error:
        log.error("%s", error)
        report.tell(error=str(error), exit_code=error.exit_code)
        return error.exit_code
    except Exception as error:
        log.exception("the coordinator failed")
        report.tell(error=f"the coordinator failed: {error}; see ./launch.sh logs", exit_code=1)
        return 1
    return 0


def run(worker: Sequence[str] = WORKER) -> NoReturn:
    """`main`, and the end of the process, at once: MLX, which the tokenizer's library brings, may abort an orderly one."""
    status = main(worker)
    logging.shutdown()
    os._exit(status)


if __name__ == "__main__":
    run()
