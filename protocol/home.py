"""TANDEM_HOME: where a cluster keeps its state between commands, and whose processes are whose.

Owns the paths, the state file and the lock of one cluster. A process is known by its pid and its start time, so that a
pid that the system gave to somebody else is never signalled.
"""

import contextlib
import fcntl
import os
import time
from collections.abc import Iterator, Mapping
from pathlib import Path

import msgspec
import psutil

from protocol.errors import TandemError

# The start time of a process, as the system tells it, shifts a little when the clock is set.
_START_TIME_TOLERANCE_S = 2.0


class ProcessIdentity(msgspec.Struct, frozen=True, kw_only=True):
    """A process: its pid and when it started (Unix seconds)."""

    pid: int
    create_time: float

    @classmethod
    def of(cls, pid: int) -> "ProcessIdentity":
        """The process that has `pid` now.

        Raises:
            ProcessLookupError: there is none.
        """
        try:
            return cls(pid=pid, create_time=psutil.Process(pid).create_time())
        except psutil.NoSuchProcess:
            raise ProcessLookupError(pid) from None

    def alive(self) -> bool:
        """Whether this very process runs; a later one with the same pid, or a zombie, does not count."""
        return self._process() is not None

    def terminate(self) -> bool:
        """Ask the process to end (SIGTERM). False when it is gone already."""
        process = self._process()
        if process is None:
            return False
        with contextlib.suppress(psutil.NoSuchProcess):
            process.terminate()
        return True

    def kill(self) -> bool:
        """End the process at once (SIGKILL). False when it is gone already."""
        process = self._process()
        if process is None:
            return False
        with contextlib.suppress(psutil.NoSuchProcess):
            process.kill()
        return True

    def wait_gone(self, timeout_s: float) -> bool:
        """Whether the process ends within `timeout_s` seconds."""
        deadline = time.monotonic() + timeout_s
        while self.alive():
            if time.monotonic() >= deadline:
                return False
            time.sleep(0.02)
        return True

    def _process(self) -> psutil.Process | None:
        try:
            process = psutil.Process(self.pid)
            same = abs(process.create_time() - self.create_time) <= _START_TIME_TOLERANCE_S
            return process if same and process.status() != psutil.STATUS_ZOMBIE else None
        except (psutil.NoSuchProcess, psutil.AccessDenied):
            return None


class ClusterState(msgspec.Struct, frozen=True, kw_only=True):
    """A started cluster. api: base URL; started_at: Unix seconds; workers: local processes by worker name."""

    coordinator: ProcessIdentity
    api: str
    port: int
    workers: dict[str, ProcessIdentity] = {}
    started_at: float


class DamagedState(TandemError):
    """The state file exists but cannot be read."""


class Home:
    """The folder of one cluster's state, readable by its user only."""

    def __init__(self, root: Path):
        self.root = root
        self.settings_file = root / "settings.json"
        self.state_file = root / "cluster.json"
        self.logs = root / "logs"
        self.cache = root / "cache"
        self.keys = root / "keys"
        self._models_file = root / "models.json"

    def __repr__(self) -> str:
        return f"Home({str(self.root)!r})"

    @classmethod
    def from_environment(cls, checkout: Path, environment: Mapping[str, str] = os.environ) -> "Home":
        """TANDEM_HOME, or `.tandem` in the checkout."""
        given = environment.get("TANDEM_HOME")
        return cls(Path(given).expanduser().absolute() if given else checkout / ".tandem")

    def create(self) -> None:
        """Make the folders.

        Raises:
            TandemError: the folder cannot be made.
        """
        try:
            for folder in (self.root, self.logs, self.cache, self.keys):
                folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        except OSError as error:
            raise TandemError(
                f"{self.root} cannot be used for Tandem's state ({error.strerror}); set TANDEM_HOME to another folder"
            ) from None

    def model_place(self, digest: str) -> Path | None:
        """Where this machine keeps the model of that digest; None when it is not known here."""
        place = self._model_places().get(digest)
        return None if place is None else Path(place)

    def remember_model(self, digest: str, path: Path) -> None:
        """This machine keeps the model of that digest in `path`."""
        self.write_private(self._models_file, msgspec.json.encode(self._model_places() | {digest: str(path)}))

    def _model_places(self) -> dict[str, str]:
        try:
            return msgspec.json.decode(self._models_file.read_bytes(), type=dict[str, str])
        except (OSError, msgspec.DecodeError):
            return {}

    def read_state(self) -> ClusterState | None:
        """The cluster that was started here, or None.

        Raises:
            DamagedState: the file is not one that `write_state` wrote.
        """
        try:
            return msgspec.json.decode(self.state_file.read_bytes(), type=ClusterState)
        except FileNotFoundError:
            return None
        except (OSError, msgspec.DecodeError):
            raise DamagedState(f"{self.state_file} is damaged and was taken as absent") from None

    def write_state(self, state: ClusterState) -> None:
        """Replace the state; a reader sees the old or the new one, never a part."""
        self.write_private(self.state_file, msgspec.json.encode(state))

    def clear_state(self) -> None:
        """Forget the cluster."""
        self.state_file.unlink(missing_ok=True)

    @staticmethod
    def write_private(file: Path, content: bytes) -> None:
        """Replace `file` as a whole, readable by its user only."""
        temporary = file.with_name(f"{file.name}.{os.getpid()}.new")
        descriptor = os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600)
        with os.fdopen(descriptor, "wb") as out:
            out.write(content)
        temporary.replace(file)

    @contextlib.contextmanager
    def lock(self, timeout_s: float) -> Iterator[None]:
        """Hold off every other `start` and `stop` of this cluster; the system frees it when the process ends.

        Raises:
            TimeoutError: another process held it for `timeout_s` seconds.
        """
        deadline = time.monotonic() + timeout_s
        with (self.root / "lock").open("w") as file:
            while True:
                try:
                    fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
                    break
                except BlockingIOError:
                    if time.monotonic() >= deadline:
                        raise TimeoutError(f"{self.root}/lock") from None
                    time.sleep(0.05)
            yield
