"""What befalls a worker process in the measurements of docs/RELIABILITY.md, from outside and at a chosen moment.

Four kinds: *killed* (SIGKILL), *stopped* (SIGSTOP: a machine that hangs; its connections stay), *closed* (every TCP
connection shut down under it, while it goes on running) and *blocked* (its compute thread alone is held still, so that it
beats and computes nothing). The last two reach into the process and need Linux and the rights of a debugger. Knows nothing
of clusters.
"""

import contextlib
import ctypes
import errno
import os
import signal
import socket
import stat
import subprocess
import sys
import threading
import time
from collections.abc import Iterator, Mapping
from typing import Any

import msgspec
import psutil

from protocol.errors import UsageError
from protocol.home import ProcessIdentity

KINDS = ("killed", "stopped", "closed", "blocked")
_REACHING_IN = ("closed", "blocked")

# Numbers of Linux's interface: man 2 pidfd_getfd, ptrace, waitpid.
_PIDFD_GETFD = 438
_PTRACE_SEIZE, _PTRACE_INTERRUPT = 0x4206, 0x4207
_WALL = 0x40000000


# The cluster writes down when it noticed by a clock that is read a moment apart from ours.
_CLOCKS_S = 0.05


class Struck(msgspec.Struct, frozen=True, kw_only=True):
    """When it happened, on the clock that clients' times have (time.perf_counter) and in Unix seconds."""

    at: float
    unix: float

    def perf_counter_of(self, unix: float) -> float:
        """A moment in Unix seconds on the clients' clock."""
        return self.at + unix - self.unix

    def events_since(self, status: Mapping[str, Any]) -> list[Any]:
        """Of a cluster's status, those that are not older."""
        return [event for event in status.get("events", ()) if event["at"] >= self.unix - _CLOCKS_S]


def possible_kinds() -> tuple[str, ...]:
    """What can be done to a process on this system."""
    return KINDS if sys.platform == "linux" else tuple(kind for kind in KINDS if kind not in _REACHING_IN)


def check_kinds(kinds: tuple[str, ...]) -> None:
    """Raises UsageError for a kind that is none, or is not possible here."""
    if unknown := set(kinds) - set(possible_kinds()):
        raise UsageError(f"{', '.join(sorted(unknown))} is not possible; choose of {', '.join(possible_kinds())}")


class Fault:
    """One kind of fault, made ready for one process so that `strike` takes no time."""

    def __init__(self, kind: str, pid: int):
        self._kind = kind
        self._process = ProcessIdentity.of(pid)
        self._holder = _Holder(pid) if kind == "blocked" else None

    def __repr__(self) -> str:
        return f"Fault({self._kind}, pid {self._process.pid})"

    def strike(self) -> Struck:
        """Do it now. Raises OSError where this process may not."""
        struck = Struck(at=time.perf_counter(), unix=time.time())
        if self._kind == "killed":
            self._process.kill()
        elif self._kind == "stopped":
            os.kill(self._process.pid, signal.SIGSTOP)
        elif self._kind == "closed":
            shut_connections(self._process.pid)
        elif self._holder is not None:
            self._holder.hold()
        return struck

    def clear(self) -> None:
        """End a process that this fault left unable to end by itself, and whatever holds it."""
        if self._kind != "closed":
            self._process.kill()
        if self._holder is not None:
            self._holder.end()


@contextlib.contextmanager
def prepared(kind: str, pid: int) -> Iterator[Fault]:
    """A fault that leaves nothing behind when the block ends."""
    fault = Fault(kind, pid)
    try:
        yield fault
    finally:
        fault.clear()


def shut_connections(pid: int) -> int:
    """Shut every TCP connection of another process down under it; how many. Linux only. Raises OSError."""
    libc = ctypes.CDLL(None, use_errno=True)
    established = [item.fd for item in psutil.Process(pid).net_connections("tcp") if item.status == "ESTABLISHED"]
    handle = os.pidfd_open(pid)
    try:
        for number in established:
            copy = libc.syscall(_PIDFD_GETFD, handle, number, 0)
            if copy < 0 and ctypes.get_errno() == errno.EBADF:
                continue  # it was closed since
            if copy < 0:
                raise OSError(ctypes.get_errno(), f"the sockets of process {pid} cannot be had")
            _shut(copy)
    finally:
        os.close(handle)
    return len(established)


def _shut(descriptor: int) -> None:
    """Shut a connection down, and close our copy of it. Its number may stand for something else since it was looked up."""
    if not stat.S_ISSOCK(os.fstat(descriptor).st_mode):
        os.close(descriptor)
        return
    with socket.socket(fileno=descriptor) as connection, contextlib.suppress(OSError):  # it may have ended meanwhile
        connection.shutdown(socket.SHUT_RDWR)


class _Holder:
    """A process that holds the first thread of another one still, as a debugger does, until that is gone or `end`."""

    def __init__(self, pid: int):
        self._process = subprocess.Popen(
            [sys.executable, "-m", "benchmarks.support.faults", str(pid)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )
        self._expect("ready")

    def hold(self) -> None:
        assert self._process.stdin is not None
        self._process.stdin.write("hold\n")
        self._process.stdin.flush()
        self._expect("held")

    def _expect(self, word: str) -> None:
        assert self._process.stdout is not None
        if (said := self._process.stdout.readline().strip()) != word:
            raise PermissionError(f"a compute thread cannot be held still: {said or 'see above'}")

    def end(self) -> None:
        self._process.kill()
        self._process.communicate()


def hold_first_thread(pid: int) -> None:
    """Stop the first thread of a process, which is a worker's compute thread. It runs on when this process ends."""
    libc = ctypes.CDLL(None, use_errno=True)
    libc.ptrace.argtypes = (ctypes.c_long, ctypes.c_long, ctypes.c_void_p, ctypes.c_void_p)
    for request in (_PTRACE_SEIZE, _PTRACE_INTERRUPT):
        if libc.ptrace(request, pid, None, None) < 0:
            raise OSError(ctypes.get_errno(), os.strerror(ctypes.get_errno()))
    os.waitpid(pid, _WALL)


def _reap(pid: int) -> None:
    """A debugger hears of a process's end before its parent does, who hears of it only when the debugger has taken note."""
    with contextlib.suppress(ChildProcessError):
        while not (os.WIFEXITED(status := os.waitpid(pid, _WALL)[1]) or os.WIFSIGNALED(status)):
            pass
    os._exit(0)


def _be_holder(pid: int) -> None:
    print("ready", flush=True)
    if not sys.stdin.readline():
        return
    try:
        hold_first_thread(pid)
    except OSError as error:
        print(error, flush=True)
        return
    print("held", flush=True)
    threading.Thread(target=_reap, args=(pid,), daemon=True).start()
    sys.stdin.read()


if __name__ == "__main__":
    _be_holder(int(sys.argv[1]))
