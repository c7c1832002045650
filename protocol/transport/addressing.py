"""At which addresses this host is reached, and which of another's to send to: names of interfaces never decide.

An inbox listens on all addresses of IPv4, or on those that its owner names, always at one port. On its own host it is reached over
loopback; elsewhere at an address in a network that both hosts are in, the first where there are several.
"""

import functools
import ipaddress
import socket
import uuid
from collections.abc import Mapping, Sequence

import psutil

from protocol.interfaces.names import LinkNames
from protocol.interfaces.reading import may_lead_elsewhere
from protocol.values import Address, Peer

ANY = "*"
LOOPBACK = "127.0.0.1"

Network = ipaddress.IPv4Interface | ipaddress.IPv6Interface


@functools.cache
def this_host() -> str:
    """By what processes on this machine know each other: its name and the address of its network hardware."""
    return f"{socket.gethostname()}-{uuid.getnode():012x}"


def own_networks() -> dict[Network, str]:
    """This host's addresses, with their networks, and the interfaces that have them: those that are up and lead elsewhere."""
    found: dict[Network, str] = {}
    is_up = {name: stats.isup for name, stats in psutil.net_if_stats().items()}
    for name, addresses in psutil.net_if_addrs().items():
        if not is_up.get(name, False) or not may_lead_elsewhere(name):
            continue
        for address in addresses:
            network = _network(address.family, address.address, address.netmask)
            if network is not None and not (network.is_loopback or _needs_a_scope(network)):
                found[network] = name
    return found


def _network(family: int, address: str, mask: str | None) -> Network | None:
    if family not in (socket.AF_INET, socket.AF_INET6) or mask is None:
        return None
    try:
        if family == socket.AF_INET:
            return ipaddress.IPv4Interface(f"{address}/{mask}")
        return ipaddress.IPv6Interface(f"{address.partition('%')[0]}/{int(ipaddress.IPv6Address(mask)).bit_count()}")
    except ValueError:
        return None


def _needs_a_scope(network: Network) -> bool:
    return network.version == 6 and network.is_link_local


def endpoint_of(address: str, port: int) -> str:
    """As ZeroMQ takes it."""
    return f"tcp://[{address}]:{port}" if ":" in address else f"tcp://{address}:{port}"


def needs_ipv6(address: str) -> bool:
    """Whether a socket must be told so. Not where it need not: one that was would not end with its connection."""
    return ":" in host_of(address)


def permitted_here(listen: Sequence[str], names: LinkNames, networks: Mapping[Network, str]) -> tuple[str, ...]:
    """What is listened at without what is excluded: for ANY each address by itself, since it has no exceptions."""
    if not names.exclude:
        return tuple(listen)
    interfaces = {str(network.ip): interface for network, interface in networks.items()}
    wanted = [str(network.ip) for network in networks if network.version == 4] if ANY in listen else listen
    return tuple(host for host in wanted if not names.excludes(host, [interfaces.get(host, "")]))


def permitted_there(
    addresses: Sequence[Address], names: LinkNames, networks: Mapping[Network, str]
) -> tuple[Address, ...]:
    """Another host's addresses without what is excluded: itself, or every address of this host that is in its network."""
    barred = {own: interface for own, interface in networks.items() if names.excludes(str(own.ip), [interface])}
    free = {own: interface for own, interface in networks.items() if own not in barred}
    return tuple(
        address
        for address in addresses
        if not names.excludes(host_of(address.endpoint))
        and (interfaces_to(address.endpoint, free) or not interfaces_to(address.endpoint, barred))
    )


def advertised(listen: Sequence[str], port: int, networks: dict[Network, str]) -> tuple[Address, ...]:
    """Where an inbox that listens there is reached from other hosts."""
    return tuple(
        Address(endpoint=endpoint_of(str(network.ip), port), interface=interface)
        for network, interface in networks.items()
        if (ANY in listen and network.version == 4) or str(network.ip) in listen
    )


def endpoint_for(peer: Peer) -> str:
    """Where this process reaches a peer."""
    if peer.host == this_host() or not peer.addresses:
        return peer.endpoint
    return nearest(peer.addresses, own_networks())


def nearest(addresses: Sequence[Address], networks: Mapping[Network, str]) -> str:
    """The first of another host's addresses that is in a network of this one; the first of all where none is."""
    return min(addresses, key=lambda address: interface_to(address.endpoint, networks) is None).endpoint


def interface_to(endpoint: str, networks: Mapping[Network, str]) -> str | None:
    """The first of this host's interfaces that is in the network of an endpoint elsewhere; None where none is."""
    return next(iter(interfaces_to(endpoint, networks)), None)


def interfaces_to(endpoint: str, networks: Mapping[Network, str]) -> tuple[str, ...]:
    """This host's interfaces that are in the network of an endpoint elsewhere."""
    try:
        ip = ipaddress.ip_address(host_of(endpoint))
    except ValueError:
        return ()
    return tuple(name for own, name in networks.items() if own.version == ip.version and ip in own.network)


def host_of(endpoint: str) -> str:
    """The name or address in an endpoint, or what is one by itself."""
    if not endpoint.startswith("tcp://"):
        return endpoint
    return endpoint.removeprefix("tcp://").rpartition(":")[0].strip("[]")


def seen_from(peer: Peer, host: str) -> Peer:
    """A peer of another host as it is reached at `host`, a way that is known to work."""
    if not peer.host or peer.host == this_host() or not host:
        return peer
    port = int(peer.endpoint.rpartition(":")[2])
    return Peer(endpoint=endpoint_of(host, port), public_key=peer.public_key)
