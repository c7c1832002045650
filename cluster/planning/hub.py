"""Models of the Hugging Face hub: downloading one, and telling how far that is.

The hub's library downloads: what is complete stays in its cache, and a download that broke off goes on with the files that are
missing. It tells of its progress by bars, of which one stands in here that shows nothing.
"""

import json
import shutil
import struct
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

from cluster.planning.progress import StartProgress, amounts
from protocol.errors import ModelError

PATTERNS = ["*.json", "model*.safetensors", "*.py", "tokenizer.model", "*.tiktoken", "*.txt", "*.jsonl", "*.jinja"]


def download(hub_id: str, tell: Callable[[StartProgress], object]) -> Path:
    """The snapshot of a model, downloaded where it is not there yet; tell: called from several threads.

    Raises ModelError when the hub does not give it.
    """
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import DryRunError, HfHubHTTPError, LocalEntryNotFoundError

    try:
        try:
            files = snapshot_download(hub_id, allow_patterns=PATTERNS, dry_run=True, tqdm_class=_silent_bars())
            total = sum(file.file_size or 0 for file in files if file.will_download)
        except DryRunError:  # nobody can be asked; what is there may be enough
            total = 0
        bars = _silent_bars(_Counted(hub_id, total, tell))
        return Path(snapshot_download(hub_id, allow_patterns=PATTERNS, tqdm_class=bars))
    except (HfHubHTTPError, LocalEntryNotFoundError, OSError, ValueError) as error:
        raise ModelError(
            f"the model {hub_id} cannot be had from the hub ({_why(error)}); "
            "give --model a directory, or check the name and the network"
        ) from None


def cached(hub_id: str) -> Path | None:
    """The snapshot of a model in the hub's cache, None where it lacks a part of it."""
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import LocalEntryNotFoundError

    try:
        return Path(snapshot_download(hub_id, allow_patterns=PATTERNS, local_files_only=True))
    except (LocalEntryNotFoundError, OSError, ValueError):
        return None


def outline(hub_id: str, folder: Path) -> None:
    """Makes of a model of the hub what can be told without its weights: its configuration, and files of weights that have true
    headers and the right size, of which no byte of a tensor was fetched or takes room.

    Raises ModelError when the hub does not give that.
    """
    from huggingface_hub import HfApi, snapshot_download
    from huggingface_hub.errors import HfHubHTTPError, LocalEntryNotFoundError, NotASafetensorsRepoError

    try:
        told = snapshot_download(hub_id, allow_patterns=["config.json"], tqdm_class=_silent_bars())
        shutil.copyfile(Path(told) / "config.json", folder / "config.json")
        files = HfApi().get_safetensors_metadata(hub_id).files_metadata
    except NotASafetensorsRepoError:
        raise ModelError(
            f"the model {hub_id} of the hub has no safetensors files; choose one that was converted"
        ) from None
    except (HfHubHTTPError, LocalEntryNotFoundError, OSError, ValueError) as error:
        raise ModelError(
            f"the model {hub_id} cannot be asked for at the hub ({_why(error)}); check the name and the network"
        ) from None
    for name, found in files.items():
        tensors = {
            tensor: {"dtype": about.dtype, "shape": about.shape, "data_offsets": about.data_offsets}
            for tensor, about in found.tensors.items()
        }
        header = json.dumps(tensors).encode()
        with (folder / Path(name).name).open("wb") as file:
            file.write(struct.pack("<Q", len(header)) + header)
            file.truncate(8 + len(header) + max((about.data_offsets[1] for about in found.tensors.values()), default=0))


def _why(error: Exception) -> str:
    """Its first line that says something, as a clause."""
    line = next((line.strip() for line in str(error).splitlines() if line.strip()), type(error).__name__)
    return line.removeprefix("Got: ").rstrip(".")


class _Counted:
    """The bytes that came, of all that have to; tells only what looks different. The library has two bars for the same bytes, as they
    come and as they are written: the one that is ahead counts.
    """

    def __init__(self, hub_id: str, total: int, tell: Callable[[StartProgress], object]):
        self._hub_id = hub_id
        self._total = total
        self._tell = tell
        self._done = 0
        self._text = ""
        self._lock = threading.Lock()

    def __repr__(self) -> str:
        return f"_Counted({self._hub_id!r}, {self._done} of {self._total})"

    def reached(self, num_bytes: int) -> None:
        """A bar is at so many."""
        with self._lock:
            self._done = min(max(self._done, num_bytes), self._total)
            text = f"downloading {self._hub_id}: {amounts(self._done, self._total)}"
            if self._total and text != self._text:
                self._text = text
                self._tell(StartProgress(text=text, done=self._done, total=self._total))


def _silent_bars(counted: _Counted | None = None) -> Any:
    """A class of the library's bars that show nothing; those of bytes are counted."""
    from huggingface_hub.utils import tqdm

    class Bar(tqdm):
        def __init__(self, *arguments: Any, unit: str = "it", **options: Any):
            super().__init__(*arguments, **options | {"disable": True})
            self._counts = unit == "B"

        def update(self, n: float | None = 1) -> None:
            self.n += int(n or 0)
            if self._counts and counted is not None:
                counted.reached(self.n)

    return Bar
