"""The wifi of a bed: one slow medium for all, `wifi.py DELAY_S BITS_PER_S PORT...`, run in the network namespace of the ports.

Every port is the far end of a host's wlan0. Frames cross one at a time, each so long after it was sent as it takes at
BITS_PER_S and DELAY_S more; what would wait longer than `_LONGEST_QUEUE_S` is lost. Knows addresses of Ethernet only, and
learns behind which port each is. A port that is gone (its host has no power) is looked for until it is back.
"""

import contextlib
import select
import socket
import sys
import time
from collections import deque

_LONGEST_QUEUE_S = 0.1
_LOOK_AGAIN_S = 0.05
# From Linux's if_packet.h and if_ether.h, which `socket` does not name.
_SOL_PACKET, _PACKET_VNET_HDR, _PACKET_IGNORE_OUTGOING, _ETH_P_ALL = 263, 15, 23, 3
# With each frame the kernel says what is still to be done to it (checksums): it goes on as it came.
_HEADER_BYTES = 10
_LARGEST_FRAME = 1 << 17


class Wifi:
    """Frames from each port to the one that its receiver is behind, or to all others."""

    def __init__(self, delay_s: float, bits_per_s: float, names: list[str]):
        self._delay_s = delay_s
        self._bits_per_s = bits_per_s
        self._names = names
        self._ports: dict[str, socket.socket] = {}
        self._behind: dict[bytes, str] = {}
        self._under_way: deque[tuple[float, str, bytes]] = deque()
        self._free_at = 0.0

    def run(self) -> None:
        """For ever."""
        while True:
            self._find_ports()
            until = self._under_way[0][0] if self._under_way else float("inf")
            wait_s = min(max(until - time.monotonic(), 0.0), _LOOK_AGAIN_S)
            readable = select.select(list(self._ports.values()), [], [], wait_s)[0]
            for name in [name for name, port in self._ports.items() if port in readable]:
                self._take(name)
            self._give(time.monotonic())

    def _find_ports(self) -> None:
        for name in self._names:
            if name not in self._ports:
                with contextlib.suppress(OSError):
                    self._ports[name] = _port(name)

    def _take(self, name: str) -> None:
        try:
            frame = self._ports[name].recv(_LARGEST_FRAME)
        except OSError:
            self._ports.pop(name).close()
            return
        receiver, sender = (frame[_HEADER_BYTES + at : _HEADER_BYTES + at + 6] for at in (0, 6))
        self._behind[sender] = name
        now = time.monotonic()
        begins = max(now, self._free_at)
        if begins > now + _LONGEST_QUEUE_S:
            return
        self._free_at = begins + 8 * len(frame) / self._bits_per_s
        targets = [self._behind[receiver]] if receiver in self._behind else self._names
        self._under_way += [(self._free_at + self._delay_s, target, frame) for target in targets if target != name]

    def _give(self, now: float) -> None:
        while self._under_way and self._under_way[0][0] <= now:
            _, name, frame = self._under_way.popleft()
            if name in self._ports:
                with contextlib.suppress(OSError):  # lost, as frames are
                    self._ports[name].send(frame)


def _port(name: str) -> socket.socket:
    port = socket.socket(socket.AF_PACKET, socket.SOCK_RAW, 0)
    try:
        port.setsockopt(_SOL_PACKET, _PACKET_VNET_HDR, 1)
        port.setsockopt(_SOL_PACKET, _PACKET_IGNORE_OUTGOING, 1)
        port.setblocking(False)
        port.bind((name, _ETH_P_ALL))
    except OSError:
        port.close()
        raise
    return port


if __name__ == "__main__":
    Wifi(float(sys.argv[1]), float(sys.argv[2]), sys.argv[3:]).run()
