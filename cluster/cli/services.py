"""A worker as a service of the machine, which begins with it and again when it ended: texts, places and commands, all pure.

No text has a token in it: a worker that joined once comes back by its key. On macOS it is a daemon of the machine that runs as the
user, since agents ask for a permission before they reach the local network, and end when the user logs out; its file is
root's. On Linux it is a unit of the user's systemd.
"""

import plistlib
from collections.abc import Mapping
from pathlib import Path
from typing import NamedTuple, Protocol
from xml.parsers.expat import ExpatError

RESTART_S = 30
# What of the environment decides where models are.
KEPT_VARIABLES = ("HF_HOME", "HF_HUB_CACHE")
_PREFIX = "tandem-worker-"

Command = tuple[str, ...]


class WorkerService(NamedTuple):
    """A worker to keep running. join: what --join takes; environment: variables beside TANDEM_HOME, which is `home`."""

    name: str
    user: str
    user_home: Path
    launcher: Path
    home: Path
    join: str
    memory_limit: str | None
    environment: Mapping[str, str]

    @property
    def arguments(self) -> list[str]:
        """In the foreground, as a person would run it."""
        limit = [] if self.memory_limit is None else ["--memory-limit", self.memory_limit]
        return [str(self.launcher), "worker", "--join", self.join, "--name", self.name, *limit]

    @property
    def variables(self) -> dict[str, str]:
        """All that it needs to know."""
        return {"TANDEM_HOME": str(self.home), **self.environment}


class ServiceManager(Protocol):
    """What keeps services on a machine: `Systemd`, `Launchd`.

    needs_root: where files and commands are root's.
    """

    needs_root: bool

    def file(self, name: str) -> Path:
        """Where the service of the worker of that name is described."""

    def worker_of(self, file: Path) -> str | None:
        """The name of the worker that a file there describes; None for other files."""

    def text(self, service: WorkerService) -> bytes:
        """That description."""

    def is_of(self, text: bytes, home: Path) -> bool:
        """Whether a description is of a worker of that home."""

    def begin(self, name: str, *, replaces: bool) -> list[Command]:
        """What makes it run once the file is there; replaces: another was there before."""

    def at_boot(self) -> list[Command]:
        """What makes it begin before its user logs in, where that is not so anyway."""

    def end(self, name: str) -> list[Command]:
        """What ends it while the file is there."""

    def forget(self) -> list[Command]:
        """What is left to do when the file is gone."""


class Systemd:
    """The systemd of a user. folder: of its units."""

    needs_root = False

    def __init__(self, folder: Path):
        self._folder = folder

    def __repr__(self) -> str:
        return f"Systemd({self._folder})"

    def file(self, name: str) -> Path:
        """See ServiceManager."""
        return self._folder / self._unit(name)

    def worker_of(self, file: Path) -> str | None:
        """See ServiceManager."""
        return _between(file.name, _PREFIX, ".service")

    def text(self, service: WorkerService) -> bytes:
        """See ServiceManager. The user's manager has no network to wait for: the worker looks for its cluster itself."""
        variables = "".join(f"Environment={_quoted(f'{key}={value}')}\n" for key, value in service.variables.items())
        command = " ".join(_quoted(word).replace("$", "$$") for word in service.arguments)
        return (
            f"[Unit]\nDescription=Tandem worker {service.name}\nStartLimitIntervalSec=0\n\n"
            f"[Service]\n{variables}ExecStart={command}\nRestart=always\nRestartSec={RESTART_S}\n\n"
            "[Install]\nWantedBy=default.target\n"
        ).encode()

    def is_of(self, text: bytes, home: Path) -> bool:
        """See ServiceManager."""
        return f"Environment={_quoted(f'TANDEM_HOME={home}')}" in text.decode(errors="replace").splitlines()

    def begin(self, name: str, *, replaces: bool) -> list[Command]:
        """See ServiceManager."""
        again = [("systemctl", "--user", "restart", self._unit(name))] if replaces else []
        enable = ("systemctl", "--user", "enable", "--now", self._unit(name))
        return [("systemctl", "--user", "daemon-reload"), enable, *again]

    def at_boot(self) -> list[Command]:
        """See ServiceManager."""
        return [("loginctl", "enable-linger")]

    def end(self, name: str) -> list[Command]:
        """See ServiceManager."""
        return [("systemctl", "--user", "disable", "--now", self._unit(name))]

    def forget(self) -> list[Command]:
        """See ServiceManager."""
        return [("systemctl", "--user", "daemon-reload")]

    def _unit(self, name: str) -> str:
        return f"{_PREFIX}{name}.service"


class Launchd:
    """The daemons of a Mac. folder: of their descriptions."""

    needs_root = True

    def __init__(self, folder: Path = Path("/Library/LaunchDaemons")):
        self._folder = folder

    def __repr__(self) -> str:
        return f"Launchd({self._folder})"

    def file(self, name: str) -> Path:
        """See ServiceManager."""
        return self._folder / f"{_PREFIX}{name}.plist"

    def worker_of(self, file: Path) -> str | None:
        """See ServiceManager."""
        return _between(file.name, _PREFIX, ".plist")

    def text(self, service: WorkerService) -> bytes:
        """See ServiceManager. An interactive process is not slowed down as daemons otherwise are."""
        said = str(service.home / "logs" / f"{service.name}-service.out")
        return plistlib.dumps(
            {
                "Label": f"{_PREFIX}{service.name}",
                "UserName": service.user,
                "ProgramArguments": service.arguments,
                "EnvironmentVariables": {"HOME": str(service.user_home), **service.variables},
                "RunAtLoad": True,
                "KeepAlive": True,
                "ThrottleInterval": RESTART_S,
                "ProcessType": "Interactive",
                "StandardOutPath": said,
                "StandardErrorPath": said,
            }
        )

    def is_of(self, text: bytes, home: Path) -> bool:
        """See ServiceManager."""
        try:
            variables = plistlib.loads(text)["EnvironmentVariables"]
            return bool(variables["TANDEM_HOME"] == str(home))
        except (plistlib.InvalidFileException, ExpatError, LookupError, TypeError, ValueError):
            return False

    def at_boot(self) -> list[Command]:
        """See ServiceManager."""
        return []

    def begin(self, name: str, *, replaces: bool) -> list[Command]:
        """See ServiceManager."""
        return [*(self.end(name) if replaces else []), ("launchctl", "bootstrap", "system", str(self.file(name)))]

    def end(self, name: str) -> list[Command]:
        """See ServiceManager."""
        return [("launchctl", "bootout", f"system/{_PREFIX}{name}")]

    def forget(self) -> list[Command]:
        """See ServiceManager."""
        return []


def _quoted(word: str) -> str:
    """As systemd reads it back: quotes, and no specifiers."""
    escaped = word.replace("\\", "\\\\").replace('"', '\\"').replace("%", "%%")
    return f'"{escaped}"'


def _between(text: str, prefix: str, suffix: str) -> str | None:
    if not (text.startswith(prefix) and text.endswith(suffix)):
        return None
    return text.removeprefix(prefix).removesuffix(suffix) or None
