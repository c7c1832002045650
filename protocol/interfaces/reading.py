"""The interfaces of this host, read from the system: commands on macOS, files on Linux, addresses from psutil.

Owns which interfaces count. Blocks while the commands run, which can take seconds: nothing for an event loop. Commands that are missing, fail or take too long leave unknown what they would have said.
"""

import ipaddress
import logging
import re
import socket
import subprocess
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import psutil

from protocol.interfaces import linux, macos
from protocol.interfaces.values import HostFacts, Interface, LinkKind, MacFacts, Surroundings

log = logging.getLogger(__name__)

Run = Callable[[Sequence[str]], str]

_COMMAND_TIMEOUT_S = 10
_UNKNOWN_MBITS = (0, 65535)  # what psutil and some drivers say for a speed that nobody knows
# Loopback, tunnels, radio links between Apple's devices, virtual machines, and bridges of containers.
_NOWHERE_ELSE = re.compile(
    r"(?:lo|utun|tun|tap|wg|tailscale|ppp|ipsec|zt|feth|gif|stf|awdl|llw|anpi|ap|docker|virbr|vmenet|podman|cni)[0-9]*"
    r"|(?:wg|tun|tap)-.*|br-[0-9a-f]{8,12}|docker_gwbridge"
)


def may_lead_elsewhere(name: str) -> bool:
    """Whether an interface of that name can reach other hosts."""
    return _NOWHERE_ELSE.fullmatch(name) is None


def run_command(command: Sequence[str]) -> str:
    """What a command prints, whatever its exit status. Raises OSError or subprocess.SubprocessError where it cannot."""
    done = subprocess.run(
        command, stdin=subprocess.DEVNULL, capture_output=True, timeout=_COMMAND_TIMEOUT_S, check=False
    )
    return done.stdout.decode("utf-8", "replace")


def read_interfaces(
    run: Run = run_command, *, platform: str = sys.platform, sys_class_net: Path = linux.SYS_CLASS_NET
) -> tuple[Interface, ...]:
    """The interfaces that can carry traffic to other hosts. Raises OSError where the system does not tell them."""
    return read_host("", run, platform=platform, sys_class_net=sys_class_net).interfaces


def read_host(
    host: str, run: Run = run_command, *, platform: str = sys.platform, sys_class_net: Path = linux.SYS_CLASS_NET
) -> HostFacts:
    """The interfaces and, on a Mac, what is known of its ports. Raises OSError where the system does not tell them."""
    addresses, states = psutil.net_if_addrs(), psutil.net_if_stats()
    mac = read_mac(run) if platform == "darwin" else MacFacts()
    if platform == "darwin":
        known = macos.surroundings(mac)
    elif platform == "linux":
        known = linux.read_surroundings(addresses, sys_class_net)
    else:
        known = Surroundings()
    return HostFacts(host=host, interfaces=choose(addresses, states, known), mac=mac)


def read_mac(run: Run = run_command) -> MacFacts:
    """What the commands of macOS say. Never raises."""

    def said(*command: str) -> str:
        try:
            return run(command)
        except (OSError, subprocess.SubprocessError) as failure:
            log.debug("%s said nothing: %s", command[0], failure)
            return ""

    profile = ("system_profiler", "SPThunderboltDataType")
    ports = macos.parse_thunderbolt_json(said(*profile, "-json")) or macos.parse_thunderbolt_text(said(*profile))
    return MacFacts(
        hardware=macos.parse_hardware_ports(said("networksetup", "-listallhardwareports")),
        ports=ports,
        devices=macos.parse_ifconfig(said("ifconfig")),
        rdma=macos.parse_rdma(said("rdma_ctl", "status"), said("ibv_devices"), said("ibv_devinfo")),
    )


def choose(
    addresses: Mapping[str, Sequence[Any]], states: Mapping[str, Any], known: Surroundings
) -> tuple[Interface, ...]:
    """Those of psutil's interfaces that can carry traffic to another host, in its order.

    A bridge that has an address speaks for its members.
    """
    texts: dict[str, tuple[str, ...]] = {}
    for label, entries in addresses.items():
        name = label.partition(":")[0]  # Linux labels further addresses of eth0 eth0:1
        texts[name] = tuple(dict.fromkeys((*texts.get(name, ()), *_texts(name, entries))))
    speaking = (bridge for bridge in known.members if texts.get(bridge) and bridge in states and states[bridge].isup)
    spoken_for = {member for bridge in speaking for member in known.members[bridge]}
    return tuple(
        Interface(
            name=name,
            kind=known.kinds.get(name, LinkKind.OTHER),
            addresses=found,
            mtu=states[name].mtu or None,
            bits_per_s=known.bits_per_s.get(name) or _bits_per_s(states[name].speed),
        )
        for name, found in texts.items()
        if found and name not in spoken_for and name not in known.unusable and _leads_elsewhere(name, states.get(name))
    )


def _leads_elsewhere(name: str, state: Any) -> bool:
    """Whether it is up and leads to a network, rather than to this host itself or to one far end."""
    if state is None or not state.isup or not may_lead_elsewhere(name):
        return False
    return not {"loopback", "pointopoint"} & set(state.flags.split(","))


def _texts(name: str, entries: Sequence[Any]) -> Iterator[str]:
    for entry in entries:
        if entry.family not in (socket.AF_INET, socket.AF_INET6):
            continue
        try:
            address = ipaddress.ip_address(entry.address)
        except ValueError:
            continue
        if address.is_loopback or address.is_unspecified or address.is_multicast:
            continue
        scoped = address.version == 6 and address.is_link_local
        yield f"{str(address).partition('%')[0]}%{name}" if scoped else str(address)


def _bits_per_s(mbits: int) -> int | None:
    return None if mbits in _UNKNOWN_MBITS else mbits * 1_000_000
