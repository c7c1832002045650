"""What this machine gives each side of a benchmark: cores, BLAS, processor time. Nothing here measures speed."""

import asyncio
import contextlib
import os
import platform
import signal
import socket
import sys
from pathlib import Path

import psutil

from protocol.home import Home

CHECKOUT = Path(__file__).resolve().parents[2]
_BLAS_NAMES = ("openblas", "Accelerate", "mkl", "blis")


def home() -> Home:
    """TANDEM_HOME as the commands take it."""
    return Home.from_environment(CHECKOUT)


def model_folder() -> Path:
    """Where random models are kept."""
    return home().cache / "models"


def exit_on_sigterm() -> None:
    """Make SIGTERM end this process as Ctrl-C does, so that what it started is stopped."""

    def leave(_number: int, _frame: object) -> None:
        sys.exit(143)

    signal.signal(signal.SIGTERM, leave)


def describe() -> str:
    """Processor, cores and memory, in words."""
    memory_gb = psutil.virtual_memory().total / 1e9
    return f"{platform.system()} {platform.machine()}, {psutil.cpu_count()} cores, {memory_gb:.0f} GB"


def blas_of(pid: int) -> str:
    """The BLAS that a process has in memory, by the files it maps."""
    if platform.system() == "Darwin":
        return "Accelerate"
    try:
        maps = [item.path for item in psutil.Process(pid).memory_maps()]
    except (psutil.Error, AttributeError):
        return "unknown"
    for path in maps:
        name = next((name for name in _BLAS_NAMES if name.lower() in path.lower()), None)
        if name is not None:
            return f"{name} ({os.environ.get('OPENBLAS_NUM_THREADS', '1')} thread)" if name == "openblas" else name
    return "the reference BLAS in MLX's wheel"


def pin(pid: int, cores: list[int]) -> bool:
    """Keep a process, with all its threads, on the given cores; False where the system has no such call."""
    process = psutil.Process(pid)
    if not hasattr(process, "cpu_affinity"):
        return False
    for thread in process.threads():
        with contextlib.suppress(psutil.Error):  # a thread may have ended meanwhile
            psutil.Process(thread.id).cpu_affinity(cores)
    process.cpu_affinity(cores)
    return True


def pin_each(pids: list[int]) -> str:
    """Keep each process on a core of its own, in turn from core 0; says what was done."""
    cores = psutil.cpu_count() or 1
    pinned = [pin(pid, [index % cores]) for index, pid in enumerate(pids)]
    return f"one core each, of {cores}" if all(pinned) else "not pinned: this system has no such call"


def cpu_seconds(pid: int) -> float:
    """Processor time of a process so far, user and system."""
    times = psutil.Process(pid).cpu_times()
    return times.user + times.system


async def idle_shares(pids: list[int], seconds: float) -> list[float]:
    """Each process's use of a core while nothing is asked of it."""
    before = [cpu_seconds(pid) for pid in pids]
    await asyncio.sleep(seconds)
    return [(cpu_seconds(pid) - earlier) / seconds for pid, earlier in zip(pids, before, strict=True)]


def free_port() -> int:
    """A TCP port on loopback that was free just now."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
        return port
