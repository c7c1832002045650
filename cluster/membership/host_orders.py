"""What the coordinator and `./launch.sh hosted` on another host say to each other over ssh: a JSON object a line.

The first line from there is a `HostHello`, whatever the shells of that host print before it.
"""

import msgspec

from protocol.codec import PROTOCOL
from protocol.home import ProcessIdentity
from protocol.host_specs import HostSpecs
from protocol.values import Peer


class HostGreeting(msgspec.Struct, frozen=True, kw_only=True, tag="greeting"):
    """Who asks: the cluster's public key. is_new: workers that an earlier coordinator of it left are to end; orphan_s: as in
    the settings, for all that will be started.
    """

    cluster: str
    is_new: bool
    orphan_s: float


class StartOrder(msgspec.Struct, frozen=True, kw_only=True, tag="start"):
    """Start a worker, unless it lives. memory_limit_bytes: 0 for its share of that host, which has `num_workers`."""

    name: str
    door: Peer
    token: str
    memory_limit_bytes: int
    num_workers: int


class KillOrder(msgspec.Struct, frozen=True, kw_only=True, tag="kill"):
    """End a worker at once."""

    name: str


class EndOrder(msgspec.Struct, frozen=True, kw_only=True, tag="end"):
    """Wait for all workers to end by themselves, then kill them, and end."""

    grace_s: float


class StillHere(msgspec.Struct, frozen=True, tag="here"):
    """The coordinator lives."""


Order = HostGreeting | StartOrder | KillOrder | EndOrder | StillHere


class HostHello(msgspec.Struct, frozen=True, kw_only=True, tag="hello"):
    """What the host is. workers: those of this cluster that live there; num_ended: that an earlier coordinator left and that were
    to end; free_bytes: on the disk of its home.
    """

    protocol: int = PROTOCOL
    about: HostSpecs
    free_bytes: int
    workers: dict[str, ProcessIdentity]
    num_ended: int = 0


class WorkerStarted(msgspec.Struct, frozen=True, kw_only=True, tag="started"):
    """It runs."""

    name: str
    process: ProcessIdentity


class WorkerRefused(msgspec.Struct, frozen=True, kw_only=True, tag="refused"):
    """It does not. why: a clause."""

    name: str
    why: str


class WorkerEnded(msgspec.Struct, frozen=True, kw_only=True, tag="ended"):
    """As `Launcher.ended`."""

    name: str
    status: int | None


Report = HostHello | WorkerStarted | WorkerRefused | WorkerEnded

_order, _report = msgspec.json.Decoder(Order), msgspec.json.Decoder(Report)


def to_line(message: Order | Report) -> bytes:
    """As it is sent."""
    return msgspec.json.encode(message) + b"\n"


def read_order(line: bytes) -> Order:
    """Raises ValueError."""
    return _order.decode(line)


def read_report(line: bytes) -> Report:
    """Raises ValueError."""
    return _report.decode(line)
