"""One host of a bed: a disk that lasts and, while it has power, a first process with namespaces of its own (`boot.sh`).

Its checkout is a copy of what runs, bytecode included: a host writes into it, each has it at another path, and they may
differ. The .venv in it is the one of this process, mounted read-only: copies of it would take longer than most tests. A host
knows no cables; `room.py` plugs them in.
"""

import contextlib
import os
import shutil
import signal
import subprocess
import sys
from pathlib import Path

from tests.hosts.tools import ENDS_WITH_US, ENVIRONMENT, TOOL_LIMIT_S, tool
from tests.support.running_cluster import CHECKOUT, wait_until

_USERS = ("ada", "ben", "cleo", "dora", "emil", "fay")
_CHECKOUTS = ("tandem", "src/tandem", "Code/my tandem")
NAMES = "abcdef"[: len(_USERS)]
_FIRST_UID = 2001
# Of the checkout: what no command on a host asks for, and half of its files.
_LEFT_OUT = (".*", "*.pyc.*", "benchmarks", "docs", "tests")
_SSHD = """HostKey /etc/ssh/ssh_host_ed25519_key
PasswordAuthentication no
KbdInteractiveAuthentication no
UsePAM no
PrintMotd no
SetEnv MLX_DISABLE_COMPILE=1
"""
_SSH = """Host host-{name}
    User {user}
"""
_SSH_ALL = """Host *
    BatchMode yes
    ConnectTimeout 5
"""


class Host:
    """`name` is one letter; the host's own name is host-`name`. Paths are as the host sees them, but for `disk`."""

    def __init__(self, name: str, folder: Path):
        self.name = name
        self.number = NAMES.index(name) + 1
        self.user = _USERS[self.number - 1]
        self.uid = _FIRST_UID + self.number - 1
        self.home = Path("/Users") / self.user
        self.checkout = self.home / _CHECKOUTS[(self.number - 1) % len(_CHECKOUTS)]
        self.disk = folder / name
        self._log = folder / f"{name}.log"
        self._process: subprocess.Popen[str] | None = None
        self._pid: int | None = None

    def __repr__(self) -> str:
        return f"Host({self.name}, {'off' if self._pid is None else f'pid {self._pid}'})"

    @property
    def pid(self) -> int:
        """Its first process, by the number that it has here. Raises RuntimeError when it is off."""
        if self._pid is None:
            raise RuntimeError(f"host {self.name} has no power; power_on gives it some")
        return self._pid

    def write_disk(self, etc_hosts: str) -> None:
        """All files but the keys of other hosts."""
        etc, home, checkout = self.disk / "etc", self.outside(self.home), self.outside(self.checkout)
        (etc / "ssh").mkdir(parents=True)
        (home / ".ssh").mkdir(parents=True, mode=0o700)
        (self.disk / "root").mkdir()
        (etc / "hosts").write_text(etc_hosts)
        (etc / "resolv.conf").write_text("")
        (etc / "nsswitch.conf").write_text("passwd: files\ngroup: files\nhosts: files\n")
        (etc / "passwd").write_text(
            "root:*:0:0:root:/root:/bin/bash\n"
            "sshd:*:100:65534::/run/sshd:/usr/sbin/nologin\n"
            f"{self.user}:*:{self.uid}:{self.uid}::{self.home}:/bin/bash\n"
        )
        (etc / "group").write_text(f"root:*:0:\nnogroup:*:65534:\n{self.user}:*:{self.uid}:\n")
        (etc / "ssh/sshd_config").write_text(_SSHD)
        shutil.copy("/etc/ld.so.cache", etc)
        shutil.copytree("/etc/alternatives", etc / "alternatives", symlinks=True)
        for key in (etc / "ssh/ssh_host_ed25519_key", home / ".ssh/id_ed25519"):
            tool("ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-C", f"{self.user}@host-{self.name}", "-f", key)
        shutil.copytree(CHECKOUT, checkout, ignore=shutil.ignore_patterns(*_LEFT_OUT))

    def knows(self, others: dict["Host", list[str]]) -> None:
        """That each of `others` has these names and addresses; the first may log in to all with its key. The home is the user's."""
        ssh = self.outside(self.home) / ".ssh"
        for other, names in others.items():
            key = (other.disk / "etc/ssh/ssh_host_ed25519_key.pub").read_text()
            with (ssh / "known_hosts").open("a") as known:
                known.write(f"{','.join(names)} {key}")
            with (ssh / "config").open("a") as config:
                config.write(_SSH.format(name=other.name, user=other.user))
            if other.number == 1:
                shutil.copy(other.outside(other.home) / ".ssh/id_ed25519.pub", ssh / "authorized_keys")
        with (ssh / "config").open("a") as config:
            config.write(_SSH_ALL)
        tool("chown", "-R", f"{self.uid}:{self.uid}", self.outside(self.home))

    def outside(self, path: Path) -> Path:
        """Where this process finds a path of the host; mounts (/tmp, .venv) are not to be seen there."""
        return self.disk / path.relative_to("/")

    def boot(self) -> None:
        """Its first process is there, its network has no interface yet. Raises RuntimeError when it has power."""
        if self._pid is not None:
            raise RuntimeError(f"host {self.name} has power; power_cut takes it away")
        namespaces = ("--net", "--pid", "--mount", "--uts", "--ipc", "--fork", "--kill-child")
        script = (Path(__file__).with_name("boot.sh"), self.disk, f"host-{self.name}", sys.base_prefix)
        argv = [*ENDS_WITH_US, "unshare", *namespaces, "sh", *script, sys.prefix, self.checkout]
        with self._log.open("a") as log:
            self._process = subprocess.Popen(
                [str(each) for each in argv],
                stdin=subprocess.DEVNULL,
                stdout=subprocess.PIPE,
                stderr=log,
                text=True,
                env=ENVIRONMENT,
                start_new_session=True,  # an interrupt from the keyboard is for this process, which takes all down
            )
        with self._process.stdout:
            self._pid = int(self._process.stdout.readline() or 0) or None
        wait_until(self._listens, f"sshd of host {self.name}")

    def _listens(self) -> bool:
        assert self._process.poll() is None, f"host {self.name} did not start: {self._log.read_text()}"
        return any(line.split()[1].endswith(":0016") for line in self.proc("net/tcp").splitlines()[1:])

    def kill(self) -> None:
        """End every process at once; all have ended when this returns."""
        if self._process is not None:
            if self._pid is not None and self._process.poll() is None:
                with contextlib.suppress(ProcessLookupError):
                    os.kill(self._pid, signal.SIGKILL)
            self._process.wait(TOOL_LIMIT_S)
        self._pid = self._process = None

    def proc(self, file: str) -> str:
        """What the kernel says in a file of its first process."""
        return Path(f"/proc/{self.pid}/{file}").read_text()

    def command(self, argv: tuple[str, ...], env: dict[str, str] | None, user: str | None) -> list[str]:
        """What runs `argv` there, in the home of `user` (by default its own, else root)."""
        user = user or self.user
        uid, home = {self.user: (self.uid, self.home), "root": (0, Path("/root"))}[user]
        settings = ENVIRONMENT | {"HOME": home, "USER": user, "LOGNAME": user} | (env or {})
        there = ("nsenter", "-t", str(self.pid), "-n", "-p", "-u", "-m", "-i")
        identity = ("setpriv", f"--reuid={uid}", f"--regid={uid}", "--clear-groups")
        return [
            *there,
            *identity,
            "env",
            "-i",
            "-C",
            str(home),
            *(f"{key}={value}" for key, value in settings.items()),
            *argv,
        ]
