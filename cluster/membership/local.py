"""The worker processes of this machine: started with the right environment, watched, ended.

A worker's standard input is a pipe that only the coordinator holds: its first line is the join token, its end tells the
worker that the coordinator is gone. So no worker outlives the coordinator, however that ended.
"""

import asyncio
import glob
import os
import sys
from collections.abc import Callable
from pathlib import Path

import psutil

from protocol.home import Home
from protocol.values import Peer

# Of a machine's memory, what all its workers together may use for weights and caches.
MEMORY_SHARE = 0.75
_END_GRACE_S = 5.0
_OPENBLAS = (
    "/usr/lib/*-linux-gnu/openblas-pthread/libblas.so.3",
    "/usr/lib64/libopenblasp.so.0",
    "/usr/lib/libopenblas.so.0",
)


def default_memory_limit(num_workers: int) -> int:
    """Bytes for one of `num_workers` workers on this machine."""
    return int(psutil.virtual_memory().total * MEMORY_SHARE / num_workers)


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


class WorkerProcess:
    """One local worker."""

    def __init__(self, name: str, process: asyncio.subprocess.Process):
        self.name = name
        self._process = process
        self._watch: asyncio.Task[None] | None = None

    def __repr__(self) -> str:
        return f"WorkerProcess({self.name}, pid {self.pid})"

    @property
    def pid(self) -> int:
        return self._process.pid

    @classmethod
    async def start(
        cls, name: str, *, home: Home, checkout: Path, coordinator: Peer, token: str, memory_limit_bytes: int
    ) -> "WorkerProcess":
        """Start a worker that will join `coordinator`. Raises OSError."""
        arguments = ["--name", name, "--join", coordinator.endpoint, "--memory-limit", str(memory_limit_bytes)]
        with (home.logs / f"{name}.out").open("wb") as output:
            process = await asyncio.create_subprocess_exec(
                sys.executable,
                *("-m", "workers", "--token", "-", "--home", str(home.root), *arguments),
                stdin=asyncio.subprocess.PIPE,
                stdout=output,
                stderr=output,
                cwd=checkout,
                env=worker_environment(),
                start_new_session=True,  # Ctrl-C at a terminal is the coordinator's to handle
            )
        assert process.stdin is not None
        process.stdin.write(token.encode() + b"\n")
        return cls(name, process)

    def watch(self, ended: Callable[[int], None]) -> None:
        """Call `ended` with the exit status when the process ends."""

        async def wait() -> None:
            ended(await self._process.wait())

        self._watch = asyncio.create_task(wait())

    async def end(self) -> None:
        """Wait a little for the process to end by itself, then kill it."""
        if self._watch is not None:
            self._watch.cancel()
        try:
            await asyncio.wait_for(self._process.wait(), _END_GRACE_S)
        except TimeoutError:
            self.kill()
            await self._process.wait()

    def kill(self) -> None:
        """End the process at once."""
        if self._process.returncode is None:
            self._process.kill()
