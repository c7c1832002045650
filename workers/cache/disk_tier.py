"""Parts of caches as files: written in the background, renamed into place, believed only when every check holds.

A file is `KEY-CHECKSUM-TOKENS.safetensors` in a folder named after the model and the signature of everything else
(layers, dtype, kind of cache, version of this format), in mlx-lm's own prompt-cache layout. A file whose checksum is
wrong, whose name or whose inner key does not fit, or that mlx-lm cannot read is ignored, counted and removed. The least
recently used files go first.
"""

import hashlib
import io
import logging
import os
import queue
import shutil
import threading
from collections import OrderedDict
from pathlib import Path
from typing import Any

import mlx.core as mx
from mlx_lm.models.cache import load_prompt_cache, save_prompt_cache

from strategy.prefix import KEY_BYTES, Key

log = logging.getLogger(__name__)

FORMAT = "1"
_SUFFIX = ".safetensors"
_CHECKSUM_BYTES = 16


def signature(**parts: object) -> str:
    """A folder name for everything that must be equal for a cache to be of use."""
    text = "\n".join(f"{name}={value}" for name, value in sorted({**parts, "format": FORMAT}.items()))
    return hashlib.blake2b(text.encode(), digest_size=12).hexdigest()


def remove_stale(root: Path, model: str, *, limit_bytes: int) -> None:
    """Remove folders below `root` until all are within the limit: of other models first, least recently used first.

    model: what the names of the folders in use begin with.
    """
    try:
        folders = sorted(root.iterdir(), key=lambda folder: (folder.name.startswith(model), folder.stat().st_mtime))
        sizes = {folder: sum(file.stat().st_size for file in folder.iterdir()) for folder in folders}
    except OSError as error:  # another worker writes or removes at this moment, so it looks after the limit itself
        log.info("left stale folders alone: %s", error)
        return
    excess = sum(sizes.values()) - limit_bytes
    for folder, size in sizes.items():
        if excess > 0 and size:
            log.info("removed %s: together the folders are larger than the disk limit", folder.name)
            shutil.rmtree(folder, ignore_errors=True)
            excess -= size


class DiskTier:
    """The files of one signature. limit_bytes: of all files together. Reads and `write` belong to the MLX thread."""

    def __init__(self, folder: Path, *, limit_bytes: int):
        self._folder = folder
        self._limit_bytes = limit_bytes
        self._files: OrderedDict[Key, Path] = OrderedDict()  # least recently used first
        self._sizes: dict[Key, int] = {}
        self._tasks: queue.Queue[tuple[Path, bytes] | Path] = queue.Queue()
        self.num_ignored = 0
        folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        os.utime(folder)  # when it was opened last
        self._scan()
        threading.Thread(target=self._work, name="disk-tier", daemon=True).start()

    def __repr__(self) -> str:
        return f"DiskTier({self._folder.name}, {len(self._files)} files, {self.num_bytes} bytes)"

    @property
    def num_bytes(self) -> int:
        return sum(self._sizes.values())

    @property
    def num_tokens_by_key(self) -> list[tuple[Key, int]]:
        """Keys that are there, least recently used first, each with its number of tokens."""
        return [(key, int(path.name.split("-")[2].removesuffix(_SUFFIX))) for key, path in self._files.items()]

    def _scan(self) -> None:
        found = []
        for path in self._folder.iterdir():
            key = _key_of(path)
            if key is None:
                self._ignore(path, "its name is not one of ours")
            else:
                found.append((path.stat().st_mtime, key, path))
        for _, key, path in sorted(found):
            self._files[key] = path
            self._sizes[key] = path.stat().st_size

    def write(self, key: Key, entries: list[Any], num_tokens: int) -> None:
        """Write a part in the background; the least recently used files go where it needs their room."""
        if key in self._files:
            return
        buffer = io.BytesIO()
        save_prompt_cache(buffer, entries, {"format": FORMAT, "key": key.hex()})
        content = buffer.getvalue()
        path = self._folder / f"{key.hex()}-{_checksum(content)}-{num_tokens}{_SUFFIX}"
        self._files[key] = path
        self._sizes[key] = len(content)
        self._tasks.put((path, content))
        while self.num_bytes > self._limit_bytes and len(self._files) > 1:
            self.remove(next(iter(self._files)))

    def read(self, key: Key) -> list[Any] | None:
        """The entries of a part, evaluated; None when it is not there or cannot be believed."""
        path = self._files.get(key)
        if path is None:
            return None
        self.flush()
        try:
            content = path.read_bytes()
            if path.name.split("-")[1] != _checksum(content):
                raise ValueError("its checksum is wrong")
            entries, metadata = load_prompt_cache(str(path), return_metadata=True)
            if metadata != {"format": FORMAT, "key": key.hex()}:
                raise ValueError("it belongs elsewhere")
            mx.eval([entry.state for entry in entries])
        except (OSError, ValueError, RuntimeError, KeyError, TypeError, AttributeError) as error:
            self._files.pop(key)
            self._sizes.pop(key)
            self._ignore(path, str(error))
            return None
        self._files.move_to_end(key)
        return entries

    def remove(self, key: Key) -> None:
        """Delete a part's file, in the background."""
        path = self._files.pop(key, None)
        self._sizes.pop(key, None)
        if path is not None:
            self._tasks.put(path)

    def flush(self) -> None:
        """Return when everything asked for so far is on disk."""
        self._tasks.join()

    def _work(self) -> None:
        while True:
            self._do(self._tasks.get())
            self._tasks.task_done()

    def _do(self, task: tuple[Path, bytes] | Path) -> None:
        try:
            if isinstance(task, Path):
                task.unlink(missing_ok=True)
            else:
                path, content = task
                partial = path.with_suffix(".partial")
                partial.write_bytes(content)
                partial.replace(path)
        except OSError as error:
            log.warning("the disk tier cannot write: %s", error.strerror)

    def _ignore(self, path: Path, why: str) -> None:
        self.num_ignored += 1
        log.warning("ignored %s: %s", path.name, why)
        self._tasks.put(path)


def _checksum(content: bytes) -> str:
    return hashlib.blake2b(content, digest_size=_CHECKSUM_BYTES).hexdigest()


def _key_of(path: Path) -> Key | None:
    parts = path.name.removesuffix(_SUFFIX).split("-")
    if not path.name.endswith(_SUFFIX) or len(parts) != 3 or not parts[2].isdigit():
        return None
    try:
        key, checksum = bytes.fromhex(parts[0]), bytes.fromhex(parts[1])
    except ValueError:
        return None
    return key if len(key) == KEY_BYTES and len(checksum) == _CHECKSUM_BYTES else None
