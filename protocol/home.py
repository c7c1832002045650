"""TANDEM_HOME: where a cluster keeps its state between commands, and whose processes are whose.

Owns the paths, the files and the lock of one cluster. The *state* says which processes run now; several of them write
to it, each only its own part. What is *desired* outlives them all: who may join, where, and how often a coordinator
began. A process is known by its pid and its start time, so that a pid that the system gave to somebody else is never
signalled.
"""

import contextlib
import fcntl
import os
import stat
import sys
import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from pathlib import Path
from typing import Annotated

import msgspec
import psutil

from protocol.errors import TandemError
from protocol.join_token import make_secret

_KILL_WAIT_S = 5.0

_START_TIME_TOLERANCE_S = 2.0


_U32 = Annotated[int, msgspec.Meta(ge=0, lt=1 << 32)]


def _started_at(process: psutil.Process) -> float:
    """When a process started, in seconds that stay the same when the clock is set.

    Linux counts from the start of the machine, and psutil adds that by the clock of now; macOS keeps the time of then.
    """
    return process.create_time() - psutil.boot_time() if sys.platform == "linux" else process.create_time()


class ProcessIdentity(msgspec.Struct, frozen=True, kw_only=True):
    """A process: its pid and when it started (`_started_at`)."""

    pid: int
    create_time: float

    @classmethod
    def of(cls, pid: int) -> "ProcessIdentity":
        """The process that has `pid` now.

        Raises:
            ProcessLookupError: there is none.
        """
        try:
            return cls(pid=pid, create_time=_started_at(psutil.Process(pid)))
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
            same = abs(_started_at(process) - self.create_time) <= _START_TIME_TOLERANCE_S
            return process if same and process.status() != psutil.STATUS_ZOMBIE else None
        except (psutil.NoSuchProcess, psutil.AccessDenied):
            return None


def end_processes(processes: Iterable[ProcessIdentity], grace_s: float) -> int:
    """Ask them all to end, kill who has not after `grace_s` seconds; returns how many still lived."""
    asked = [process for process in processes if process.terminate()]
    deadline = time.monotonic() + grace_s
    for process in asked:
        if not process.wait_gone(max(deadline - time.monotonic(), 0.0)):
            process.kill()
    for process in asked:
        process.wait_gone(_KILL_WAIT_S)
    return len(asked)


class ClusterState(msgspec.Struct, frozen=True, kw_only=True):
    """A started cluster. api: base URL; started_at: Unix seconds; workers: local processes by worker name.

    supervisor writes who supervises and who coordinates, a coordinator where its API is and who its workers are. A
    coordinator that died stays named until there is another; None before there is a first.
    """

    supervisor: ProcessIdentity | None = None
    coordinator: ProcessIdentity | None = None
    api: str
    port: int
    workers: dict[str, ProcessIdentity] = {}
    started_at: float

    @property
    def is_coordinated(self) -> bool:
        """Whether the coordinator lives."""
        return self.coordinator is not None and self.coordinator.alive()

    @property
    def is_supervised(self) -> bool:
        """Whether the supervisor lives; it starts a coordinator that died again."""
        return self.supervisor is not None and self.supervisor.alive()


class DesiredState(msgspec.Struct, frozen=True, kw_only=True):
    """What a coordinator that starts again takes up, so that workers of an earlier one find it and are let in.

    incarnation: how many coordinators began here, the upper half of every epoch; counter: the last epoch's lower half.
    secret: of the join token, hex. port: of the coordinator's inbox, 0 before one was picked. public_key, secret_key:
    of that inbox (CURVE, Z85 text). members: the names of the workers that belong to the cluster.
    """

    incarnation: _U32
    counter: _U32 = 0
    secret: str
    port: Annotated[int, msgspec.Meta(ge=0, le=65535)] = 0
    public_key: str
    secret_key: str
    members: tuple[str, ...] = ()


class DamagedState(TandemError):
    """The state file exists but cannot be read."""


class Home:
    """The folder of one cluster's state, readable by its user only."""

    def __init__(self, root: Path):
        self.root = root
        self.settings_file = root / "settings.json"
        self.started_file = root / "started.json"  # what the last start that became ready was told
        self.state_file = root / "cluster.json"
        self.logs = root / "logs"
        self.cache = root / "cache"
        self.models = root / "models"  # fetched from other hosts, by digest
        self.keys = root / "keys"
        self.start_file = root / "start"  # what a start that is under way is doing, in words
        self._models_file = root / "models.json"
        self._desired_file = root / "deployment.json"

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
            TandemError: the folder cannot be made, or anybody may write to it.
        """
        try:
            for folder in (self.root, self.logs, self.cache, self.keys):
                folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        except OSError as error:
            raise TandemError(
                f"{self.root} cannot be used for Tandem's state ({error.strerror}); set TANDEM_HOME to another folder"
            ) from None
        if self.root.stat().st_mode & stat.S_IWOTH:
            raise TandemError(
                f"anybody may write to {self.root}, which holds Tandem's keys; take that right away with "
                f"`chmod o-w`, or set TANDEM_HOME to another folder"
            )

    def model_place(self, digest: str) -> Path | None:
        """Where this machine keeps the model of that digest; None when it is not known here."""
        return self.model_places().get(digest)

    def remember_model(self, digest: str, path: Path) -> None:
        """This machine keeps the model of that digest in `path`."""
        places = {known: str(place) for known, place in self.model_places().items()}
        self.write_private(self._models_file, msgspec.json.encode(places | {digest: str(path)}))

    def model_places(self) -> dict[str, Path]:
        """Where this machine keeps the models that it knows, by digest."""
        try:
            places = msgspec.json.decode(self._models_file.read_bytes(), type=dict[str, str])
            return {digest: Path(place) for digest, place in places.items()}
        except (OSError, ValueError):
            return {}

    def read_state(self) -> ClusterState | None:
        """The cluster that was started here, or None.

        Raises:
            DamagedState: the file is not one that `write_state` wrote.
        """
        try:
            if not self.state_file.is_file() and os.path.lexists(self.state_file):
                raise DamagedState(f"{self.state_file} is no file and was put aside")
            return msgspec.json.decode(self.state_file.read_bytes(), type=ClusterState)
        except FileNotFoundError:
            return None
        except (OSError, ValueError):
            raise DamagedState(f"{self.state_file} is damaged and was taken as absent") from None

    def write_state(self, state: ClusterState) -> None:
        """Replace the state; a reader sees the old or the new one, never a part."""
        with self.writing():
            self.write_private(self.state_file, msgspec.json.encode(state))

    def update_state(self, change: Callable[[ClusterState], ClusterState]) -> None:
        """Write what `change` makes of the state; nothing when there is none (any more). Raises DamagedState."""
        with self.writing():
            state = self.read_state()
            if state is not None:
                self.write_private(self.state_file, msgspec.json.encode(change(state)))

    def clear_state(self, of: ProcessIdentity | None = None) -> None:
        """Forget the cluster; with `of`, only while that process is its supervisor or its coordinator."""
        with self.writing():
            if of is not None:
                state = self.read_state()
                if state is None or of not in (state.supervisor, state.coordinator):
                    return
            if self.state_file.is_dir():
                self.state_file.rename(self.root / f"{self.state_file.name}.{time.time_ns()}")
            self.state_file.unlink(missing_ok=True)

    @contextlib.contextmanager
    def writing(self) -> Iterator[None]:
        """One writer of this home's files at a time, for as long as a file takes."""
        with (self.root / "state.lock").open("w") as file:
            fcntl.flock(file, fcntl.LOCK_EX)
            yield

    def read_desired(self) -> DesiredState | None:
        """What the last coordinator left; None when there is none or it is damaged."""
        try:
            return msgspec.json.decode(self._desired_file.read_bytes(), type=DesiredState)
        except (OSError, ValueError):
            return None

    def write_desired(self, desired: DesiredState) -> None:
        """Replace what is desired."""
        self.write_private(self._desired_file, msgspec.json.encode(desired))

    def next_incarnation(self, make_keys: Callable[[], tuple[str, str]]) -> DesiredState:
        """What is desired, for a coordinator that begins: its incarnation was never used before, and is on disk.

        make_keys: a new public and secret key, for the first coordinator and for one that finds the file damaged; no
        worker of an earlier one can join it.
        """
        last = self.read_desired()
        if last is None:
            public_key, secret_key = make_keys()
            last = DesiredState(incarnation=0, secret=make_secret(), public_key=public_key, secret_key=secret_key)
        desired = msgspec.structs.replace(last, incarnation=last.incarnation + 1, counter=0)
        self.write_desired(desired)
        return desired

    @staticmethod
    def write_private(file: Path, content: bytes) -> None:
        """Replace `file` as a whole, readable by its user only; it is on disk afterwards."""
        temporary = file.with_name(f"{file.name}.{os.getpid()}.new")
        descriptor = os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600)
        with os.fdopen(descriptor, "wb") as out:
            out.write(content)
            out.flush()
            os.fsync(descriptor)
        temporary.replace(file)
        folder = os.open(file.parent, os.O_RDONLY)
        try:
            os.fsync(folder)  # the new name, too
        finally:
            os.close(folder)

    def start_under_way(self) -> str | None:
        """What a start of this cluster is doing, in words where it said any; None when there is none."""
        try:
            with self.lock(0.0):
                return None
        except TimeoutError:
            with contextlib.suppress(OSError):
                return self.start_file.read_text(encoding="utf-8")
            return ""

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
