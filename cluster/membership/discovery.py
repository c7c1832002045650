"""A cluster's door as the network tells of it: DNS service discovery by multicast (RFC 6762, RFC 6763).

What is announced says where a cluster lets workers in and which key it has, by a fingerprint. It grants nothing and anybody may
announce anything: whoever finds a cluster has its key from a token and proves it. Announcing never raises where it matters
and never holds the coordinator up: it has a thread of its own, which also sees when this machine's addresses change.
"""

import contextlib
import hashlib
import ipaddress
import logging
import queue
import re
import threading
import time
from collections.abc import Callable, Generator, Mapping, Sequence

import msgspec

from protocol.codec import PROTOCOL
from protocol.errors import TandemError
from protocol.transport.addressing import endpoint_of

log = logging.getLogger(__name__)

KIND = "_tandem._tcp.local."
BROWSE_S = 5.0
LOOK_EVERY_S = 30.0
CLOSE_S = 3.0
_DETAILS_MS = 1500
_MOST_ADDRESSES = 16
_NAME_CHARACTERS = 32
_FINGERPRINT = re.compile(r"[0-9a-f]{32}")
_NUMBER = re.compile(r"[0-9]{1,9}")
_NO_NAME = re.compile(r"[^A-Za-z0-9._-]")


class DiscoveryFailed(TandemError):
    """This machine's network does not let clusters be announced or looked for."""


class AnnouncedDoor(msgspec.Struct, frozen=True, kw_only=True):
    """One announced door. instance: told apart by this; host: the machine's name; fingerprint: of the door's key; protocol: the
    number of the messages that it speaks; addresses: without port or scope.
    """

    instance: str
    host: str
    fingerprint: str
    protocol: int
    port: int
    addresses: tuple[str, ...]

    @property
    def endpoints(self) -> tuple[str, ...]:
        """Where the door may be."""
        return tuple(endpoint_of(address, self.port) for address in self.addresses)

    @property
    def properties(self) -> dict[str, str]:
        """The TXT record."""
        return {"protocol": str(self.protocol), "fingerprint": self.fingerprint, "host": self.host}


def fingerprint_of(public_key: str) -> str:
    """By which a key is recognized and not known: half of its SHA-256, hex."""
    return hashlib.sha256(public_key.encode()).hexdigest()[:32]


def own_door(host: str, incarnation: int, public_key: str, port: int, addresses: Sequence[str]) -> AnnouncedDoor:
    """What a coordinator announces of its door. Another incarnation is another instance: nobody takes it for one that is gone."""
    name = _as_name(host.partition(".")[0])
    fingerprint = fingerprint_of(public_key)
    return AnnouncedDoor(
        instance=f"{name} {fingerprint[:8]} {incarnation}",
        host=name,
        fingerprint=fingerprint,
        protocol=PROTOCOL,
        port=port,
        addresses=tuple(addresses),
    )


def read_door(
    instance: str, port: int | None, addresses: Sequence[str], properties: Mapping[bytes, bytes | None]
) -> AnnouncedDoor | None:
    """What somebody in the network announced, made harmless; None where it is no door of a cluster."""
    texts = {
        key.decode("ascii", "replace"): (value or b"").decode("ascii", "replace") for key, value in properties.items()
    }
    fingerprint, protocol = texts.get("fingerprint", ""), texts.get("protocol", "")
    if not (port and _NUMBER.fullmatch(protocol) and _FINGERPRINT.fullmatch(fingerprint)):
        return None
    return AnnouncedDoor(
        instance=instance,
        host=_as_name(texts.get("host", "")),
        fingerprint=fingerprint,
        protocol=int(protocol),
        port=port,
        addresses=tuple(filter(_is_address, addresses))[:_MOST_ADDRESSES],
    )


def _as_name(text: str) -> str:
    """As it can be shown on a terminal and stand in a name of the DNS."""
    return _NO_NAME.sub("-", text)[:_NAME_CHARACTERS] or "unnamed"


def _is_address(text: str) -> bool:
    """Whether it can be connected to; a link-local one of IPv6 says not on which link."""
    with contextlib.suppress(ValueError):
        address = ipaddress.ip_address(text)
        return not (address.is_multicast or (address.version == 6 and address.is_link_local))
    return False


# Announces a door and returns what takes it back; raises DiscoveryFailed.
Register = Callable[[AnnouncedDoor], Callable[[], None]]


class Announcer:
    """Keeps announced what `wanted` says now, None for nothing, from `start` to `close`."""

    def __init__(self, wanted: Callable[[], AnnouncedDoor | None], register: Register):
        self._wanted = wanted
        self._register = register
        self._announced: AnnouncedDoor | None = None
        self._take_back: Callable[[], None] | None = None
        self._said = ""
        self._ending = threading.Event()
        self._thread = threading.Thread(target=self._run, name="discovery", daemon=True)

    def __repr__(self) -> str:
        return f"Announcer({self._announced})"

    def start(self) -> None:
        """Begin. Returns at once."""
        self._thread.start()

    def turn(self) -> None:
        """Announce what is wanted now in place of what was; where that fails the next turn tries again."""
        wanted = self._wanted()
        if wanted == self._announced:
            return
        self._withdraw()
        if wanted is None:
            return
        try:
            self._take_back = self._register(wanted)
        except DiscoveryFailed as error:
            self._say(f"this cluster is not announced: {error}; workers find it by its address")
        else:
            self._announced = wanted
            self._say(f"announced as {wanted.instance!r} at {', '.join(wanted.addresses)}")

    def _say(self, text: str) -> None:
        """Once, however often it is so."""
        if text != self._said:
            self._said = text
            log.info("%s", text)

    def _withdraw(self) -> None:
        take_back, self._take_back, self._announced = self._take_back, None, None
        if take_back is not None:
            take_back()

    def _run(self) -> None:
        try:
            while not self._ending.is_set():
                self.turn()
                self._ending.wait(LOOK_EVERY_S)
            self._withdraw()
        except Exception:  # the end of this thread is nobody else's matter
            log.exception("the cluster is not announced any more")

    def end(self) -> None:
        """Take back what is announced, on the own thread; `close` waits for it."""
        self._ending.set()

    def close(self) -> None:
        """Nothing is announced any more, unless the network holds that up for CLOSE_S. What is being announced is not waited for."""
        self.end()
        if self._announced is not None:
            self._thread.join(CLOSE_S)


def register_by_mdns(door: AnnouncedDoor) -> Callable[[], None]:
    """A Register that tells the networks of the door's addresses, and no other. Takes 1.7 s."""
    import zeroconf

    info = zeroconf.ServiceInfo(
        KIND,
        f"{door.instance}.{KIND}",
        port=door.port,
        parsed_addresses=list(door.addresses),
        properties=door.properties,
        server=f"tandem-{door.fingerprint[:16]}.local.",
    )
    responder = None
    try:
        responder = zeroconf.Zeroconf(interfaces=list(door.addresses), use_asyncio=False)
        responder.register_service(info)
    except (OSError, RuntimeError, zeroconf.Error) as error:
        if responder is not None:
            responder.close()
        raise DiscoveryFailed(str(error) or type(error).__name__) from error

    def take_back() -> None:
        try:
            responder.close()
        except (OSError, RuntimeError, zeroconf.Error) as error:
            log.info("what was announced could not be taken back: %s", error)

    return take_back


def browse_by_mdns(limit_s: float = BROWSE_S) -> Generator[AnnouncedDoor, None, None]:
    """Doors that are announced in the networks of this machine, as they are found, for `limit_s`. Raises DiscoveryFailed."""
    import zeroconf

    names: queue.SimpleQueue[str] = queue.SimpleQueue()

    def heard(zeroconf: object, service_type: str, name: str, state_change: object) -> None:  # noqa: ARG001 - its names
        names.put(name)

    try:
        asker = zeroconf.Zeroconf(use_asyncio=False)
    except (OSError, RuntimeError, zeroconf.Error) as error:
        raise DiscoveryFailed(str(error) or type(error).__name__) from error
    deadline = time.monotonic() + limit_s
    with contextlib.closing(asker), contextlib.suppress(queue.Empty):
        zeroconf.ServiceBrowser(asker, KIND, handlers=[heard])
        while (left_s := deadline - time.monotonic()) > 0:
            name = names.get(timeout=left_s)
            info = asker.get_service_info(KIND, name, _DETAILS_MS)
            if info is None:
                continue
            door = read_door(name, info.port, info.parsed_addresses(), info.properties)
            if door is not None:
                yield door
