"""What a host says of its network: interfaces, and on a Mac the Thunderbolt ports, bridges and RDMA behind them.

Owns the types. Knows neither where the facts come from (`reading`) nor what follows from them (`reach`, `findings`).
None and empty tuples stand for what is not known.
"""

from enum import StrEnum

import msgspec

TB5_BITS_PER_S = 80_000_000_000  # in each direction; an idle port promises 120, which is for screens


class LinkKind(StrEnum):
    """How an interface is connected, the likeliest to be fast first: the order breaks ties and decides nothing else."""

    THUNDERBOLT = "thunderbolt"
    ETHERNET = "ethernet"
    WIFI = "wifi"
    OTHER = "other"


class Interface(msgspec.Struct, frozen=True, kw_only=True):
    """An interface that is up and can carry traffic to another host.

    addresses: as `ipaddress` reads them; IPv6 link-local ones end with `%` and the interface's name.
    bits_per_s: what the link is said to carry in each direction, not a measured figure.
    """

    name: str
    kind: LinkKind
    addresses: tuple[str, ...]
    mtu: int | None = None
    bits_per_s: int | None = None


class HardwarePort(msgspec.Struct, frozen=True, kw_only=True):
    """A socket or adapter as macOS names it ("Thunderbolt 2"), and the device that it is (en6)."""

    name: str
    device: str
    kind: LinkKind


class Attached(msgspec.Struct, frozen=True, kw_only=True):
    """What hangs on a Thunderbolt port, docks in between left aside.

    domain: a host's own name for the port at its end of the cable; docks and disks have none.
    offers_rdma: whether that host offers RDMA on this cable.
    """

    name: str
    model: str | None = None
    domain: str | None = None
    offers_rdma: bool = False

    @property
    def is_host(self) -> bool:
        """A Mac or another computer, rather than a dock, a disk or a screen."""
        return self.domain is not None


class ThunderboltPort(msgspec.Struct, frozen=True, kw_only=True):
    """A Thunderbolt socket of this Mac.

    receptacle: N of the hardware port "Thunderbolt N".
    link_bits_per_s: of the cable that is there; most_bits_per_s: what the socket promises, which only a free one says.
    """

    receptacle: int | None
    domain: str | None = None
    connected: bool | None = None
    link_bits_per_s: int | None = None
    most_bits_per_s: int | None = None
    attached: tuple[Attached, ...] = ()


class NetworkDevice(msgspec.Struct, frozen=True, kw_only=True):
    """A device as `ifconfig` shows it. active: whether something is connected. members: of a bridge, other devices."""

    name: str
    active: bool | None = None
    addresses: tuple[str, ...] = ()
    members: tuple[str, ...] = ()


class RdmaDevice(msgspec.Struct, frozen=True, kw_only=True):
    """An RDMA device and the network device that it belongs to. active: whether its port is up."""

    name: str
    interface: str
    active: bool | None = None


class Rdma(msgspec.Struct, frozen=True, kw_only=True):
    """enabled: what the system is set to; a Mac may be set so and have no device that can."""

    enabled: bool | None = None
    devices: tuple[RdmaDevice, ...] = ()


class MacFacts(msgspec.Struct, frozen=True, kw_only=True):
    """What the commands of macOS say of one Mac; empty elsewhere."""

    hardware: tuple[HardwarePort, ...] = ()
    ports: tuple[ThunderboltPort, ...] = ()
    devices: tuple[NetworkDevice, ...] = ()
    rdma: Rdma = Rdma()

    @property
    def bridges(self) -> tuple[NetworkDevice, ...]:
        """The bridges that have members."""
        return tuple(device for device in self.devices if device.members)

    @property
    def most_bits_per_s(self) -> int | None:
        """What the Thunderbolt ports of this Mac can, as far as they show it: all of one Mac are alike."""
        said = [bits for port in self.ports for bits in (port.link_bits_per_s, port.most_bits_per_s) if bits]
        return max(said, default=None)

    def device_of(self, port: ThunderboltPort) -> str | None:
        """The network device of a Thunderbolt port."""
        names = (hardware.device for hardware in self.hardware if hardware.name == f"Thunderbolt {port.receptacle}")
        return next(names, None)

    def carriers(self, device: str) -> tuple[str, ...]:
        """The devices whose addresses a cable at `device` can serve: itself, and bridges that it is a member of."""
        return (device, *(bridge.name for bridge in self.bridges if device in bridge.members))


class HostFacts(msgspec.Struct, frozen=True, kw_only=True):
    """What one host says of its network, by the host's name."""

    host: str
    interfaces: tuple[Interface, ...]
    mac: MacFacts = MacFacts()


class Surroundings(msgspec.Struct, frozen=True, kw_only=True):
    """What a system knows of its devices beyond their addresses, by their names.

    members: of each bridge. unusable: what cannot carry traffic to another host.
    """

    kinds: dict[str, LinkKind] = {}
    members: dict[str, tuple[str, ...]] = {}
    bits_per_s: dict[str, int] = {}
    unusable: frozenset[str] = frozenset()


def kind_of_bridge(members: tuple[str, ...], kinds: dict[str, LinkKind], default: LinkKind) -> LinkKind:
    """The kind that all members have, OTHER where they differ, the default where there are none."""
    found = {kinds.get(member, LinkKind.OTHER) for member in members}
    return found.pop() if len(found) == 1 else LinkKind.OTHER if found else default
