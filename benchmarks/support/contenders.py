"""Servers that benchmarks start and stop: a Tandem cluster of their own, and mlx_lm.server on one or two ranks.

All listen on loopback only, on free ports, with the same BLAS preloaded as Tandem's workers have, and are gone when the
block that started them ends, however it ends.
"""

import asyncio
import contextlib
import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import AsyncIterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import msgspec
import psutil

from benchmarks.support.client import Target, get_json
from benchmarks.support.machine import CHECKOUT, blas_of, free_port, pin_each
from benchmarks.support.resources import Place
from cluster.membership.local import worker_environment
from protocol.values import RankTransport

Settings = Mapping[str, Mapping[str, Any]]
NO_SETTINGS: Settings = {}
START_LIMIT_S = 180.0
_END_GRACE_S = 5.0
_POLL_S = 0.1


class WorkerLimits(msgspec.Struct, frozen=True, kw_only=True):
    """One worker of a cluster. layers: a manual half-open range; is_rank: computes together with all others that are ranks, too, by the
    transport of the first of them.
    """

    memory_limit_bytes: int | None = None
    layers: tuple[int, int] | None = None
    is_rank: bool = False
    transport: RankTransport = "tcp"


class Cluster(msgspec.Struct, frozen=True, kw_only=True):
    """A running Tandem cluster. home: its TANDEM_HOME; model: what it calls its model; pids: its workers as it started; hosts:
    where its processes are, that of its coordinator first; none where all are on this machine.
    """

    url: str
    home: Path
    model: str
    pids: tuple[int, ...]
    front_pid: int
    hosts: tuple[Place, ...] = ()

    @property
    def places(self) -> tuple[Place, ...]:
        return self.hosts or (Place.here(self.home),)


class Contender(msgspec.Struct, frozen=True, kw_only=True):
    """A running server. pids: the processes that compute; front_pid: the one that answers HTTP, where it is another."""

    target: Target
    pids: tuple[int, ...]
    front_pid: int | None
    blas: str
    pinned: str


@contextlib.asynccontextmanager
async def cluster(
    model: Path,
    workers: Sequence[WorkerLimits],
    *,
    home: Path | None = None,
    prefix: bool = True,
    kept_bytes: int | None = None,
    further: Settings = NO_SETTINGS,
    checkout: Path = CHECKOUT,
) -> AsyncIterator[Cluster]:
    """A cluster in `home`, or in one of its own. Raises RuntimeError with what `start` said when it does not start.

    prefix: whether it keeps what it read for later requests; kept_bytes: how much of it each worker keeps at most, in
    memory and again on disk; further: by section, what else is configured; checkout: whose code it runs.
    """
    with tempfile.TemporaryDirectory(prefix="tandem-bench-") as folder:
        home = Path(folder) if home is None else home
        config = home / "bench.toml"
        port = free_port()
        config.write_text(configuration(model, port, workers, prefix=prefix, kept_bytes=kept_bytes, further=further))
        try:
            await _command(home / "home", "start", "--config", str(config), checkout=checkout)
            url = f"http://127.0.0.1:{port}"
            status = await get_json(url, "/status")
            yield Cluster(
                url=url,
                home=home / "home",
                model=status["model"]["id"],
                pids=tuple(worker["pid"] for worker in status["workers"]),
                front_pid=status["coordinator"]["pid"],
            )
        finally:
            await _command(home / "home", "stop", checkout=checkout)


async def stop(running: Cluster) -> float:
    """Stop a cluster before its block ends; seconds that it took."""
    started = time.perf_counter()
    await _command(running.home, "stop")
    return time.perf_counter() - started


@contextlib.asynccontextmanager
async def tandem(
    name: str,
    model: Path,
    workers: Sequence[WorkerLimits],
    strategy: str | None = None,
    *,
    home: Path | None = None,
    prefix: bool = True,
    further: Settings = NO_SETTINGS,
) -> AsyncIterator[Contender]:
    """A `cluster` as a side of a comparison: each worker on a core of its own."""
    async with cluster(model, workers, home=home, prefix=prefix, further=further) as running:
        pids = running.pids
        target = Target(name=name, url=running.url, model=running.model, strategy=strategy)
        yield Contender(
            target=target,
            pids=pids,
            front_pid=running.front_pid,
            blas=blas_of(pids[0]),
            pinned=pin_each(list(pids)),
        )


def configuration(
    model: Path,
    port: int,
    workers: Sequence[WorkerLimits],
    *,
    prefix: bool = True,
    kept_bytes: int | None = None,
    further: Settings = NO_SETTINGS,
) -> str:
    """The cluster's TOML."""
    lines = ["[model]", f"path = {json.dumps(str(model))}", "[api]", f"port = {port}"]
    lines += ["[cache]", f"prefix = {str(prefix).lower()}"]
    lines += [f"memory_limit = {kept_bytes}", f"disk_limit = {kept_bytes}"] if kept_bytes is not None else []
    for section, values in further.items():
        lines += [f"[{section}]", *(f"{name} = {json.dumps(value)}" for name, value in values.items())]
    for worker in workers:
        lines.append("[[workers]]")
        if worker.memory_limit_bytes is not None:
            lines.append(f"memory_limit = {worker.memory_limit_bytes}")
        if worker.layers is not None:
            lines.append(f"layers = [{worker.layers[0]}, {worker.layers[1]}]")
    ranks = [f"worker-{index}" for index, worker in enumerate(workers) if worker.is_rank]
    transport = next((worker.transport for worker in workers if worker.is_rank), None)
    lines += ["[[groups]]", f"workers = {json.dumps(ranks)}", f'transport = "{transport}"'] if ranks else []
    return "\n".join([*lines, ""])


async def _command(home: Path, *arguments: str, checkout: Path = CHECKOUT) -> None:
    environment = {**os.environ, "TANDEM_HOME": str(home), "TANDEM_LISTEN": "127.0.0.1", "PYTHONPATH": str(checkout)}
    environment.pop("USE_DISTRIBUTED_INFERENCE", None)
    process = await asyncio.create_subprocess_exec(
        *(sys.executable, "-m", "cluster.cli", *arguments),
        cwd=checkout,
        env=environment,
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
    )
    output, _ = await process.communicate()
    if process.returncode:
        raise RuntimeError(f"launch.sh {arguments[0]} failed: {output.decode(errors='replace').strip()}")


@contextlib.asynccontextmanager
async def mlx_server(name: str, model: Path, *, ranks: int = 1, pipeline: bool = False) -> AsyncIterator[Contender]:
    """mlx_lm.server in one process, or on `ranks` processes over the ring, by tensor or pipeline parallelism.

    The ranks are started by hand, since mlx.launch itself keeps a core busy. Raises RuntimeError when it does not start.
    """
    with tempfile.TemporaryDirectory(prefix="tandem-bench-") as folder:
        port = free_port()
        command = [sys.executable, "-m", "mlx_lm", "server", "--model", str(model)]
        command += ["--host", "127.0.0.1", "--port", str(port), "--log-level", "WARNING"]
        command += ["--pipeline"] if pipeline else []
        processes = start_ranks(command, ranks, Path(folder))
        try:
            url = f"http://127.0.0.1:{port}"
            await _until_healthy(url, processes, Path(folder) / "rank0.log")
            pids = tuple(process.pid for process in processes)
            target = Target(name=name, url=url, model="default_model")
            yield Contender(
                target=target, pids=pids, front_pid=None, blas=blas_of(pids[0]), pinned=pin_each(list(pids))
            )
        finally:
            end_ranks(processes)


def start_ranks(command: list[str], ranks: int, folder: Path) -> list[subprocess.Popen[bytes]]:
    """A command on so many ranks of mlx's ring; one rank is none. What each says goes to its rank0.log and so on in the folder."""
    environment = {**worker_environment(), "HF_HUB_OFFLINE": "1"}
    if ranks > 1:
        hosts = folder / "hosts.json"
        hosts.write_text(json.dumps([[f"127.0.0.1:{free_port()}"] for _ in range(ranks)]))
        environment["MLX_HOSTFILE"] = str(hosts)
    processes = []
    for rank in range(ranks):
        own = {**environment, "MLX_RANK": str(rank)} if ranks > 1 else environment
        with (folder / f"rank{rank}.log").open("wb") as log:
            processes.append(
                subprocess.Popen(
                    command, env=own, stdin=subprocess.DEVNULL, stdout=log, stderr=log, start_new_session=True
                )
            )
    return processes


async def _until_healthy(url: str, processes: Sequence[subprocess.Popen[bytes]], log: Path) -> None:
    deadline = time.monotonic() + START_LIMIT_S
    while time.monotonic() < deadline and all(process.poll() is None for process in processes):
        with contextlib.suppress(OSError, ValueError, IndexError, TimeoutError):
            await get_json(url, "/health")
            return
        await asyncio.sleep(_POLL_S)
    raise RuntimeError(f"mlx_lm.server did not start: {end_of(log)}")


def end_of(log: Path) -> str:
    """What a process said at last."""
    return log.read_text(errors="replace").strip()[-500:]


def end_ranks(processes: Sequence[subprocess.Popen[bytes]]) -> None:
    """Of `start_ranks`, also those that ended."""
    for process in processes:
        process.terminate()
    _, alive = psutil.wait_procs([psutil.Process(p.pid) for p in processes if p.poll() is None], timeout=_END_GRACE_S)
    for left in alive:
        left.kill()
    for process in processes:
        process.wait()
