"""Where this machine keeps its models and what it remembers of them: a model is named by its digest everywhere else."""

import threading
from collections.abc import Sequence
from pathlib import Path
from typing import Protocol

from protocol.errors import ModelError, TandemError
from protocol.model_search import find_model
from protocol.values import LayerRange, Peer

_DIGESTS = "digests.json"


class Places(Protocol):
    """What knows where models lie; `protocol.home.Home`."""

    def model_place(self, digest: str) -> Path | None: ...


class LoadProgressed(Protocol):
    """Told the bytes of weights in memory; before there are any, how many came from other hosts, and of how many."""

    def __call__(self, num_bytes: int, fetched_bytes: int = 0, wanted_bytes: int = 0) -> object: ...


class Overtaken(TandemError):
    """Something newer is wanted of this worker; what was fetched stays."""


class Fetch(Protocol):
    """What brings models here from other hosts; `workers.model.weights_fetch.WeightsFetcher`."""

    def find(self, digest: str) -> Path | None: ...

    def __call__(
        self,
        digest: str,
        ranges: Sequence[LayerRange],
        sources: Sequence[Peer],
        progress: "FetchProgressed",
    ) -> Path: ...


class FetchProgressed(Protocol):
    """Told how many bytes came, and of how many."""

    def __call__(self, fetched_bytes: int, wanted_bytes: int, /) -> object: ...


class ModelShelf:
    """places: where models lie; cache: a folder of our own for what is kept of them; folders: where else to look for one;
    fetch: brings what is missing, None where nothing can.
    """

    def __init__(self, places: Places, cache: Path, folders: Sequence[Path] = (), fetch: Fetch | None = None):
        self._places = places
        self._folders = folders
        self._fetch = fetch
        self._whole: dict[str, Path] = {}
        self._searching = threading.Lock()
        self.cache = cache

    def __repr__(self) -> str:
        return f"ModelShelf({str(self.cache)!r})"

    def find(self, digest: str) -> Path | None:
        """The directory of a model, or of what was fetched of it; on any thread."""
        return self._find_whole(digest) or (None if self._fetch is None else self._fetch.find(digest))

    def ensure(
        self, digest: str, ranges: Sequence[LayerRange], sources: Sequence[Peer], progress: LoadProgressed
    ) -> Path:
        """The directory of a model, with the weights that these ranges need; what this machine lacks comes from others.

        Raises:
            ModelError: it is not to be had.
            Overtaken: see there.
        """
        path = self._find_whole(digest)
        if path is not None:
            return path
        if self._fetch is None:
            where = ", ".join(map(str, self._folders))
            raise ModelError(
                "this machine does not have the model" + (f" in {where}; put it there and join again" if where else "")
            )
        return self._fetch(digest, ranges, sources, lambda fetched, wanted: progress(0, fetched, wanted))

    def _find_whole(self, digest: str) -> Path | None:
        known = self._whole.get(digest)
        if known is not None and (known / "config.json").is_file():
            return known
        path = self._places.model_place(digest)
        if path is None and self._folders:
            with self._searching:  # who comes second need not read what the first has read
                path = find_model(digest, self._folders, self.cache / _DIGESTS)
        if path is not None:
            self._whole[digest] = path
        return path
