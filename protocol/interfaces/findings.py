"""What is wrong or wasted in the network of some hosts, as sentences that say what to do: pure.

Changes no setting and asks nobody. What is not known gives no finding. Each sentence is a clause, as errors are.
"""

from collections.abc import Iterator
from itertools import combinations

import msgspec

from protocol.interfaces.reach import Path, owner_of, paths
from protocol.interfaces.values import TB5_BITS_PER_S, HostFacts, Interface, LinkKind, ThunderboltPort

_STANDARD_MTU = 1500
_SETTINGS = "System Settings > Network"
_CABLES = {LinkKind.THUNDERBOLT: "Thunderbolt", LinkKind.ETHERNET: "Ethernet"}


class UsedLink(msgspec.Struct, frozen=True, kw_only=True):
    """The path that traffic from one host to another takes, as measuring chose it."""

    near: str
    far: str
    path: Path


class _PortOfHost(msgspec.Struct, frozen=True):
    """One end of a Thunderbolt cable."""

    host: HostFacts
    port: ThunderboltPort

    def __str__(self) -> str:
        port = "a Thunderbolt port" if self.port.receptacle is None else f"Thunderbolt {self.port.receptacle}"
        return f"{port} of {self.host.host}"

    @property
    def interface(self) -> Interface | None:
        """The interface whose address the cable serves: that of its port, or the bridge around it."""
        device = self.host.mac.device_of(self.port)
        names = self.host.mac.carriers(device) if device else ()
        return next((each for each in self.host.interfaces if each.name in names), None)


_Cable = tuple[_PortOfHost, _PortOfHost]


def findings(hosts: tuple[HostFacts, ...], links: tuple[UsedLink, ...] = ()) -> tuple[str, ...]:
    """All findings, each once. hosts: this one alone, or all of a cluster. links: what is in use, where it is known."""
    cables = [cable for pair in combinations(hosts, 2) for cable in _cables(*pair)]
    by_name = {host.host: host for host in hosts}
    used = [(by_name[link.near], by_name[link.far], link.path) for link in links if {link.near, link.far} <= {*by_name}]
    found = (
        *(clause for host in hosts for clause in _unused_cables(host)),
        *(clause for near, far, path in used for clause in _wifi_beside_cable(near, far, path, cables)),
        *(clause for host in hosts for clause in _members_with_addresses(host)),
        *(clause for near, far in _ends(cables, used) for clause in _unequal_frames(near, far)),
        *(clause for host in hosts for clause in _jumbo_frames(host)),
        *(clause for cable in cables for clause in _slow_cable(cable)),
        *(clause for host in hosts for clause in _rdma_off(host)),
    )
    return tuple(dict.fromkeys(found))


def _cables(one: HostFacts, other: HostFacts) -> Iterator[_Cable]:
    """Cables name, at each end, the domain of the port at the other."""
    for near in one.mac.ports:
        for far in other.mac.ports:
            if _leads_to(near, far) or _leads_to(far, near):
                yield _PortOfHost(one, near), _PortOfHost(other, far)


def _leads_to(near: ThunderboltPort, far: ThunderboltPort) -> bool:
    return far.domain is not None and any(attached.domain == far.domain for attached in near.attached)


def _unused_cables(host: HostFacts) -> Iterator[str]:
    for port in host.mac.ports:
        device = host.mac.device_of(port)
        peer = next((attached.name for attached in port.attached if attached.is_host), None)
        end = _PortOfHost(host, port)
        # Without the devices nobody knows whether a bridge around the port has the address.
        if host.mac.devices and device and peer and end.interface is None:
            yield (
                f"a cable joins {end} to {peer} and carries nothing, because {device} has no address; "
                f"give it one, or make it a member of the Thunderbolt Bridge, in {_SETTINGS}"
            )


def _wifi_beside_cable(near: HostFacts, far: HostFacts, path: Path, cables: list[_Cable]) -> Iterator[str]:
    if path.kind is not LinkKind.WIFI:
        return
    one, other = sorted((near.host, far.host))
    if any({end.host.host for end in cable} == {one, other} for cable in cables):
        yield (
            f"traffic between {one} and {other} goes over Wi-Fi although a Thunderbolt cable joins them; "
            f"give both ends of the cable addresses of one network, in {_SETTINGS}"
        )
        return
    wired = next((_CABLES[each.kind] for each in paths(near.interfaces, far.interfaces) if each.kind in _CABLES), None)
    if wired:
        yield (
            f"traffic between {one} and {other} goes over Wi-Fi although both have {wired}; "
            f"check that their {wired} addresses are of one network and that the cable is in"
        )


def _members_with_addresses(host: HostFacts) -> Iterator[str]:
    """IPv6 link-local addresses are left aside: the system gives them by itself."""
    addresses = {device.name: device.addresses for device in host.mac.devices}
    for bridge in host.mac.bridges:
        for member in bridge.members:
            own = [each for each in addresses.get(member, ()) if not each.lower().startswith("fe80:")]
            if own:
                yield (
                    f"{member} of {host.host} is a member of {bridge.name} and has an address of its own, {own[0]}, "
                    f"which the bridge can make unreachable; take {member} out of the bridge or remove its address, "
                    f"in {_SETTINGS}"
                )


_End = tuple[str, Interface]


def _ends(cables: list[_Cable], used: list[tuple[HostFacts, HostFacts, Path]]) -> Iterator[tuple[_End, _End]]:
    """The interfaces at both ends of every cable and every link in use, each pair in one order."""
    pairs = [((near.host, near.interface), (far.host, far.interface)) for near, far in cables]
    for near, far, path in used:
        from_it = next((each for each in near.interfaces if each.name == path.interface), None)
        pairs.append(((near, from_it), (far, owner_of(path.address, far.interfaces))))
    for (one, mine), (other, theirs) in pairs:
        if mine is not None and theirs is not None:
            first, second = sorted([(one.host, mine), (other.host, theirs)], key=lambda end: (end[0], end[1].name))
            yield first, second


def _unequal_frames(near: _End, far: _End) -> Iterator[str]:
    (one, mine), (other, theirs) = near, far
    if mine.mtu and theirs.mtu and mine.mtu != theirs.mtu:
        yield (
            f"{mine.name} of {one} sends frames of up to {mine.mtu} bytes and {theirs.name} of {other} of up to "
            f"{theirs.mtu}; set the MTU of both to one value"
        )


def _jumbo_frames(host: HostFacts) -> Iterator[str]:
    for interface in host.interfaces:
        if interface.kind is LinkKind.ETHERNET and (interface.mtu or 0) > _STANDARD_MTU:
            yield (
                f"{interface.name} of {host.host} sends Ethernet frames of up to {interface.mtu} bytes, which every "
                f"switch and host on the way must take; set its MTU to {_STANDARD_MTU} unless all of them do"
            )


def _slow_cable(cable: _Cable) -> Iterator[str]:
    near, far = cable
    link = near.port.link_bits_per_s or far.port.link_bits_per_s
    both_can = min(near.host.mac.most_bits_per_s or 0, far.host.mac.most_bits_per_s or 0)
    if link and link < TB5_BITS_PER_S <= both_can:
        yield (
            f"the cable from {near} to {far} runs at {_gigabits(link)} and both ends can do "
            f"{_gigabits(TB5_BITS_PER_S)}; use a Thunderbolt 5 cable, without a dock in between"
        )


def _rdma_off(host: HostFacts) -> Iterator[str]:
    """Only Thunderbolt 5 can, and only from Mac to Mac: elsewhere the setting is right as it is."""
    possible = any(
        attached.is_host and (port.link_bits_per_s or 0) >= TB5_BITS_PER_S
        for port in host.mac.ports
        for attached in port.attached
    )
    if possible and host.mac.rdma.enabled is False:
        yield (
            f"RDMA is possible over the Thunderbolt 5 cable of {host.host} and is off; to have it, start {host.host} in "
            f"recovery mode and run `rdma_ctl enable` in its Terminal"
        )


def _gigabits(bits_per_s: int) -> str:
    return f"{bits_per_s // 1_000_000_000} Gb/s"
