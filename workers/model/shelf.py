"""Where this machine keeps its models and what it remembers of them: a model is named by its digest everywhere else."""

from collections.abc import Sequence
from pathlib import Path
from typing import Protocol

from protocol.errors import ModelError
from protocol.model_search import find_model


class Places(Protocol):
    """What knows where models lie; `protocol.home.Home`."""

    def model_place(self, digest: str) -> Path | None: ...


class ModelShelf:
    """places: where models lie; cache: a folder of our own for what is kept of them; folders: where else to look for one."""

    def __init__(self, places: Places, cache: Path, folders: Sequence[Path] = ()):
        self._places = places
        self._folders = folders
        self.cache = cache

    def __repr__(self) -> str:
        return f"ModelShelf({str(self.cache)!r})"

    def place(self, digest: str) -> Path:
        """The directory of a model. Raises ModelError when it is not on this machine."""
        path = self._places.model_place(digest) or find_model(digest, self._folders)
        if path is None:
            where = ", ".join(map(str, self._folders))
            raise ModelError(
                "this machine does not have the model" + (f" in {where}; put it there and join again" if where else "")
            )
        return path
