"""What mx.distributed is told of a group before it begins: its environment and files, made from the connections of ranks that have met.

Pure, but for looking for a free port. Each rank writes its own file, since each sees the others at the addresses by which it reaches
them.
"""

import json
import socket
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

RING, JACCL = "ring", "jaccl"
_MAPPED = "::ffff:"  # before an IPv4 address of a socket that takes both


class Ends(NamedTuple):
    """The hosts of a connection: this rank's own, and the other rank's, as either is reached by it."""

    here: str
    there: str

    @classmethod
    def of(cls, connection: socket.socket) -> "Ends":
        """Of one that was made."""
        return cls(*(name[0].removeprefix(_MAPPED) for name in (connection.getsockname(), connection.getpeername())))


def own_host(rank: int, ends: Mapping[int, Ends]) -> str:
    """Where the rank before this one reaches it, which connects to it in a ring."""
    return ends[(rank - 1) % (len(ends) + 1)].here


def free_port(host: str) -> int:
    """One at which nobody hears there, a moment ago. Raises OSError where the host is not here."""
    with socket.create_server((host, 0), family=socket.AF_INET6 if ":" in host else socket.AF_INET) as server:
        return int(server.getsockname()[1])


def ring_hosts(rank: int, ends: Mapping[int, Ends], ports: Sequence[int]) -> list[list[str]]:
    """By rank where it hears. ends: of the connection to each other rank; ports: of each rank."""
    hosts = [own_host(rank, ends) if other == rank else ends[other].there for other in range(len(ports))]
    return [[_address(host, port)] for host, port in zip(hosts, ports, strict=True)]


def rdma_devices(rank: int, interfaces: Mapping[int, str | None]) -> list[str | None]:
    """By rank the device by which this one reaches it, None for itself and where none is known: macOS names it for the interface.

    interfaces: by other rank that of the connection to it.
    """
    named = {other: None if name is None else f"rdma_{name}" for other, name in interfaces.items()}
    return [None if other == rank else named[other] for other in range(len(interfaces) + 1)]


def ring_environment(rank: int, hosts: Sequence[Sequence[str]], folder: Path) -> dict[str, str]:
    """For the backend `ring`. folder: for its file."""
    return {"MLX_RANK": str(rank), "MLX_HOSTFILE": _written(folder / "hosts.json", hosts)}


def jaccl_environment(
    rank: int, devices: Sequence[Sequence[str | None]], coordinator: str, port: int, folder: Path
) -> dict[str, str]:
    """For the backend `jaccl`. devices: of each rank, as of `rdma_devices`; coordinator: where rank 0 is reached, and hears at this port."""
    return {
        "MLX_RANK": str(rank),
        "MLX_IBV_DEVICES": _written(folder / "devices.json", devices),
        "MLX_JACCL_COORDINATOR": _address(coordinator, port),
    }


def _written(file: Path, content: object) -> str:
    file.write_text(json.dumps(content))
    return str(file)


def _address(host: str, port: int) -> str:
    return f"[{host}]:{port}" if ":" in host else f"{host}:{port}"
