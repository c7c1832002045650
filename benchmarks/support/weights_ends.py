"""The two ends of `benchmarks.weights`, each a process on a host of its own: one gives a model, the other fetches layers of it.

Each reads one line of JSON from standard input and writes one to standard output; the giving end lasts until its input ends.
"""

import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import msgspec

from protocol.model_digest import model_digest
from protocol.transport import KeyPair
from protocol.transport.asking import ZmqAnswerer, ZmqAsker, ZmqAskers
from protocol.transport.echo import measure
from protocol.values import Buffer, LayerRange, Peer
from workers.model.needed_tensors import needed_tensors
from workers.model.sparse_model import SparseModel
from workers.model.weights_fetch import Outside, WeightsFetcher
from workers.model.weights_source import WeightsSource

_MEASURED = 3  # times; the fastest counts


class Given(msgspec.Struct, frozen=True, kw_only=True):
    """What an end is told. model: its directory, for the giving end; the rest is for the other."""

    own: KeyPair
    other: str
    model: str = ""
    address: str = ""
    port: int = 0
    digest: str = ""
    layers: tuple[int, int] = (0, 1)
    root: str = ""


class Fetched(msgspec.Struct, frozen=True, kw_only=True):
    """link_bytes_per_s: as it was measured; fetched_bytes: all that was given; needed_bytes: of the tensors of the layers."""

    link_bytes_per_s: float
    seconds: float
    fetched_bytes: int
    needed_bytes: int


class _Counting:
    """A connection that counts what it is given."""

    def __init__(self, asker: ZmqAsker, counts: list[int]):
        self._asker = asker
        self._counts = counts
        self.ask, self.close = asker.ask, asker.close

    def receive(self, timeout_s: float) -> tuple[int, list[Buffer]] | None:
        answer = self._asker.receive(timeout_s)
        if answer is not None:
            self._counts.append(sum(map(len, answer[1])))
        return answer


def give(given: Given) -> None:
    """Until standard input ends."""
    path = Path(given.model)
    options: dict[str, Any] = {"listen": ("*",), "keys": given.own, "admits": lambda key: key == given.other}
    source = WeightsSource(lambda digest: path if digest == model_digest(path) else None)
    answerer = ZmqAnswerer(source.answer, **options)
    answerer.start()
    _say({"port": answerer.port})
    sys.stdin.read()


def fetch(given: Given) -> Fetched:
    """Some layers into a new folder."""
    endpoint = f"tcp://{given.address}:{given.port}"
    speeds = [found.bytes_per_s for _ in range(_MEASURED) if (found := measure(endpoint, given.other, given.own))]
    askers, counts = ZmqAskers(given.own), list[int]()
    needed: list[frozenset[str] | None] = []

    def noted(path: Path, ranges: Sequence[LayerRange]) -> frozenset[str] | None:
        needed.append(needed_tensors(path, ranges))
        return needed[-1]

    fetching = WeightsFetcher(
        Path(given.root),
        Outside(
            connect=lambda source: _Counting(askers.open(endpoint, source.public_key), counts),
            lost=lambda _: None,
            needed=noted,
        ),
    )
    source = Peer(endpoint=endpoint, public_key=given.other, answer_port=given.port)
    noted(fetching(given.digest, (), [source], lambda *_: None), ())  # imports and first connections are no fetching
    began = time.perf_counter()
    path = fetching(given.digest, [LayerRange(*given.layers)], [source], lambda *_: None)
    seconds = time.perf_counter() - began
    opened = SparseModel.open(path)
    assert opened is not None
    return Fetched(
        link_bytes_per_s=max(speeds),
        seconds=seconds,
        fetched_bytes=sum(counts),
        needed_bytes=sum(
            span.num_bytes for spans in opened.spans for span in spans if span.tensor in (needed[-1] or ())
        ),
    )


def _say(what: object) -> None:
    sys.stdout.buffer.write(msgspec.json.encode(what) + b"\n")
    sys.stdout.buffer.flush()


def main() -> int:
    """`give` or `fetch`, as the first argument says."""
    given = msgspec.json.decode(sys.stdin.readline(), type=Given)
    if sys.argv[1] == "give":
        give(given)
    else:
        with tempfile.TemporaryDirectory(dir=Path.home()) as folder:
            _say(fetch(msgspec.structs.replace(given, root=folder)))
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
