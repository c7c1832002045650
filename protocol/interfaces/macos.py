"""What the network commands of macOS print, as values: pure functions of text.

Knows how macOS 26 and 27 print; does not run a command. Text that is none of theirs (empty, cut off, of other types, of
another language) is "not known", None or empty, and never an error.
"""

import re
from collections.abc import Iterable, Iterator
from itertools import pairwise
from typing import Any, NamedTuple

import msgspec

from protocol.interfaces.values import (
    Attached,
    HardwarePort,
    LinkKind,
    MacFacts,
    NetworkDevice,
    Rdma,
    RdmaDevice,
    Surroundings,
    ThunderboltPort,
    kind_of_bridge,
)

# The service by which a Mac offers RDMA to the other end of a cable; macOS names it differently from release to release.
_RDMA_PROTOCOL = (64087, "64087")
_CONNECTED = {
    "receptacle_connected": True,
    "receptacle_no_devices_connected": False,
    "Device connected": True,
    "No device connected": False,
}
# What the text form of system_profiler says for the keys of the JSON form.
_TEXT_KEYS = {
    "Device Name": "device_name_key",
    "Domain UUID": "domain_uuid_key",
    "Protocol ID": "protocol_id_key",
    "Receptacle": "receptacle_id_key",
    "Speed": "current_speed_key",
    "Status": "receptacle_status_key",
}
_MOST_NESTED = 24
# Adapters named en… that reach a telephone or the like, not another host.
_NO_ETHERNET = ("iphone", "ipad", "bluetooth", "firewire")

_DEVICE = re.compile(r"[a-z]{1,12}[0-9]{1,5}")
_SECTION = re.compile(r"^([a-z]{1,12}[0-9]{0,5}): flags=.*$", re.MULTILINE)
_MEMBER = re.compile(r"^\s+member: ([a-z]{1,12}[0-9]{1,5})\b", re.MULTILINE)
_ADDRESS = re.compile(r"^\s+inet6? ([0-9A-Fa-f:.]+(?:%[\w.]+)?)\s", re.MULTILINE | re.ASCII)
_STATUS = re.compile(r"^\s+status: (active|inactive)\s*$", re.MULTILINE)
_PORT_TAG = re.compile(r"receptacle_[0-9]{1,2}_tag")
_PORT_HEADING = re.compile(r"Port(?: .*)?")
_NUMBER = re.compile(r"[0-9]{1,2}")
_SPEED = re.compile(r"([0-9]{1,4}) Gb/s")
_RDMA_NAME = re.compile(r"^\s*(rdma_([a-z]{1,12}[0-9]{1,5}))\s+[0-9a-fA-F]{16}\s*$", re.MULTILINE)
_RDMA_STATE = re.compile(r"^\s*(?:hca_id:\s*(rdma_\w+)|state:\s*PORT_(\w+).*)$", re.MULTILINE | re.ASCII)


# --- networksetup and ifconfig --------------------------------------------------------------------------------------


def parse_hardware_ports(text: str) -> tuple[HardwarePort, ...]:
    """The ports of `networksetup -listallhardwareports`, in its order."""
    ports = []
    name = None
    for line in text.splitlines():
        key, _, value = (part.strip() for part in line.partition(":"))
        if key == "Hardware Port":
            name = value
        elif key == "Device" and name and _DEVICE.fullmatch(value):
            ports.append(HardwarePort(name=name, device=value, kind=_kind(name.lower(), value)))
            name = None
    return tuple(ports)


def _kind(name: str, device: str) -> LinkKind:
    """A dock's network card is called "Thunderbolt Ethernet Slot 0" and is Ethernet all the same."""
    if re.fullmatch(r"thunderbolt [0-9]+", name) or (device.startswith("bridge") and "thunderbolt" in name):
        return LinkKind.THUNDERBOLT
    if name.startswith(("wi-fi", "airport")):
        return LinkKind.WIFI
    if device.startswith("en") and not any(word in name for word in _NO_ETHERNET):
        return LinkKind.ETHERNET
    return LinkKind.OTHER


def parse_ifconfig(text: str) -> tuple[NetworkDevice, ...]:
    """The devices of `ifconfig`, with the members of those that are bridges."""
    heads = list(_SECTION.finditer(text))
    ends = [following.start() for _, following in pairwise(heads)] + [len(text)]
    return tuple(_device(head[1], text[head.end() : end] + "\n") for head, end in zip(heads, ends, strict=False))


def _device(name: str, section: str) -> NetworkDevice:
    status = _STATUS.search(section)
    return NetworkDevice(
        name=name,
        active=None if status is None else status[1] == "active",
        addresses=tuple(_ADDRESS.findall(section)),
        members=tuple(dict.fromkeys(_MEMBER.findall(section))),
    )


# --- system_profiler ------------------------------------------------------------------------------------------------


def parse_thunderbolt_json(text: str) -> tuple[ThunderboltPort, ...]:
    """The ports of `system_profiler SPThunderboltDataType -json`, by receptacle."""
    try:
        profile = msgspec.json.decode(text.encode("utf-8", "replace"))
    except (ValueError, RecursionError):
        return ()
    return _ports(profile.get("SPThunderboltDataType")) if isinstance(profile, dict) else ()


def parse_thunderbolt_text(text: str) -> tuple[ThunderboltPort, ...]:
    """The same of the form for people, `system_profiler SPThunderboltDataType`."""
    titles = _dicts(_outline(text).get("_items"))
    return _ports([bus for title in titles for bus in _dicts(title.get("_items"))])


def _ports(buses: Any) -> tuple[ThunderboltPort, ...]:
    ports = [port for bus in _dicts(buses) for port in _ports_of(bus)]
    return tuple(sorted(ports, key=lambda port: port.receptacle or 0))


def _ports_of(bus: dict[str, Any]) -> Iterator[ThunderboltPort]:
    attached = tuple(_attached(item) for item in _below(bus))
    for tag, port in bus.items():
        if not _PORT_TAG.fullmatch(tag) or not isinstance(port, dict):
            continue
        connected = _CONNECTED.get(_text(port.get("receptacle_status_key")) or "")
        link, most = _speeds(_text(port.get("current_speed_key")) or "")
        receptacle = _text(port.get("receptacle_id_key")) or ""
        yield ThunderboltPort(
            receptacle=int(receptacle) if _NUMBER.fullmatch(receptacle) else None,
            domain=_text(bus.get("domain_uuid_key")),
            connected=connected,
            link_bits_per_s=link if connected else None,
            most_bits_per_s=most,
            attached=attached if connected else (),
        )


def _speeds(text: str) -> tuple[int | None, int | None]:
    """What the link does and what the socket promises: words before the figure ("Up to", in any language) say which."""
    match = _SPEED.search(text)
    if match is None:
        return None, None
    bits = int(match[1]) * 1_000_000_000
    return (None, bits) if match.start() else (bits, None)


def _attached(item: dict[str, Any]) -> Attached:
    model = _text(item.get("device_name_key"))
    services = _dicts(item.get("services_title"))
    return Attached(
        name=_text(item.get("_name")) or model or "a device",
        model=model,
        domain=_text(item.get("domain_uuid_key")),
        offers_rdma=any(service.get("protocol_id_key") in _RDMA_PROTOCOL for service in services),
    )


def _below(bus: dict[str, Any]) -> Iterator[dict[str, Any]]:
    """Everything that hangs on a bus, also behind docks."""
    waiting = [bus]
    while waiting:
        items = list(_dicts(waiting.pop().get("_items")))
        yield from items
        waiting += items


def _dicts(value: Any) -> Iterator[dict[str, Any]]:
    return (item for item in value if isinstance(item, dict)) if isinstance(value, list) else iter(())


def _text(value: Any) -> str | None:
    return value.strip() or None if isinstance(value, str) else None


class _Section(NamedTuple):
    """A heading that is open while lines are indented as what it holds. content: how far its first line is."""

    indent: int
    content: int
    held: dict[str, Any]


def _outline(text: str) -> dict[str, Any]:
    """Indented text as the JSON form nests it: ports by tags, services in a list, all other headings as items.

    A heading ends also at a line that is indented more than itself but less than its content: what hangs on a port stands
    there.
    """
    root = _Section(-1, 0, {})
    sections = [root]
    for line in text.splitlines():
        content = line.strip()
        indent = len(line) - len(line.lstrip())
        if not content:
            continue
        while len(sections) > 1 and (indent <= sections[-1].indent or indent < sections[-1].content):
            sections.pop()
        if not sections[-1].content:
            sections[-1] = sections[-1]._replace(content=indent)
        held = sections[-1].held
        if content.endswith(":") and len(sections) < _MOST_NESTED:
            sections.append(_Section(indent, 0, _open(held, content[:-1])))
        elif ": " in content:
            key, _, value = content.partition(": ")
            held[_TEXT_KEYS.get(key, key)] = value
    return root.held


def _open(parent: dict[str, Any], heading: str) -> dict[str, Any]:
    section: dict[str, Any] = {"_name": heading}
    if _PORT_HEADING.fullmatch(heading):
        parent[f"receptacle_{sum(map(bool, map(_PORT_TAG.fullmatch, parent))) + 1}_tag"] = section
    elif heading == "Services":
        # The services lie one level below their heading, as items; so does the heading's own list in JSON.
        section["_items"] = parent.setdefault("services_title", [])
    else:
        parent.setdefault("_items", []).append(section)
    return section


# --- RDMA -----------------------------------------------------------------------------------------------------------


def parse_rdma(status: str, devices: str, states: str) -> Rdma:
    """What `rdma_ctl status`, `ibv_devices` and `ibv_devinfo` say together; a Mac that lists devices has it on."""
    active = _rdma_states(states)
    found = tuple(
        RdmaDevice(name=name, interface=interface, active=active.get(name))
        for name, interface in dict.fromkeys(_RDMA_NAME.findall(devices))
    )
    said = {"enabled": True, "disabled": False}.get(status.strip().lower())
    return Rdma(enabled=True if said is None and found else said, devices=found)


def _rdma_states(text: str) -> dict[str, bool]:
    states: dict[str, bool] = {}
    device = None
    for name, state in _RDMA_STATE.findall(text):
        device = name or device
        if state and device:
            states[device] = state == "ACTIVE"
    return states


# --- together -------------------------------------------------------------------------------------------------------


def surroundings(mac: MacFacts) -> Surroundings:
    """What a Mac's facts say of its interfaces. A bridge whose members are no hardware serves virtual machines."""
    kinds = {port.device: port.kind for port in mac.hardware}
    strange = {bridge.name for bridge in mac.bridges if mac.hardware and not kinds.keys() & {*bridge.members}}
    bridged = {
        bridge.name: kind_of_bridge(bridge.members, kinds, kinds.get(bridge.name, LinkKind.OTHER))
        for bridge in mac.bridges
    }
    return Surroundings(
        kinds=kinds | bridged,
        members={bridge.name: bridge.members for bridge in mac.bridges},
        bits_per_s=dict(_link_speeds(mac, mac.ports)),
        unusable=frozenset(strange | {device.name for device in mac.devices if device.active is False}),
    )


def _link_speeds(mac: MacFacts, ports: Iterable[ThunderboltPort]) -> Iterator[tuple[str, int]]:
    for port in ports:
        device = mac.device_of(port)
        if device and port.link_bits_per_s:
            yield device, port.link_bits_per_s
