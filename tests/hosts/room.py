"""The room in which the hosts of a bed stand: the cables between them and the wifi, in a network namespace of its own.

Every interface of a host is one end of a veth whose other end is here, where faults are made: a host sees what they do and
not why. A cable is a bridge with an end for each of its two hosts, so that an interface outlives the power of the host at the
other end, without carrier. The namespace lives as long as the process of the wifi.
"""

import itertools
import subprocess
import sys
from dataclasses import dataclass, field
from pathlib import Path

from tests.hosts.host import Host
from tests.hosts.tools import ENDS_WITH_US, ENVIRONMENT, TOOL_LIMIT_S, tool
from tests.support.running_cluster import wait_until

# What the share of a slowed cable is a share of; one that is not slowed is as fast as the machine.
CABLE_BITS_PER_S = 10e9
WIFI_BITS_PER_S = 100e6
WIFI_DELAY_S = 0.002
WIFI = "wlan0"

DROP = "drop"
RESET = "meta l4proto tcp reject with tcp reset"


@dataclass
class Cable:
    """Between two hosts. `faults` says, by the name of the sender, what nftables does with all that it sends."""

    ends: tuple[str, str]
    number: int
    faults: dict[str, str] = field(default_factory=dict)
    plugged: bool = True
    share: float | None = None

    @property
    def bridge(self) -> str:
        return "".join(self.ends)

    def address(self, name: str) -> str:
        return f"10.88.{self.number}.{self.ends.index(name) + 1}"


class Room:
    """Cables by the names of their two hosts, and who is plugged in."""

    def __init__(self, names: str):
        pairs = itertools.combinations(names, 2)
        self.cables = {frozenset(ends): Cable(ends, number) for number, ends in enumerate(pairs, 1)}
        self._names = names
        self._present: set[str] = set()
        self._wifi: subprocess.Popen[bytes] | None = None

    def open(self) -> None:
        """An empty room: wifi and cables that lead nowhere."""
        wifi = (
            Path(__file__).with_name("wifi.py"),
            WIFI_DELAY_S,
            WIFI_BITS_PER_S,
            *(f"wifi-{name}" for name in self._names),
        )
        argv = [*ENDS_WITH_US, "unshare", "--net", sys.executable, "-I", "-S", *wifi]
        self._wifi = subprocess.Popen(
            [str(each) for each in argv], stdin=subprocess.DEVNULL, env=ENVIRONMENT, start_new_session=True
        )
        ours = Path("/proc/self/ns/net").readlink()
        there = Path(f"/proc/{self._wifi.pid}/ns/net")
        wait_until(lambda: there.readlink() != ours, "a network namespace for the room")
        self._do("sysctl", "-qw", "net.ipv6.conf.default.disable_ipv6=1")  # nobody but the hosts says anything
        self._ip(
            f"link add {cable.bridge} type bridge mcast_snooping 0\nlink set {cable.bridge} up"
            for cable in self.cables.values()
        )

    def close(self) -> None:
        """The room is gone, and all interfaces that end here."""
        if self._wifi is not None:
            self._wifi.kill()
            self._wifi.wait(TOOL_LIMIT_S)

    def address(self, name: str, interface: str) -> str:
        """Of wlan0, or of tb-`peer`."""
        if interface == WIFI:
            return f"10.99.0.{self._names.index(name) + 1}"
        return self.cable(name, interface.removeprefix("tb-")).address(name)

    def cable(self, one: str, other: str) -> Cable:
        return self.cables[frozenset((one, other))]

    def plug_in(self, host: Host) -> None:
        """All interfaces of a host that has booted."""
        here, there = [], ["link set lo up", f"link set {WIFI} gso_max_segs 1"]
        for cable, interface, end in self._ends(host.name):
            mac = f"02:74:64:00:{cable.number if cable else 0:02x}:{host.number:02x}"
            here += [
                f"link add {end} type veth peer name {interface} address {mac} netns {host.pid}",
                f"link set {end} master {cable.bridge}" if cable else f"link set {end} up",
            ]
            there += [
                f"addr add {self.address(host.name, interface)}/{30 if cable else 24} dev {interface}",
                f"link set {interface} up",
            ]
        self._ip(here)
        tool(
            "nsenter",
            "-t",
            host.pid,
            "-n",
            "ip",
            "-batch",
            "-",
            text="\n".join([*there, f"route add 224.0.0.0/4 dev {WIFI}"]),
        )
        self._present.add(host.name)
        self._apply(*(cable for cable, *_ in self._ends(host.name) if cable))

    def pull_out(self, host: Host) -> None:
        """All interfaces of a host at once: nothing of what its processes say at their end reaches anybody."""
        self._present.discard(host.name)
        self._apply(*(cable for cable, *_ in self._ends(host.name) if cable))
        self._ip(f"link del {end}" for _, _, end in self._ends(host.name))

    def spoil(
        self,
        one: str,
        other: str,
        faults: dict[str, str] | None = None,
        *,
        plugged: bool = True,
        share: float | None = None,
    ) -> None:
        """A cable has these faults too."""
        cable = self.cable(one, other)
        cable.faults |= faults or {}
        cable.plugged &= plugged
        cable.share = cable.share if share is None else share
        self._apply(cable)

    def heal(self) -> None:
        """No cable has a fault."""
        for cable in self.cables.values():
            cable.faults, cable.plugged, cable.share = {}, True, None
        self._apply(*self.cables.values())

    def _apply(self, *cables: Cable) -> None:
        """What the cables say, to the ends that are there."""
        links, queues, rules = [], [], []
        for cable in cables:
            works = cable.plugged and self._present.issuperset(cable.ends)
            rules += [
                f"table netdev {cable.bridge}",
                f"delete table netdev {cable.bridge}",
                f"table netdev {cable.bridge} {{",
            ]
            for name, other in (cable.ends, cable.ends[::-1]):
                end = f"{name}-{other}"
                if name not in self._present:
                    continue
                links.append(f"link set {end} {'up' if works else 'down'}")
                queues.append(f"qdisc replace dev {end} root {_queue(cable.share)}")
                if name in cable.faults:
                    hook = f'type filter hook ingress device "{end}" priority 0'
                    rules.append(f"chain {end} {{ {hook}; {cable.faults[name]}; }}")
            rules.append("}")
        self._ip(links)
        self._do("tc", "-batch", "-", text="\n".join(queues))
        self._do("nft", "-f", "-", text="\n".join(rules))

    def _ends(self, name: str) -> list[tuple[Cable | None, str, str]]:
        """The cable (None: wifi) of each interface of a host, the interface, and its end here."""
        others = [other for other in self._names if other != name]
        return [(None, WIFI, f"wifi-{name}")] + [(self.cable(name, to), f"tb-{to}", f"{name}-{to}") for to in others]

    def _ip(self, lines) -> None:
        self._do("ip", "-batch", "-", text="\n".join(lines))

    def _do(self, *argv: object, text: str = "") -> None:
        tool("nsenter", "-t", self._wifi.pid, "-n", *argv, text=text)


def _queue(share: float | None) -> str:
    """Of an end, towards its host: as it comes, or a token bucket that holds ten milliseconds."""
    if share is None:
        return "noqueue"
    bits_per_s = int(CABLE_BITS_PER_S * share)
    return f"tbf rate {bits_per_s}bit burst {max(bits_per_s // 800, 1 << 16)} latency 50ms"
