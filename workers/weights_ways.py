"""By which way models are fetched from another host: the fastest address, measured where nobody has measured it before."""

import threading
from collections.abc import Callable
from pathlib import Path

from protocol.transport.addressing import endpoint_of, host_of, this_host
from protocol.transport.asking import ZmqAskers
from protocol.transport.keys import KeyPair
from protocol.values import Peer
from workers.link_choice import LinkChoice
from workers.link_prober import Measure, echo_of
from workers.model.needed_tensors import needed_tensors
from workers.model.weights_fetch import Outside, WeightsFetcher


class WeightsWays:
    """choice: what is known of addresses, by everything that sends; measure: as of `LinkProber`. On any thread."""

    def __init__(self, choice: LinkChoice, measure: Measure):
        self._choice = choice
        self._measure = measure
        self._lock = threading.Lock()
        self._in_use: dict[str, str] = {}

    def __repr__(self) -> str:
        return f"WeightsWays({self._in_use})"

    def endpoint(self, source: Peer) -> str:
        """Where to ask it. Measuring takes a moment for each of its addresses, once."""
        with self._lock:
            if source.host != this_host() and source.echo_port:
                for address in source.addresses:
                    if not self._choice.knows(address.endpoint):
                        found = self._measure(echo_of(source, address), source.public_key, with_load=True)
                        self._choice.measured(address.endpoint, found)
            best = self._choice.best(source)
            self._in_use[source.public_key] = best
        return endpoint_of(host_of(best), source.weights_port)

    def lost(self, source: Peer) -> None:
        """It does not answer there."""
        with self._lock:
            if source.public_key in self._in_use:
                self._choice.lost(self._in_use[source.public_key])


def fetcher(
    root: Path, keys: KeyPair, choice: LinkChoice, measure: Measure, *, is_overtaken: Callable[[], bool]
) -> WeightsFetcher:
    """What fetches models for a worker with these keys into the folder `root`."""
    askers, ways = ZmqAskers(keys), WeightsWays(choice, measure)
    return WeightsFetcher(
        root,
        Outside(
            connect=lambda source: askers.open(ways.endpoint(source), source.public_key),
            lost=ways.lost,
            needed=needed_tensors,
            is_overtaken=is_overtaken,
        ),
        keys.public,
    )
