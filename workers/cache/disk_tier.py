"""Parts of caches as files: written in the background, renamed into place, believed only when every check holds.

A file is `KEY-CHECKSUM-TOKENS.safetensors` in a folder named after the model and the signature of everything else
(layers, dtype, kind of cache, version of this format), in mlx-lm's own prompt-cache layout. A file whose checksum is
wrong, whose name or whose inner key does not fit, or that mlx-lm cannot read is ignored, counted and removed. What could
not be written whole is as if it had never been asked for. The least recently used files go first.
"""

import contextlib
import hashlib
import io
import logging
import os
import queue
import re
import shutil
import stat
import threading
from collections import OrderedDict
from pathlib import Path
from typing import Any, NamedTuple

import mlx.core as mx
from mlx_lm.models.cache import load_prompt_cache, save_prompt_cache

from strategy.prefix import KEY_BYTES, Key

log = logging.getLogger(__name__)

FORMAT = "1"
_SUFFIX = ".safetensors"
_CHECKSUM_BYTES = 16
_TOKENS = re.compile("[0-9]{1,10}")
_MAX_TOKENS = 2**31 - 1


def signature(**parts: object) -> str:
    """A folder name for everything that must be equal for a cache to be of use."""
    text = "\n".join(f"{name}={value}" for name, value in sorted({**parts, "format": FORMAT}.items()))
    return hashlib.blake2b(text.encode(), digest_size=12).hexdigest()


def remove_stale(root: Path, model: str, *, limit_bytes: int) -> None:
    """Remove folders below `root` until all are within the limit: of other models first, least recently used first.

    model: what the names of the folders in use begin with.
    """
    try:
        found = [path for path in root.iterdir() if path.is_dir()]
        folders = sorted(found, key=lambda folder: (folder.name.startswith(model), folder.stat().st_mtime))
        sizes = {folder: sum(file.lstat().st_size for file in folder.iterdir()) for folder in folders}
    except OSError as error:  # another worker writes or removes at this moment, so it looks after the limit itself
        log.info("left stale folders alone: %s", error)
        return
    excess = sum(sizes.values()) - limit_bytes
    for folder, size in sizes.items():
        if excess > 0 and size:
            log.info("removed %s: together the folders are larger than the disk limit", folder.name)
            shutil.rmtree(folder, ignore_errors=True)
            excess -= size


class _File(NamedTuple):
    path: Path
    checksum: str
    num_bytes: int
    num_tokens: int


class _Writing(NamedTuple):
    key: Key
    path: Path
    content: bytes


def _write(task: _Writing) -> None:
    """The whole file or none of it. Raises OSError."""
    partial = task.path.with_suffix(".partial")
    try:
        partial.write_bytes(task.content)
        partial.replace(task.path)
    except OSError:
        with contextlib.suppress(OSError):
            partial.unlink(missing_ok=True)
        raise


class DiskTier:
    """The files of one signature. limit_bytes: of all files together. Reads and `write` belong to the MLX thread."""

    def __init__(self, folder: Path, *, limit_bytes: int):
        self._folder = folder
        self._limit_bytes = limit_bytes
        self._files: OrderedDict[Key, _File] = OrderedDict()  # least recently used first
        self._tasks: queue.Queue[_Writing | Path | None] = queue.Queue()
        self._unwritten: queue.SimpleQueue[Key] = queue.SimpleQueue()  # found by the writing thread, forgotten by MLX's
        self.num_bytes = 0
        self.num_ignored = 0
        folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        self._scan()
        self.limit(limit_bytes)
        threading.Thread(target=self._work, name="disk-tier", daemon=True).start()

    def __repr__(self) -> str:
        return f"DiskTier({self._folder.name}, {len(self._files)} files, {self.num_bytes} bytes)"

    @property
    def num_tokens_by_key(self) -> list[tuple[Key, int]]:
        """Keys that are there, least recently used first, each with its number of tokens."""
        self._forget_unwritten()
        return [(key, file.num_tokens) for key, file in self._files.items()]

    def limit(self, limit_bytes: int) -> None:
        """The folder is in use, with this much room from now on."""
        self._limit_bytes = limit_bytes
        self._folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        os.utime(self._folder)  # when it was opened last
        self._shrink()

    def _scan(self) -> None:
        found = []
        for path in self._folder.iterdir():
            named = _named(path)
            try:
                status = path.lstat()
            except OSError:  # another process removed it meanwhile
                continue
            if named is None or not stat.S_ISREG(status.st_mode):
                self._ignore(path, "it is not one of ours")
            else:
                key, checksum, num_tokens = named
                found.append((status.st_mtime, key, _File(path, checksum, status.st_size, num_tokens)))
        for _, key, file in sorted(found):
            if key in self._files:
                self.remove(key)
            self._add(key, file)

    def write(self, key: Key, entries: list[Any], num_tokens: int) -> None:
        """Write a part in the background; the least recently used files go where it needs their room."""
        self._forget_unwritten()
        if key in self._files:
            self._files.move_to_end(key)
            return
        buffer = io.BytesIO()
        save_prompt_cache(buffer, entries, {"format": FORMAT, "key": key.hex()})
        content = buffer.getvalue()
        checksum = _checksum(content)
        path = self._folder / f"{key.hex()}-{checksum}-{num_tokens}{_SUFFIX}"
        self._add(key, _File(path, checksum, len(content), num_tokens))
        self._tasks.put(_Writing(key, path, content))
        self._shrink()

    def read(self, key: Key) -> tuple[list[Any], int] | None:
        """The entries of a part, evaluated, and its number of tokens; None when it is not there or cannot be believed."""
        if key not in self._files:
            return None
        self.flush()
        file = self._files.get(key)
        if file is None:
            return None
        try:
            if file.checksum != _checksum(file.path.read_bytes()):
                raise ValueError("its checksum is wrong")
            entries, metadata = load_prompt_cache(str(file.path), return_metadata=True)
            if metadata != {"format": FORMAT, "key": key.hex()}:
                raise ValueError("it belongs elsewhere")
            mx.eval([entry.state for entry in entries])
        except (OSError, ValueError, RuntimeError, KeyError, TypeError, AttributeError) as error:
            self._forget(key)
            self._ignore(file.path, str(error))
            return None
        self._files.move_to_end(key)
        return entries, file.num_tokens

    def remove(self, key: Key) -> None:
        """Delete a part's file, in the background."""
        file = self._forget(key)
        if file is not None:
            self._tasks.put(file.path)

    def flush(self) -> None:
        """Return when everything asked for so far is on disk, or could not be written."""
        self._tasks.join()
        self._forget_unwritten()

    def close(self) -> None:
        """Nothing more is asked for; returns at once, what was asked for is still done."""
        self._tasks.put(None)

    def _add(self, key: Key, file: _File) -> None:
        self._files[key] = file
        self.num_bytes += file.num_bytes

    def _forget(self, key: Key) -> _File | None:
        file = self._files.pop(key, None)
        self.num_bytes -= 0 if file is None else file.num_bytes
        return file

    def _forget_unwritten(self) -> None:
        with contextlib.suppress(queue.Empty):
            while True:
                self._forget(self._unwritten.get_nowait())

    def _shrink(self) -> None:
        while self.num_bytes > self._limit_bytes and len(self._files) > 1:
            self.remove(next(iter(self._files)))

    def _work(self) -> None:
        while (task := self._tasks.get()) is not None:
            self._do(task)
            self._tasks.task_done()
        self._tasks.task_done()

    def _do(self, task: _Writing | Path) -> None:
        try:
            if isinstance(task, Path):
                task.unlink(missing_ok=True)
            else:
                _write(task)
        except OSError as error:
            log.warning("the disk tier cannot write: %s", error.strerror)
            if isinstance(task, _Writing):
                self._unwritten.put(task.key)

    def _ignore(self, path: Path, why: str) -> None:
        self.num_ignored += 1
        log.warning("ignored %s: %s", path.name, why)
        self._tasks.put(path)


def _checksum(content: bytes) -> str:
    return hashlib.blake2b(content, digest_size=_CHECKSUM_BYTES).hexdigest()


def _named(path: Path) -> tuple[Key, str, int] | None:
    """The key, checksum and number of tokens that a file's name says; None for a name that is not one of ours."""
    parts = path.name.removesuffix(_SUFFIX).split("-")
    if not path.name.endswith(_SUFFIX) or len(parts) != 3:
        return None
    key, checksum, tokens = parts
    if not (_is_hex(key, KEY_BYTES) and _is_hex(checksum, _CHECKSUM_BYTES) and _TOKENS.fullmatch(tokens)):
        return None
    return (bytes.fromhex(key), checksum, int(tokens)) if 0 < int(tokens) <= _MAX_TOKENS else None


def _is_hex(text: str, num_bytes: int) -> bool:
    return re.fullmatch(f"[0-9a-f]{{{2 * num_bytes}}}", text) is not None


class DiskTiers:
    """The tiers of one model that this worker has opened, each once: what one still writes, whoever opens it again knows.

    root: the folder of all models; content: of this model, what its folders' names begin with.
    """

    def __init__(self, root: Path, content: str):
        self._root = root
        self._content = content
        self._open: dict[str, DiskTier] = {}

    def __repr__(self) -> str:
        return f"DiskTiers({self._content}, {len(self._open)} open)"

    def open(self, *, limit_bytes: int, **parts: object) -> DiskTier:
        """The tier of a signature. Waits for no other tier."""
        name = signature(**parts)
        if name not in self._open:
            self._open[name] = DiskTier(self._root / f"{self._content}-{name}", limit_bytes=limit_bytes)
        self._open[name].limit(limit_bytes)
        return self._open[name]

    def remove_stale(self, *, limit_bytes: int) -> None:
        """See `remove_stale`."""
        remove_stale(self._root, self._content, limit_bytes=limit_bytes)

    def close(self) -> None:
        """The model is given up."""
        for tier in self._open.values():
            tier.close()
        self._open.clear()
