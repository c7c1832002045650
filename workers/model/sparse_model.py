"""A model of which this host has fetched a part: files of their full sizes, with holes where nothing was fetched yet.

Owns the folder, and a journal of the pieces that are whole. A piece is in the journal only once it is on the disk, so whatever a
break leaves behind is fetched again; an entry without a hash takes one back. **A hole reads as zeros, and zeros compute plausible nonsense**: each absent tensor begins
with 64 bytes of 0xFF, NaN in every format of floating point, until its own bytes take their place. Files are written in place:
arrays that were opened lazily before read what was fetched since. Knows nothing of where pieces come from.

A folder is a model once its manifest is there, which comes last: by then the small files and all headers are. One process writes
at a time (`lock`); others, and those that serve pieces, see what it adds.
"""

import contextlib
import errno
import fcntl
import os
import struct
import threading
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Self

import msgspec

from protocol.errors import ModelError
from protocol.model_digest import model_digest
from protocol.values import Buffer
from protocol.weight_pieces import HASH_BYTES, Manifest, Span, WeightFile, header_spans, piece_hash, spans_of

ABSENT = b"\xff" * 64
FLUSH_BYTES = 64 << 20
_MANIFEST, _JOURNAL, _LOCK = ".manifest", ".journal", ".lock"
_RECORD = struct.Struct(f">II{HASH_BYTES}s")

Write = Callable[[int, Buffer, int], int]
"""`os.pwrite`: to a descriptor, bytes, at an offset; gives how many were written."""


class SparseModel:
    """One such folder. manifest: of the whole model; write: how bytes come to the disk."""

    def __init__(self, path: Path, manifest: Manifest, write: Write = os.pwrite):
        self.path = path
        self.manifest = manifest
        self._write = write
        self.spans = tuple(self._spans(file) for file in manifest.files)
        self._hashes: dict[tuple[int, int], bytes] = {}  # of whole pieces, by file and piece
        self._unsaved: list[tuple[int, int, bytes]] = []
        self._lock = threading.Lock()
        self._journal_bytes = 0
        self.reread()

    def __repr__(self) -> str:
        return f"SparseModel({str(self.path)!r}, {len(self._hashes)} pieces)"

    @classmethod
    def open(cls, path: Path, write: Write = os.pwrite) -> Self | None:
        """The one in a folder; None where there is none, or only the beginning of one."""
        try:
            manifest = msgspec.msgpack.decode((path / _MANIFEST).read_bytes(), type=Manifest)
            return cls(path, manifest, write)
        except (OSError, ValueError, ModelError):
            return None

    @classmethod
    def begin(
        cls, path: Path, digest: str, manifest: Manifest, first: Sequence[bytes], write: Write = os.pwrite
    ) -> Self:
        """A folder with everything but tensors. first: of each file of the manifest, all of a small one, else the header.

        Raises:
            ModelError: it is not the model of that digest, or the disk takes no more.
        """
        with saying_what_the_disk_lacks(path):
            path.mkdir(mode=0o700, parents=True, exist_ok=True)
            (path / _MANIFEST).unlink(missing_ok=True)
            (path / _JOURNAL).unlink(missing_ok=True)
            for file, begun in zip(manifest.files, first, strict=True):
                _begin_file(path / file.name, file, begun, write)
            if model_digest(path) != digest:
                raise ModelError("what another host gave is not the model that was asked for; check its copy of it")
            unfinished = path / f"{_MANIFEST}.new"
            unfinished.write_bytes(msgspec.msgpack.encode(manifest))
            unfinished.replace(path / _MANIFEST)
            return cls(path, manifest, write)

    def _spans(self, file: WeightFile) -> tuple[Span, ...]:
        if file.is_small:
            return header_spans(file)
        with (self.path / file.name).open("rb") as opened:
            return spans_of(file, opened.read(file.header_bytes))

    def reread(self) -> None:
        """Take note of what another process has added."""
        with contextlib.suppress(OSError), (self.path / _JOURNAL).open("rb") as journal:
            journal.seek(self._journal_bytes)
            records = journal.read()
            whole = len(records) - len(records) % _RECORD.size
            for file, piece, known in _RECORD.iter_unpack(records[:whole]):
                if any(known):
                    self._hashes[file, piece] = known
                else:
                    self._hashes.pop((file, piece), None)
            self._journal_bytes += whole

    def forget_damaged(self) -> int:
        """Take back what is not what it was, in files that were written since the journal was; how many pieces. For who has
        the lock. Raises OSError.
        """
        journal = self.path / _JOURNAL
        if not journal.exists():
            return 0
        saved_at = journal.stat().st_mtime_ns
        written = {
            file
            for file, described in enumerate(self.manifest.files)
            if (self.path / described.name).stat().st_mtime_ns >= saved_at
        }
        damaged = [
            (file, piece)
            for (file, piece), known in self._hashes.items()
            if file in written and piece_hash(self.read(file, piece)) != known
        ]
        if written:
            self._record([(file, piece, bytes(HASH_BYTES)) for file, piece in damaged])
            os.utime(journal)
            for each in damaged:
                del self._hashes[each]
        return len(damaged)

    def hash_of(self, file: int, piece: int) -> bytes | None:
        """Of a piece that is there; None for one that is not. What belongs to no tensor always is."""
        span = self.spans[file][piece]
        if (file, piece) not in self._hashes and not span.tensor and span.stop <= self._begun_bytes(file):
            return piece_hash(self.read(file, piece))
        return self._hashes.get((file, piece))

    def _begun_bytes(self, file: int) -> int:
        described = self.manifest.files[file]
        return described.header_bytes or described.num_bytes

    def missing(self, tensors: frozenset[str] | None) -> list[tuple[int, int]]:
        """Pieces of these tensors (None: of all) that are not there, by file and piece; what is of no tensor goes along."""
        return [
            (file, piece)
            for file, spans in enumerate(self.spans)
            for piece, span in enumerate(spans)
            if (file, piece) not in self._hashes
            and span.stop > self._begun_bytes(file)
            and (not span.tensor or tensors is None or span.tensor in tensors)
        ]

    def read(self, file: int, piece: int) -> bytes:
        """The bytes of a piece. Raises OSError."""
        span = self.spans[file][piece]
        return read_span(self.path / self.manifest.files[file].name, span)

    def put(self, file: int, piece: int, data: Buffer, known: bytes) -> None:
        """A whole piece, with its hash; on any thread. Raises OSError."""
        with _opened(self.path / self.manifest.files[file].name) as descriptor:
            _write_all(self._write, descriptor, data, self.spans[file][piece].start)
        with self._lock:
            self._hashes[file, piece] = known
            self._unsaved.append((file, piece, known))

    def save(self, at_least_bytes: int = 0) -> None:
        """First the pieces, then that they are there; nothing while that are fewer bytes. On one thread. Raises OSError."""
        with self._lock:
            unsaved = list(self._unsaved)
        num_bytes = sum(self.spans[file][piece].num_bytes for file, piece, _ in unsaved)
        if not unsaved or num_bytes < at_least_bytes:
            return
        for file in {file for file, _, _ in unsaved}:
            with _opened(self.path / self.manifest.files[file].name) as descriptor:
                os.fsync(descriptor)
        self._record(unsaved)
        with self._lock:
            del self._unsaved[: len(unsaved)]

    def _record(self, entries: Sequence[tuple[int, int, bytes]]) -> None:
        records = b"".join(_RECORD.pack(*entry) for entry in entries)
        with _opened(self.path / _JOURNAL) as descriptor:
            _write_all(self._write, descriptor, records, self._journal_bytes)  # over what a break cut short
            os.fsync(descriptor)
        self._journal_bytes += len(records)


def read_span(path: Path, span: Span) -> bytes:
    """Those bytes of a file. Raises OSError, also where the file ends before them."""
    with path.open("rb") as opened:
        data = os.pread(opened.fileno(), span.num_bytes, span.start)
    if len(data) != span.num_bytes:
        raise OSError(errno.EIO, "the file is shorter than it was")
    return data


@contextlib.contextmanager
def lock(path: Path) -> Iterator[bool]:
    """Whether this process alone writes in a folder, for as long as the context lasts; False where another one does."""
    path.mkdir(mode=0o700, parents=True, exist_ok=True)
    with (path / _LOCK).open("w") as opened:
        try:
            fcntl.flock(opened, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            yield False
        else:
            yield True


@contextlib.contextmanager
def saying_what_the_disk_lacks(path: Path) -> Iterator[None]:
    """What the system says of a disk as one sentence, a ModelError."""
    try:
        yield
    except OSError as error:
        is_full = error.errno in (errno.ENOSPC, errno.EDQUOT)
        todo = "make room there" if is_full else "give Tandem the right to write there"
        raise ModelError(
            f"the model cannot be kept in {path} ({error.strerror}): {todo}, or set TANDEM_HOME to another disk, and join again"
        ) from error


def _begin_file(path: Path, file: WeightFile, begun: bytes, write: Write) -> None:
    """Header, hole, and the mark of absence at the beginning of each tensor in it."""
    path.unlink(missing_ok=True)
    with _opened(path) as descriptor:
        os.ftruncate(descriptor, file.num_bytes)
        _write_all(write, descriptor, begun, 0)
        marked: set[str] = set()
        for span in () if file.is_small else spans_of(file, begun):
            if span.tensor and span.tensor not in marked:
                marked.add(span.tensor)
                _write_all(write, descriptor, ABSENT[: span.num_bytes], span.start)
        os.fsync(descriptor)


@contextlib.contextmanager
def _opened(path: Path) -> Iterator[int]:
    """A file to write to, never one that a link leads to."""
    descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW, 0o600)
    try:
        yield descriptor
    finally:
        os.close(descriptor)


def _write_all(write: Write, descriptor: int, data: Buffer, offset: int) -> None:
    view = memoryview(data)
    while view:
        written = write(descriptor, view, offset)
        view, offset = view[written:], offset + written
