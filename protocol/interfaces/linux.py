"""What Linux says of its interfaces in the files below /sys/class/net, whose path is an argument.

A file that is missing or cannot be read says nothing; nothing here raises.
"""

import re
from collections.abc import Iterable
from pathlib import Path

from protocol.interfaces.values import LinkKind, Surroundings, kind_of_bridge

SYS_CLASS_NET = Path("/sys/class/net")
_ETHERNET = "1"  # ARPHRD_ETHER of if_arp.h; wireless devices say it too
_THUNDERBOLT = re.compile(r"(?:thunderbolt|tb)[0-9]+")


def read_surroundings(names: Iterable[str], root: Path = SYS_CLASS_NET) -> Surroundings:
    """The kind of each interface, the members of bridges, and which are ends of tunnels."""
    folders = {name: root / name for name in names}
    kinds = {name: _kind(name, folder) for name, folder in folders.items()}
    members = {name: found for name, folder in folders.items() if (found := _members(folder))}
    bridged = {name: kind_of_bridge(found, kinds, LinkKind.OTHER) for name, found in members.items()}
    return Surroundings(
        kinds=kinds | bridged,
        members=members,
        unusable=frozenset(name for name, folder in folders.items() if (folder / "tun_flags").exists()),
    )


def _kind(name: str, folder: Path) -> LinkKind:
    if _driver(folder) == "thunderbolt-net" or _THUNDERBOLT.fullmatch(name):
        return LinkKind.THUNDERBOLT
    if (folder / "wireless").exists() or (folder / "phy80211").exists():
        return LinkKind.WIFI
    return LinkKind.ETHERNET if _read(folder / "type") == _ETHERNET else LinkKind.OTHER


def _driver(folder: Path) -> str | None:
    try:
        return (folder / "device" / "driver").readlink().name
    except OSError:
        return None


def _members(folder: Path) -> tuple[str, ...]:
    try:
        return tuple(sorted(port.name for port in (folder / "brif").iterdir()))
    except OSError:
        return ()


def _read(file: Path) -> str | None:
    try:
        return file.read_text(encoding="ascii", errors="replace").strip()
    except OSError:
        return None
