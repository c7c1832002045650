"""Where this machine keeps its models and what it remembers of them: a model is named by its digest everywhere else."""

from pathlib import Path
from typing import Protocol

from protocol.errors import ModelError


class Places(Protocol):
    """What knows where models lie; `protocol.home.Home`."""

    def model_place(self, digest: str) -> Path | None: ...


class ModelShelf:
    """places: where models lie; cache: a folder of our own for what is kept of them."""

    def __init__(self, places: Places, cache: Path):
        self._places = places
        self.cache = cache

    def __repr__(self) -> str:
        return f"ModelShelf({str(self.cache)!r})"

    def place(self, digest: str) -> Path:
        """The directory of a model. Raises ModelError when it is not on this machine."""
        path = self._places.model_place(digest)
        if path is None:
            raise ModelError("this machine does not have the model; put it there and try again")
        return path
