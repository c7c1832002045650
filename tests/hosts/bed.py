"""A bed for tests and benchmarks: hosts that share a machine and nothing else, joined by fast cables and a slow wifi.

Host a may log in to all others (`ssh host-b`), as each host's ~/.ssh/config says. Between each two there is a cable, tb-b on a
and tb-a on b, in a network of its own; all have wlan0, which their names lead to. Faults last until `heal`. Everything but files
ends with the thread that made the bed, however it ends, and the files go when a next bed is made: no process, namespace,
mount or interface is left behind. All of it is Linux's; `why_no_bed` says what a machine lacks.
"""

import contextlib
import os
import shutil
import subprocess
import tempfile
from pathlib import Path
from typing import Any, Self

import psutil

from tests.hosts.host import NAMES, Host
from tests.hosts.room import DROP, RESET, WIFI, Room
from tests.hosts.tools import ENVIRONMENT, TOOL_LIMIT_S

_PREFIX = "td"


class OnHost(subprocess.Popen):
    """A command on a host; `pid` is of what entered the host for it here, and signals go to the command itself."""

    def send_signal(self, sig: int) -> None:
        if self.poll() is None:
            with contextlib.suppress(psutil.NoSuchProcess):
                for process in psutil.Process(self.pid).children() or [psutil.Process(self.pid)]:
                    process.send_signal(sig)


class Bed(contextlib.AbstractContextManager):
    """`num_hosts` hosts a, b, c ..., with power while the context lasts."""

    def __init__(self, num_hosts: int = 3):
        _remove_what_others_left()
        self.folder = Path(tempfile.mkdtemp(prefix=f"{_PREFIX}{os.getpid()}-"))
        self.hosts = {name: Host(name, self.folder) for name in NAMES[:num_hosts]}
        self._room = Room(NAMES[:num_hosts])
        self._started: list[OnHost] = []

    def __repr__(self) -> str:
        return f"Bed({', '.join(map(repr, self.hosts.values()))})"

    def __enter__(self) -> Self:
        with contextlib.ExitStack() as undo:
            undo.callback(self.down)
            self._room.open()
            names = [f"{self.address(name, WIFI)} host-{name}\n" for name in self.hosts]
            for host in self.hosts.values():
                host.write_disk("127.0.0.1 localhost\n::1 localhost\n" + "".join(names))
            for host in self.hosts.values():
                host.knows({other: self._names_of(other) for other in self.hosts.values() if other is not host})
            for name in self.hosts:
                self.power_on(name)
            undo.pop_all()
        return self

    def __exit__(self, *_: object) -> None:
        self.down()

    def down(self) -> None:
        """End everything and remove every file, whatever fails meanwhile; a second time is no harm."""
        with contextlib.ExitStack() as from_last_to_first:
            from_last_to_first.callback(shutil.rmtree, self.folder, ignore_errors=True)
            for started in self._started:
                from_last_to_first.callback(started.wait, TOOL_LIMIT_S)
            from_last_to_first.callback(self._room.close)
            for host in self.hosts.values():
                from_last_to_first.callback(host.kill)

    # --- on a host

    def run(
        self,
        host: str,
        *argv: str,
        timeout_s: float = 30.0,
        env: dict[str, str] | None = None,
        user: str | None = None,
    ) -> subprocess.CompletedProcess[str]:
        """Run to its end as the host's user, or root, in that user's home. Raises subprocess.TimeoutExpired after ending it."""
        pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE}
        with self.popen(host, *argv, env=env, user=user, text=True, **pipes) as started:
            try:
                out, err = started.communicate(timeout=timeout_s)
            except subprocess.TimeoutExpired:
                started.kill()
                raise
        return subprocess.CompletedProcess(argv, started.returncode, out, err)

    def popen(
        self, host: str, *argv: str, env: dict[str, str] | None = None, user: str | None = None, **options: Any
    ) -> OnHost:
        """Start as the host's user, or root, in that user's home; it ends with the host. `options` are Popen's, whose
        streams lead nowhere by default.
        """
        streams = dict.fromkeys(("stdin", "stdout", "stderr"), subprocess.DEVNULL)
        command = self.hosts[host].command(argv, env, user)
        started = OnHost(command, **(streams | {"env": ENVIRONMENT} | options))
        self._started = [each for each in self._started if each.poll() is None] + [started]
        return started

    def address(self, host: str, interface: str) -> str:
        """The IPv4 address of wlan0, or of tb-b: the cable to host b."""
        return self._room.address(host, interface)

    def counters(self, host: str) -> dict[str, tuple[int, int]]:
        """Bytes received and sent since the host has power, by interface."""
        lines = [line.partition(":") for line in self.hosts[host].proc("net/dev").splitlines()[2:]]
        return {name.strip(): (int(rest.split()[0]), int(rest.split()[8])) for name, _, rest in lines}

    # --- faults

    def cut(self, one: str, other: str) -> None:
        """What either sends over their cable is lost, silently: both still see a carrier."""
        self._room.spoil(one, other, {one: DROP, other: DROP})

    def one_way(self, sender: str, receiver: str) -> None:
        """What `sender` sends over their cable is lost, silently; the other direction works."""
        self._room.spoil(sender, receiver, {sender: DROP})

    def reset(self, one: str, other: str) -> None:
        """Who sends anything over their cable by TCP is told that the connection is reset."""
        self._room.spoil(one, other, {one: RESET, other: RESET})

    def unplug(self, one: str, other: str) -> None:
        """Their cable is out: no carrier on both sides."""
        self._room.spoil(one, other, plugged=False)

    def slow(self, one: str, other: str, share: float) -> None:
        """Their cable has so much of CABLE_BITS_PER_S, in each direction."""
        self._room.spoil(one, other, share=share)

    def heal(self) -> None:
        """Every cable is in and whole again. Hosts without power stay so."""
        self._room.heal()

    def power_cut(self, host: str) -> None:
        """Its links are gone, then all its processes at once: nobody hears of it. The disk stays."""
        self._room.pull_out(self.hosts[host])
        self.hosts[host].kill()

    def power_on(self, host: str) -> None:
        """It boots, with a new network stack and the faults of its cables; sshd answers when this returns."""
        self.hosts[host].boot()
        self._room.plug_in(self.hosts[host])

    def _names_of(self, host: Host) -> list[str]:
        cables = [cable for ends, cable in self._room.cables.items() if host.name in ends]
        return [f"host-{host.name}", self.address(host.name, WIFI), *(cable.address(host.name) for cable in cables)]


def _remove_what_others_left() -> None:
    """The folders of beds whose process is gone, and with it everything else of theirs."""
    for folder in Path(tempfile.gettempdir()).glob(f"{_PREFIX}[0-9]*-*"):
        pid = folder.name.removeprefix(_PREFIX).partition("-")[0]
        if pid.isdigit() and not psutil.pid_exists(int(pid)):
            shutil.rmtree(folder, ignore_errors=True)
