"""A host of its own for one process, at the other end of a veth cable: a network namespace. Linux and its superuser."""

import contextlib
import os
from collections.abc import Iterator

import msgspec

from tests.hosts.tools import tool, why_no_bed


class Cable(msgspec.Struct, frozen=True, kw_only=True):
    """here, there: addresses of its ends; enter: what a command on the other host begins with."""

    here: str
    there: str
    enter: tuple[str, ...]


@contextlib.contextmanager
def cable_to_another_host() -> Iterator[Cable | None]:
    """The cable while the block runs; None where this machine cannot make one."""
    if why_no_bed() is not None:
        yield None
        return
    name, interface = f"tandem-{os.getpid()}", f"td{os.getpid()}"
    cable = Cable(here="198.18.7.1", there="198.18.7.2", enter=("ip", "netns", "exec", name))
    tool("ip", "netns", "add", name)
    try:
        tool("ip", "link", "add", interface, "type", "veth", "peer", "name", "cable", "netns", name)
        tool("ip", "address", "add", f"{cable.here}/30", "dev", interface)
        tool("ip", "link", "set", interface, "up")
        tool(*cable.enter, "ip", "address", "add", f"{cable.there}/30", "dev", "cable")
        tool(*cable.enter, "ip", "link", "set", "cable", "up")
        tool(*cable.enter, "ip", "link", "set", "lo", "up")
        yield cable
    finally:
        tool("ip", "netns", "delete", name)  # with it both ends of the cable
