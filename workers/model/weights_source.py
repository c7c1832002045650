"""What this host gives others of its models: manifests, hashes and pieces, by digest and number, never by path.

Answers on the threads of an answerer. A hash is computed when it is first asked for and kept while its file stays as it was.
Of a model that was itself fetched, only what is whole is given. What cannot be answered is ABSENT, whatever the reason.
"""

import logging
import struct
import threading
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Protocol

import msgspec

from protocol.errors import ModelError
from protocol.values import Buffer
from protocol.weight_pieces import (
    HASH_BYTES,
    MAX_ASK_BYTES,
    MOST_HASHES,
    SMALL_FILES,
    Ask,
    AskHashes,
    AskManifest,
    Manifest,
    Span,
    WeightFile,
    header_spans,
    is_weight_file,
    piece_hash,
    spans_of,
)
from workers.model.sparse_model import SparseModel, read_span

log = logging.getLogger(__name__)

GIVEN, ABSENT_HASH = b"\x01", bytes(HASH_BYTES)
ABSENT: tuple[bytes, ...] = (b"\x00",)
# After looking for a model in vain nothing is looked for so long: it looks at every model of this host.
_LOOK_AGAIN_S = 1.0

_decoder = msgspec.msgpack.Decoder(Ask)


class Pieces(Protocol):
    """A model that can be given, or parts of it."""

    manifest: Manifest

    def hash_of(self, file: int, piece: int) -> bytes | None: ...

    def read(self, file: int, piece: int) -> bytes: ...

    def reread(self) -> None: ...


class WholeModel:
    """A directory that has all of a model, as `Pieces`."""

    def __init__(self, path: Path):
        self.path = path
        self.manifest = manifest_of(path)
        self._spans: dict[int, tuple[Span, ...]] = {}
        self._stamps = tuple(self._stamp(file) for file in self.manifest.files)
        self._hashes: dict[tuple[int, int], bytes] = {}

    def __repr__(self) -> str:
        return f"WholeModel({str(self.path)!r})"

    def reread(self) -> None:
        """What was known of files that changed is forgotten. Raises OSError where they are another model's now."""
        stamps = tuple(self._stamp(file) for file in self.manifest.files)
        if stamps != self._stamps:
            if manifest_of(self.path) != self.manifest:
                raise FileNotFoundError(self.path)
            self._hashes, self._spans, self._stamps = {}, {}, stamps

    def hash_of(self, file: int, piece: int) -> bytes | None:
        """Of any piece. Raises OSError."""
        if (file, piece) not in self._hashes:
            self._hashes[file, piece] = piece_hash(self.read(file, piece))
        return self._hashes[file, piece]

    def read(self, file: int, piece: int) -> bytes:
        """The bytes of a piece. Raises OSError; ModelError for a damaged header."""
        described = self.manifest.files[file]
        if file not in self._spans:
            self._spans[file] = self._cut(described)
        return read_span(self.path / described.name, self._spans[file][piece])

    def _cut(self, file: WeightFile) -> tuple[Span, ...]:
        if file.is_small:
            return header_spans(file)
        return spans_of(file, read_span(self.path / file.name, Span(0, file.header_bytes, "")))

    def _stamp(self, file: WeightFile) -> int:
        return (self.path / file.name).stat().st_mtime_ns


def manifest_of(path: Path) -> Manifest:
    """The files of a model that are given to others. Raises OSError."""
    files = []
    for file in sorted(path.iterdir()):
        if is_weight_file(file.name):
            with file.open("rb") as opened:
                (length,) = struct.unpack("<Q", opened.read(8).ljust(8, b"\0"))
            files.append(WeightFile(file.name, file.stat().st_size, 8 + length))
        elif file.name in SMALL_FILES and file.is_file():
            files.append(WeightFile(file.name, file.stat().st_size))
    return Manifest(tuple(files))


class WeightsSource:
    """See the module. find: the directory of the model of a digest, None where this host has nothing of it."""

    def __init__(self, find: Callable[[str], Path | None], now: Callable[[], float] = time.monotonic):
        self._find = find
        self._now = now
        self._lock = threading.Lock()
        self._models: dict[str, Pieces] = {}
        self._looks_from = 0.0

    def __repr__(self) -> str:
        return f"WeightsSource({len(self._models)} models)"

    def answer(self, asked: bytes) -> Sequence[Buffer]:
        """The frames of an answer: GIVEN and what was asked for, or ABSENT."""
        try:
            if len(asked) > MAX_ASK_BYTES:
                return ABSENT
            ask = _decoder.decode(asked)
            model = self._model(ask.model)
            return ABSENT if model is None else self._given(model, ask)
        except (ValueError, OSError, ModelError, struct.error, IndexError) as error:
            log.info("something of a model cannot be given: %s", error)
            return ABSENT

    def _given(self, model: Pieces, ask: Ask) -> Sequence[Buffer]:
        if isinstance(ask, AskManifest):
            return GIVEN, msgspec.msgpack.encode(model.manifest)
        numbers = ask.pieces if isinstance(ask, AskHashes) else (ask.piece,)
        if min((ask.file, *numbers)) < 0 or len(numbers) > MOST_HASHES:
            return ABSENT
        if isinstance(ask, AskHashes):
            return GIVEN, b"".join(model.hash_of(ask.file, piece) or ABSENT_HASH for piece in numbers)
        if isinstance(model, SparseModel) and model.hash_of(ask.file, ask.piece) is None:
            return ABSENT
        return GIVEN, model.read(ask.file, ask.piece)

    def _model(self, digest: str) -> Pieces | None:
        with self._lock:
            try:
                if digest in self._models:
                    self._models[digest].reread()
                    return self._models[digest]
            except OSError:
                del self._models[digest]
            if self._now() < self._looks_from:
                return None
            path = self._find(digest)
            if path is None:
                self._looks_from = self._now() + _LOOK_AGAIN_S
                return None
            self._models[digest] = SparseModel.open(path) or WholeModel(path)
            return self._models[digest]
