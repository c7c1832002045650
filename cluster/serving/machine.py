"""What of this machine makes the cluster slower than it could be: its library of linear algebra, its cables and networks.

Asks the system, which takes a while.
"""

import socket
import sys
from collections.abc import Iterator

from cluster.membership.local import find_openblas
from cluster.serving.findings import Finding
from protocol.interfaces.findings import findings
from protocol.interfaces.reading import read_host


def machine() -> Iterator[Finding]:
    """Of this machine alone, as far as Tandem runs on it."""
    if sys.platform == "linux":
        yield openblas(find_openblas())
    yield from network()


def openblas(library: str | None) -> Finding:
    """Whether that was found, without which MLX is slow on a Linux CPU."""
    if library is None:
        return Finding(
            verdict="warning",
            text="OpenBLAS is not installed: float32 prompts are read about ten times slower on this machine's CPU; "
            "install it with `apt-get install libopenblas0-pthread`",
        )
    return Finding(verdict="ok", text=f"OpenBLAS: {library}")


def network() -> Iterator[Finding]:
    """What of this machine's cables and networks makes it a slower neighbour than it could be."""
    try:
        facts = read_host(socket.gethostname())
    except OSError as error:
        yield Finding(verdict="warning", text=f"the network interfaces cannot be read: {error.strerror}")
        return
    named = ", ".join(f"{each.name} ({each.kind})" for each in facts.interfaces) or "none that leads to other machines"
    yield Finding(verdict="ok", text=f"network: {named}")
    for clause in findings((facts,)):
        yield Finding(verdict="warning", text=clause)
