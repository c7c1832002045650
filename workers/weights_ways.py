"""By which way models are fetched from another host: the fastest address, measured where nobody has measured it before."""

import threading
from collections import defaultdict
from collections.abc import Callable
from pathlib import Path

from protocol.transport.addressing import this_host
from protocol.transport.asking import ZmqAskers
from protocol.transport.keys import KeyPair
from protocol.values import Peer
from workers.link_choice import LinkChoice
from workers.link_prober import Measure, answerer_at
from workers.model.needed_tensors import needed_tensors
from workers.model.weights_fetch import Outside, Silent, WeightsFetcher


class WeightsWays:
    """choice: what is known of addresses, by everything that sends; measure: as of `LinkProber`. On any thread."""

    def __init__(self, choice: LinkChoice, measure: Measure):
        self._choice = choice
        self._measure = measure
        self._locks: defaultdict[str, threading.Lock] = defaultdict(threading.Lock)
        self._in_use: dict[str, str] = {}

    def __repr__(self) -> str:
        return f"WeightsWays({self._in_use})"

    def endpoint(self, source: Peer) -> str:
        """Where to ask it. Measuring takes a moment for each of its addresses, until it answers. Raises Silent where it may not be."""
        with self._locks[source.public_key]:
            self._learn(self._choice.permitted(source))
            best = self._choice.best(source)
            if best is None:
                raise Silent("links.exclude here leaves no address of a host that has it")
            self._in_use[source.public_key] = best
        return answerer_at(best, source)

    def _learn(self, source: Peer) -> None:
        if source.host == this_host() or not source.answer_port or self._choice.knows(source):
            return
        found = {
            each.endpoint: self._measure(answerer_at(each.endpoint, source), source.public_key, with_load=True)
            for each in source.addresses
        }
        self._choice.measured(found)

    def lost(self, source: Peer) -> None:
        """It does not answer there."""
        if (endpoint := self._in_use.get(source.public_key)) is not None:
            self._choice.lost(endpoint)


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
