"""Which address of each peer a worker sends to: the fastest of those that work, by measurement.

Before anything is measured, one in a network that both hosts are in; the kind of interface only breaks ties. An address that
failed comes last until it has answered for HEALTHY_S again. What the configuration prefers comes before what is faster and after
what works; what it excludes is none of a peer's addresses here. A link stays where it is for its whole epoch, so what changes here
shows in the next one; `verdict` says when one would be worth it. Called by the thread that sends and by the one that measures.
"""

import threading
from collections.abc import Callable, Mapping
from enum import StrEnum

import msgspec

from protocol.interfaces.names import NO_NAMES, LinkNames
from protocol.interfaces.values import LinkKind
from protocol.messages import LinkFigures
from protocol.transport.addressing import Network, host_of, interface_to, interfaces_to, permitted_there, this_host
from protocol.transport.echo import Measured
from protocol.values import Address, Peer

HEALTHY_S = 30.0
# What goes between stages: the hidden states of a few rows up to those of a chunk of a prompt.
PAYLOAD_BYTES = 256 << 10
# Another address must be so many times faster for a move; this one so many times slower than it was for one at once, each time
# that it is looked at so often: a busy machine answers late now and then.
_WORTH_A_MOVE, _TOO_SLOW, _TIMES_SLOW = 1.5, 3.0, 2


class MoveAdvice(StrEnum):
    """Whether another epoch, with links chosen anew, would be worth it."""

    STAY = ""
    WHEN_IDLE = "idle"
    NOW = "now"


class LinkChoice:
    """See the module. networks: this host's own, with their interfaces; kinds: of its interfaces; now: a clock that never goes
    back; names: what is preferred and excluded. `renewed` is called when there are other peers.
    """

    def __init__(
        self,
        networks: Mapping[Network, str],
        kinds: Mapping[str, LinkKind],
        now: Callable[[], float],
        names: LinkNames = NO_NAMES,
    ):
        self._networks = networks
        self._names = names
        self.kinds = kinds
        self.renewed: Callable[[], object] = lambda: None
        self._now = now
        self._lock = threading.Lock()
        self._peers: dict[str, Peer] = {}
        self._in_use: dict[str, str] = {}  # the endpoint, by the peer's key
        self._fastest: dict[str, float] = {}  # seconds of a payload when it was best, by endpoint
        self._num_slow = 0
        self._measured: dict[str, Measured] = {}
        self._healthy_at: dict[
            str, float
        ] = {}  # from when on one that failed may be used, inf while it does not answer

    def __repr__(self) -> str:
        return f"LinkChoice({', '.join(self._in_use.values())})"

    # --- for the thread that sends

    def renew(self, peers: Mapping[str, Peer]) -> None:
        """A new epoch with these peers, by worker."""
        with self._lock:
            self._peers = {name: self.permitted(peer) for name, peer in peers.items()}
            self._in_use.clear()
        self.renewed()

    def choose(self, peer: Peer) -> str | None:
        """The endpoint to send to, for the whole epoch; None where all that it has are excluded."""
        endpoint = self.best(peer)
        if endpoint is not None and _is_apart(peer):
            with self._lock:
                self._in_use[peer.public_key] = endpoint
        return endpoint

    def best(self, peer: Peer) -> str | None:
        """The endpoint at which `choose` would send to a peer now, without any promise."""
        if not _is_apart(peer):
            return peer.endpoint
        addresses = self.permitted(peer).addresses
        with self._lock:
            return min(addresses, key=self._rank).endpoint if addresses else None

    def permitted(self, peer: Peer) -> Peer:
        """A peer as far as it may be used."""
        if not self._names.exclude:
            return peer
        return msgspec.structs.replace(peer, addresses=permitted_there(peer.addresses, self._names, self._networks))

    def knows(self, peer: Peer) -> bool:
        """Whether each of its addresses was measured, or failed, before."""
        with self._lock:
            return all(each.endpoint in self._measured or each.endpoint in self._healthy_at for each in peer.addresses)

    def lost(self, endpoint: str) -> None:
        """A link over it broke."""
        with self._lock:
            self._healthy_at[endpoint] = float("inf")

    # --- for the thread that measures

    @property
    def elsewhere(self) -> dict[str, Peer]:
        """Peers on other hosts that can be measured, by worker."""
        with self._lock:
            return {name: peer for name, peer in self._peers.items() if _is_elsewhere(peer)}

    def is_in_use(self, endpoint: str) -> bool:
        """Whether anything is sent there in this epoch."""
        with self._lock:
            return endpoint in self._in_use.values()

    def measured(self, found: Mapping[str, Measured | None]) -> None:
        """What was found at every endpoint of a peer, None where nobody answered.

        One that is silent everywhere is gone, or does not admit this worker yet: that is no address's fault.
        """
        if not any(found.values()):
            return
        with self._lock:
            for endpoint, figures in found.items():
                if figures is None:
                    self._healthy_at[endpoint] = float("inf")
                else:
                    self._answered(endpoint, figures)

    def verdict(self) -> MoveAdvice:
        """Of all peers the most urgent. Asked once after each measurement."""
        with self._lock:
            used = [peer for peer in self._peers.values() if peer.public_key in self._in_use and _is_elsewhere(peer)]
            found = {self._verdict(peer) for peer in used}
            worst = max(found, key=list(MoveAdvice).index, default=MoveAdvice.STAY)
            self._num_slow = self._num_slow + 1 if worst is MoveAdvice.NOW else 0
        return MoveAdvice.WHEN_IDLE if 0 < self._num_slow < _TIMES_SLOW else worst

    def figures(self) -> tuple[LinkFigures, ...]:
        """Every address of every peer elsewhere, as it was measured last."""
        with self._lock:
            return tuple(
                self._figure(name, peer, address)
                for name, peer in self._peers.items()
                if _is_elsewhere(peer)
                for address in peer.addresses
            )

    # --- under the lock

    def _answered(self, endpoint: str, found: Measured) -> None:
        if self._is_silent(endpoint):
            self._healthy_at[endpoint] = self._now() + (HEALTHY_S if endpoint in self._measured else 0.0)
        known = self._measured.get(endpoint)
        if found.bytes_per_s == float("inf") and known is not None:
            found = Measured(round_trip_s=found.round_trip_s, bytes_per_s=known.bytes_per_s)
        self._measured[endpoint] = found
        self._fastest[endpoint] = min(self._fastest.get(endpoint, float("inf")), found.seconds(PAYLOAD_BYTES))

    def _rank(self, address: Address) -> tuple[int, int, float, bool, int]:
        """The least is the best. One that answers again, if only since a moment ago, comes before one that does not."""
        seconds = self._seconds(address.endpoint)
        interface = interface_to(address.endpoint, self._networks)
        kind = list(LinkKind).index(self.kinds.get(interface or "", LinkKind.OTHER))
        trouble = 2 if self._is_silent(address.endpoint) else int(self._is_down(address.endpoint))
        return trouble, self._preference(address.endpoint), seconds, interface is None, kind

    def _preference(self, endpoint: str) -> int:
        return self._names.preference(host_of(endpoint), interfaces_to(endpoint, self._networks))

    def _seconds(self, endpoint: str) -> float:
        found = self._measured.get(endpoint)
        return float("inf") if found is None else found.seconds(PAYLOAD_BYTES)

    def _is_silent(self, endpoint: str) -> bool:
        return self._healthy_at.get(endpoint) == float("inf")

    def _is_down(self, endpoint: str) -> bool:
        return self._healthy_at.get(endpoint, 0.0) > self._now()

    def _verdict(self, peer: Peer) -> MoveAdvice:
        used = self._in_use[peer.public_key]
        best = min(peer.addresses, key=self._rank).endpoint
        if best == used or self._is_down(best) or best not in self._measured:
            return MoveAdvice.STAY
        is_wanted = self._is_down(used) or self._preference(best) < self._preference(used)
        if not is_wanted and self._seconds(used) <= _WORTH_A_MOVE * self._seconds(best):
            return MoveAdvice.STAY
        is_slow = self._is_down(used) or self._seconds(used) > _TOO_SLOW * self._fastest.get(used, float("inf"))
        return MoveAdvice.NOW if is_slow else MoveAdvice.WHEN_IDLE

    def _figure(self, name: str, peer: Peer, address: Address) -> LinkFigures:
        interface = interface_to(address.endpoint, self._networks) or ""
        found = self._measured.get(address.endpoint)
        is_known = found is not None and not self._is_silent(address.endpoint)
        return LinkFigures(
            to=name,
            interface=interface,
            kind=self.kinds.get(interface, LinkKind.OTHER),
            address=address.endpoint,
            round_trip_us=round(found.round_trip_s * 1e6) if found is not None and is_known else None,
            bytes_per_s=round(found.bytes_per_s)
            if found is not None and is_known and found.bytes_per_s < 1e15
            else None,
            in_use=self._used(peer) == address.endpoint,
        )

    def _used(self, peer: Peer) -> str:
        """Where is sent to, or will be once there is something to send."""
        return self._in_use.get(peer.public_key) or min(peer.addresses, key=self._rank).endpoint


def _is_apart(peer: Peer) -> bool:
    return peer.host != this_host() and bool(peer.addresses)


def _is_elsewhere(peer: Peer) -> bool:
    return _is_apart(peer) and peer.answer_port != 0
