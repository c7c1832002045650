"""Which addresses of another host can be tried, and from which interface: pure.

Says what is possible; measuring says what is best. Does not know hosts that are one machine: those use loopback.
"""

import ipaddress
from collections import Counter
from collections.abc import Iterable

import msgspec

from protocol.interfaces.values import Interface, LinkKind

_Address = ipaddress.IPv4Address | ipaddress.IPv6Address
# A network that an address is reached in: its version, and whether it is one of the link alone.
_Scope = tuple[int, bool]
_ORDER = list(LinkKind)


class Path(msgspec.Struct, frozen=True, kw_only=True):
    """An address of theirs, to be tried from my interface of this name. kind: the slower of both ends' kinds."""

    interface: str
    address: str
    kind: LinkKind


def paths(mine: tuple[Interface, ...], theirs: tuple[Interface, ...]) -> tuple[Path, ...]:
    """All that can be tried, by kind as a tie-break, otherwise in the order of their interfaces and then of mine.

    IPv6 link-local addresses carry my interface as scope. IPv4 link-local ones are left out where two of my interfaces
    have one, since nothing says which of them leads there. So is what is also an address of mine, and what does not read
    as an address.
    """
    own = {_bare(address) for interface in mine for address in _parsed(interface)}
    scopes = {interface.name: {_scope(address) for address in _parsed(interface)} for interface in mine}
    ambiguous = Counter(scope for found in scopes.values() for scope in found)[4, True] > 1
    found = [
        Path(interface=near.name, address=_as_seen_from(near, address), kind=max(near.kind, far.kind, key=_ORDER.index))
        for far in theirs
        for address in _parsed(far)
        if _bare(address) not in own and not (ambiguous and _scope(address) == (4, True))
        for near in mine
        if _scope(address) in scopes[near.name] and _may_be_joined(near.kind, far.kind)
    ]
    return tuple(sorted(dict.fromkeys(found), key=lambda path: _ORDER.index(path.kind)))


def owner_of(address: str, interfaces: tuple[Interface, ...]) -> Interface | None:
    """The interface that has an address, whatever scope the address was given where it is used."""
    try:
        wanted = _bare(ipaddress.ip_address(address))
    except ValueError:
        return None
    return next((each for each in interfaces if wanted in map(_bare, _parsed(each))), None)


def _parsed(interface: Interface) -> Iterable[_Address]:
    for text in interface.addresses:
        try:
            address = ipaddress.ip_address(text)
        except ValueError:
            continue
        if not (address.is_loopback or address.is_unspecified or address.is_multicast):
            yield address


def _bare(address: _Address) -> str:
    return str(address).partition("%")[0]


def _scope(address: _Address) -> _Scope:
    return address.version, address.is_link_local


def _as_seen_from(near: Interface, address: _Address) -> str:
    return f"{_bare(address)}%{near.name}" if _scope(address) == (6, True) else str(address)


def _may_be_joined(near: LinkKind, far: LinkKind) -> bool:
    """A Thunderbolt cable ends at Thunderbolt; Wi-Fi and Ethernet are often one network; OTHER may be anything."""
    return near == far or LinkKind.OTHER in (near, far) or LinkKind.THUNDERBOLT not in (near, far)
