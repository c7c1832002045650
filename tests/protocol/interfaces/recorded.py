"""Three Macs as their commands and psutil would show them, of made-up names and addresses in the shapes of macOS.

The studio (macOS 26, Thunderbolt 5) has two cables to the laptop, one of them slow, and a dock with a network card; bridge0
and RDMA are on. The laptop (27, Thunderbolt 5) has neither, and a third cable to the mini (27, Thunderbolt 4), whose
bridge0 has a member with an address of its own.
"""

import re
import socket
from collections.abc import Callable, Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import Any

from hypothesis import strategies as st

from protocol.interfaces.macos import surroundings
from protocol.interfaces.reading import choose, read_mac
from protocol.interfaces.values import HostFacts

FIXTURES = Path(__file__).parent / "fixtures"
FOLDERS = ("studio_26", "laptop_27", "mini_27")
FILES = {
    ("networksetup", "-listallhardwareports"): "networksetup.txt",
    ("system_profiler", "SPThunderboltDataType", "-json"): "thunderbolt.json",
    ("system_profiler", "SPThunderboltDataType"): "thunderbolt.txt",
    ("ifconfig",): "ifconfig.txt",
    ("rdma_ctl", "status"): "rdma_ctl.txt",
    ("ibv_devices",): "ibv_devices.txt",
    ("ibv_devinfo",): "ibv_devinfo.txt",
}
# Every output that there is: without a device there is nothing that `ibv_devinfo` could say.
ALL = [(folder, file) for folder in FOLDERS for file in FILES.values() if (FIXTURES / folder / file).exists()]


def text_of(folder: str, file: str) -> str:
    return (FIXTURES / folder / file).read_text(encoding="utf-8")


def mutated(text: str, draw: Callable[[st.SearchStrategy[Any]], Any]) -> str:
    """A text of which some pieces are gone or others."""
    for _ in range(draw(st.integers(1, 4))):
        start = draw(st.integers(0, len(text)))
        end = draw(st.integers(start, min(len(text), start + 200)))
        text = text[:start] + draw(st.text(max_size=12)) + text[end:]
    return text


class Commands:
    """Runs nothing: prints what one Mac would. A command without a file is not there, as on an older macOS."""

    def __init__(self, folder: str, without: Sequence[str] = ()):
        self._folder = folder
        self._without = without

    def __call__(self, command: Sequence[str]) -> str:
        file = FILES[tuple(command)]
        if file in self._without:
            raise FileNotFoundError(command[0])
        return text_of(self._folder, file)


def entry(address: str) -> SimpleNamespace:
    return SimpleNamespace(family=socket.AF_INET6 if ":" in address else socket.AF_INET, address=address)


def state(*, up: bool = True, mtu: int = 1500, speed: int = 0, flags: str = "up,broadcast,running") -> SimpleNamespace:
    return SimpleNamespace(isup=up, mtu=mtu, speed=speed, flags=flags)


def psutil_of(folder: str) -> tuple[dict[str, list[SimpleNamespace]], dict[str, SimpleNamespace]]:
    """psutil's addresses and states of what `ifconfig` shows."""
    sections = re.split(r"^(?=\w+: flags)", text_of(folder, "ifconfig.txt"), flags=re.MULTILINE)[1:]
    addresses, states = {}, {}
    for section in sections:
        name, flags, mtu = re.match(r"(\w+): flags=\d+<(.*)> mtu (\d+)", section).groups()
        addresses[name] = [entry(address) for address in re.findall(r"inet6? (\S+)", section)]
        states[name] = state(up="RUNNING" in flags, mtu=int(mtu), flags=flags.lower())
    return addresses, states


def host(folder: str) -> HostFacts:
    mac = read_mac(Commands(folder))
    return HostFacts(host=folder.partition("_")[0], interfaces=choose(*psutil_of(folder), surroundings(mac)), mac=mac)
