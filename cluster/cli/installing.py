"""Makes a worker a service of this machine and ends that: joins once, writes the file, has the machine's manager begin it.

Where files and commands are root's and this is not root, nothing is asked for: the file is prepared in the home and the commands
are said.
"""

import os
import pwd
import shlex
import shutil
import subprocess
import sys
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import NamedTuple

from cluster.cli.finding import found_guests
from cluster.cli.joining import AUTO, GuestProcess, bytes_of, endpoint_in, guest_process, start_behind
from cluster.cli.services import KEPT_VARIABLES, Command, Launchd, ServiceManager, Systemd, WorkerService
from cluster.cli.session import Session
from protocol.errors import TandemError, UsageError
from protocol.home import Home, end_processes
from protocol.joined import read_joined, way_back

_COMMAND_LIMIT_S = 60.0
_GUEST_GRACE_S = 5.0
_BY_HAND = "that needs rights that this user does not have; run the commands above, which do it"


class Account(NamedTuple):
    """Whose a process is."""

    uid: int
    name: str
    home: Path


# Runs a command; returns why it failed, None where it did not.
Run = Callable[[Command], str | None]
# Joins once and leaves again.
JoinOnce = Callable[[Session, GuestProcess], None]


class Installer:
    """See the module. say: takes a line for the user."""

    def __init__(
        self,
        session: Session,
        manager: ServiceManager,
        account: Account,
        *,
        say: Callable[[str], None],
        run: Run,
        join_once: JoinOnce,
    ):
        self._session = session
        self.manager = manager
        self._account = account
        self._say = say
        self._run = run
        self._join_once = join_once

    def __repr__(self) -> str:
        return f"Installer({self.manager})"

    @classmethod
    def here(cls, session: Session, say: Callable[[str], None]) -> "Installer":
        """For this machine and user. Raises TandemError where it keeps no services that are known here."""
        who = pwd.getpwuid(os.getuid())
        root = session.home.root
        if root.exists() and root.stat().st_uid != who.pw_uid:
            raise UsageError(f"{root} is another user's; run this as that user, without sudo: it says what needs sudo")
        account = Account(uid=who.pw_uid, name=who.pw_name, home=Path(who.pw_dir))
        manager = manager_of(sys.platform, account, session.environment, has_systemd=bool(shutil.which("systemctl")))
        return cls(session, manager, account, say=say, run=_run, join_once=join_and_leave)

    def install(
        self,
        *,
        address: str | None,
        token: str | None,
        name: str | None,
        memory_limit: str | None,
        find: Callable[[str], str],
    ) -> None:
        """Join by the token, where there is one, and be a service from then on. address: by default where it joined last.

        Raises:
            UsageError: what is given is wrong, or nothing says which cluster.
            TandemError: it was not let in, or the service cannot be installed here; the message says what to do.
        """
        guest: GuestProcess | None = None
        if token is None:
            bytes_of(memory_limit)
            endpoint = None if address in (None, AUTO) else endpoint_in(address)
            known = way_back(read_joined(self._session.home), endpoint, name)
            name, join = known.worker, address or known.endpoint
        elif address is None:
            raise UsageError("a --token needs --join ADDRESS, or --join auto to look for the cluster")
        else:
            guest = guest_process(
                self._session,
                address=address,
                token=token,
                name=name,
                memory_limit=memory_limit,
                environment=self._session.environment,
                find=find,
            )
            name, join = guest.name, address
        end_processes(found_guests(self._session.home, name), _GUEST_GRACE_S)
        if guest is not None:
            self._join_once(self._session, guest)
        self._put(self._service(name, join.removeprefix("tcp://"), memory_limit))
        self._say(f"Worker {name} is a service of this machine; `./launch.sh worker --uninstall-service` ends that.")

    def _service(self, name: str, join: str, memory_limit: str | None) -> WorkerService:
        environment = self._session.environment
        return WorkerService(
            name=name,
            user=self._account.name,
            user_home=self._account.home,
            launcher=self._session.checkout / "launch.sh",
            home=self._session.home.root,
            join=join,
            memory_limit=memory_limit,
            environment={key: environment[key] for key in KEPT_VARIABLES if key in environment},
        )

    def _put(self, service: WorkerService) -> None:
        """The file and what begins it, or how to do that by hand."""
        file, text = self.manager.file(service.name), self.manager.text(service)
        replaces = file.exists()
        begin = self.manager.begin(service.name, replaces=replaces)
        if self.manager.needs_root and self._account.uid != 0:
            prepared = prepared_file(self._session.home, file)
            _write(prepared, text)
            self._say(f"# The service is described in {prepared}; these commands install it:")
            self._by_hand([("install", "-o", "root", "-g", "wheel", "-m", "644", str(prepared), str(file)), *begin])
        _write(file, text)
        self._do(begin)
        if any(self._run(command) for command in self.manager.at_boot()):
            user = self._account.name
            self._say(f"# It begins when {user} logs in; to begin with the machine: sudo loginctl enable-linger {user}")

    def uninstall(self, name: str | None) -> None:
        """End the services of this home, or the one of that worker. Raises TandemError."""
        files = [file for file in installed(self.manager, self._session.home) if name in (None, self.worker_in(file))]
        if not files:
            self._say("No service is installed.")
            return
        if self.manager.needs_root and self._account.uid != 0:
            self._say("# These commands end the service:")
            ends = [(*self.manager.end(self.worker_in(file)), ("rm", str(file))) for file in files]
            self._by_hand([command for commands in ends for command in commands])
        for file in files:
            self._do(self.manager.end(self.worker_in(file)))
            file.unlink()
            self._do(self.manager.forget())
            self._say(f"Worker {self.worker_in(file)} is no service any more.")

    def worker_in(self, file: Path) -> str:
        """Whose service a file of `installed` describes."""
        name = self.manager.worker_of(file)
        assert name is not None, file
        return name

    def _by_hand(self, commands: list[Command]) -> None:
        for command in commands:
            self._say(f"sudo {shlex.join(command)}")
        raise TandemError(_BY_HAND)

    def _do(self, commands: list[Command]) -> None:
        for command in commands:
            why = self._run(command)
            if why is not None:
                raise TandemError(f"`{shlex.join(command)}` failed ({why}); mend that and try again")


def manager_of(platform: str, account: Account, environment: Mapping[str, str], *, has_systemd: bool) -> ServiceManager:
    """What keeps services on such a machine. Raises TandemError where nothing does, or nobody's would run as this user."""
    if platform == "darwin":
        return Launchd()
    if not has_systemd:
        raise TandemError("this machine has no systemd; let what starts its services run `./launch.sh worker --join …`")
    folder = Path(environment.get("XDG_CONFIG_HOME") or account.home / ".config")
    return Systemd(folder / "systemd" / "user")


def installed(manager: ServiceManager, home: Home) -> list[Path]:
    """The files of services that run in this home."""
    folder = manager.file("x").parent
    files = sorted(folder.iterdir()) if folder.is_dir() else []
    return [
        file for file in files if manager.worker_of(file) is not None and manager.is_of(file.read_bytes(), home.root)
    ]


def kept_running(session: Session) -> list[str]:
    """The names of the workers of this home that are services."""
    try:
        installer = Installer.here(session, print)
    except TandemError:
        return []
    return [installer.worker_in(file) for file in installed(installer.manager, session.home)]


def prepared_file(home: Home, file: Path) -> Path:
    """Where in the home a file is kept for whoever may put it in its place."""
    return home.root / "services" / file.name


def join_and_leave(session: Session, guest: GuestProcess) -> None:
    """Be let in, so that no token is needed from then on. Raises TandemError."""
    start_behind(session, guest)
    end_processes(found_guests(session.home, guest.name), _GUEST_GRACE_S)


def _write(file: Path, text: bytes) -> None:
    """Others may read it, since there is no secret in it. Raises TandemError."""
    try:
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_bytes(text)
        file.chmod(0o644)
    except OSError as error:
        raise TandemError(f"{file} cannot be written ({error.strerror}); make that possible and try again") from None


def _run(command: Command) -> str | None:
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=_COMMAND_LIMIT_S, check=False)
    except (OSError, subprocess.TimeoutExpired) as error:
        return str(error)
    return None if done.returncode == 0 else (done.stderr or done.stdout).strip() or f"status {done.returncode}"
