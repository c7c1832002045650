"""What `links.prefer` and `links.exclude` name: addresses, networks and interfaces. Pure.

Says which names fit an address. Does not know what follows: `protocol.transport.addressing` narrows by it what is listened at
and sent to, `workers.link_choice` chooses by it.
"""

import ipaddress
import re
from collections.abc import Collection, Iterable

import msgspec

_INTERFACE = re.compile(r"[A-Za-z][A-Za-z0-9._-]{0,14}")  # as long as systems let them be


class LinkNames(msgspec.Struct, frozen=True, kw_only=True):
    """prefer: the best first; exclude: in any order. An interface is one of this host, and stands for the networks that it is in."""

    prefer: tuple[str, ...] = ()
    exclude: tuple[str, ...] = ()

    def preference(self, address: str, interfaces: Collection[str]) -> int:
        """The place of an address among the preferred, the least the best. interfaces: that are in its network."""
        fits = (place for place, name in enumerate(self.prefer) if _fits(name, address, interfaces))
        return next(fits, len(self.prefer))

    def excludes(self, address: str, interfaces: Collection[str] = ()) -> bool:
        """Whether an address, or one of these interfaces, is excluded by name."""
        return any(_fits(name, address, interfaces) for name in self.exclude)

    def unknown(self, interfaces: Iterable[str]) -> list[str]:
        """The names that can only be interfaces and are none of these."""
        known = set(interfaces)
        named = dict.fromkeys((*self.prefer, *self.exclude))
        return [name for name in named if name not in known and _network(name) is None]


NO_NAMES = LinkNames()


def unknown_sentence(name: str) -> str:
    """What is said of a name that `LinkNames.unknown` found."""
    return f"links.prefer or links.exclude names {name}, which is no interface of this machine with an address"


def is_link_name(text: str) -> bool:
    """Whether it can name an address, a network (as 10.0.0.0/24) or an interface."""
    return _network(text) is not None or _INTERFACE.fullmatch(text) is not None


def _fits(name: str, address: str, interfaces: Collection[str]) -> bool:
    network = _network(name)
    if network is None:
        return name in interfaces
    try:
        return ipaddress.ip_address(address.partition("%")[0]) in network
    except ValueError:
        return False


def _network(name: str) -> ipaddress.IPv4Network | ipaddress.IPv6Network | None:
    """Of an address alone, the network of that one."""
    try:
        return ipaddress.ip_network(name)
    except ValueError:
        return None
