"""Measures every way to the other hosts of the plan, now and then and whenever there is a new plan: a thread of its own."""

import logging
import threading
from collections.abc import Callable
from typing import Protocol

from protocol.interfaces.reading import read_interfaces
from protocol.interfaces.values import LinkKind
from protocol.messages import LinksMeasured
from protocol.transport.addressing import endpoint_of, host_of
from protocol.transport.echo import Measured
from protocol.values import Address, Peer
from workers.link_choice import LinkChoice

log = logging.getLogger(__name__)

PROBE_EVERY_S = 10.0
_WHILE_BUSY_S = 2.0
# A new plan reaches its workers one after the other, and who has none yet answers nobody: so a few times soon after it.
_SOON_S, _NUM_SOON = 1.0, 3
# How much goes through an address that is not in use is measured one time in so many: that takes a slow one for long.
_LOAD_EVERY = 6


class Measure(Protocol):
    """How fast the echo of a peer is at an endpoint, None where it does not answer; `protocol.transport.echo.measure`."""

    def __call__(self, endpoint: str, public_key: str, *, with_load: bool) -> Measured | None: ...


class LinkProber:
    """See the module. is_busy: whether requests run, which are not to be disturbed; report: told what was found each time."""

    def __init__(
        self,
        name: str,
        choice: LinkChoice,
        measure: Measure,
        *,
        is_busy: Callable[[], bool],
        report: Callable[[LinksMeasured], object],
    ):
        self._name = name
        self._choice = choice
        self._measure = measure
        self._is_busy = is_busy
        self._report = report
        self._wake = threading.Event()
        self._num_turns = 0  # since there were other peers
        choice.renewed = self._renewed

    def __repr__(self) -> str:
        return f"LinkProber({self._name})"

    def start(self) -> None:
        """Begin, on a thread that lasts as long as the process."""
        threading.Thread(target=self.run, name="links", daemon=True).start()

    def run(self) -> None:
        """For ever."""
        while True:
            self._wake.wait(self._pause_s())
            self._wake.clear()
            self.turn()

    def _renewed(self) -> None:
        """There are other peers. On the thread that sends."""
        self._num_turns = 0
        self._wake.set()

    def _pause_s(self) -> float:
        if self._num_turns < _NUM_SOON:
            return _SOON_S
        return _WHILE_BUSY_S if self._is_busy() else PROBE_EVERY_S

    def turn(self) -> None:
        """Measure all, and say so."""
        self._num_turns += 1
        elsewhere = self._choice.elsewhere
        if elsewhere and not self._choice.kinds:
            self._choice.kinds = _kinds()
        for peer in elsewhere.values():
            self._choice.measured({each.endpoint: self._measured(peer, each) for each in peer.addresses})
        if links := self._choice.figures():
            self._report(LinksMeasured(worker=self._name, links=links, move=self._choice.verdict()))

    def _measured(self, peer: Peer, address: Address) -> Measured | None:
        with_load = self._may_load(address) and not self._is_busy()
        return self._measure(answerer_at(address.endpoint, peer), peer.public_key, with_load=with_load)

    def _may_load(self, address: Address) -> bool:
        is_due = self._num_turns <= _NUM_SOON or self._num_turns % _LOAD_EVERY == 0
        return is_due or self._choice.is_in_use(address.endpoint)


def _kinds() -> dict[str, LinkKind]:
    """Of this host's interfaces. Takes seconds on a Mac."""
    try:
        return {each.name: each.kind for each in read_interfaces()}
    except OSError as error:
        log.warning("the interfaces of this host cannot be read: %s", error)
        return {"": LinkKind.OTHER}


def answerer_at(endpoint: str, peer: Peer) -> str:
    """Where a peer answers, at the address of its inbox."""
    return endpoint_of(host_of(endpoint), peer.answer_port)
