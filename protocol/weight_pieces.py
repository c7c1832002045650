"""A model's files as hosts hand them to each other: what there is, in which pieces, and how a piece is asked for.

Pure: opens no file and no socket. Every tensor is cut into pieces of its own, at most PIECE_BYTES each, and so is the rest of a
file: the header of a weight file, a small file. So whoever needs some tensors asks for exactly their bytes, and each piece can be
checked by itself. A piece has the first HASH_BYTES of its SHA-256, which processors compute faster than anything else that
`hashlib` has. Both sides cut alike: the pieces follow from the header of the file. Files are named by their numbers in a manifest;
a name is looked at only to be checked, where a manifest is taken.
"""

import hashlib
import json
import re
import struct
from collections.abc import Iterator, Mapping
from typing import NamedTuple

import msgspec

from protocol.errors import ModelError
from protocol.values import Buffer

PIECE_BYTES = 4 << 20
HASH_BYTES = 16
MOST_HASHES = 64
MAX_ASK_BYTES = 4096
# Of what is taken from another host: no model has more.
_MOST_FILES = 4096
_MOST_FILE_BYTES, _MOST_SMALL_BYTES, _MOST_HEADER_BYTES = 1 << 44, 256 << 20, 100 << 20
_WEIGHTS = re.compile(r"model[A-Za-z0-9._-]{0,120}\.safetensors")
# What mlx-lm and tokenizers read, and no program: nothing that came from another host is ever run.
SMALL_FILES = frozenset({
    "added_tokens.json", "chat_template.jinja", "chat_template.json", "config.json", "generation_config.json",
    "hf_quant_config.json", "merges.txt", "model.safetensors.index.json", "special_tokens_map.json", "tokenizer.json",
    "tokenizer.model", "tokenizer_config.json", "vocab.json", "vocab.txt",
})  # fmt: skip


class WeightFile(msgspec.Struct, frozen=True, array_like=True):
    """One file of a model. header_bytes: of a weight file, its length prefix and its header; 0 for any other."""

    name: str
    num_bytes: int
    header_bytes: int = 0

    @property
    def is_small(self) -> bool:
        return not self.header_bytes


class Manifest(msgspec.Struct, frozen=True, array_like=True):
    """The files of a model, in the order of their names."""

    files: tuple[WeightFile, ...]


class AskManifest(msgspec.Struct, frozen=True, array_like=True, tag="manifest"):
    """What files has the model of that digest? Answered by a Manifest."""

    model: str


class AskHashes(msgspec.Struct, frozen=True, array_like=True, tag="hashes"):
    """The hashes of some pieces, MOST_HASHES at most, one behind the other."""

    model: str
    file: int
    pieces: tuple[int, ...]


class AskPiece(msgspec.Struct, frozen=True, array_like=True, tag="piece"):
    """The bytes of a piece."""

    model: str
    file: int
    piece: int


Ask = AskManifest | AskHashes | AskPiece


class Span(NamedTuple):
    """A piece: bytes of a file, and the tensor that they are of; "" for what is of none."""

    start: int
    stop: int
    tensor: str

    @property
    def num_bytes(self) -> int:
        return self.stop - self.start


def is_weight_file(name: str) -> bool:
    """Whether a file of that name holds tensors."""
    return _WEIGHTS.fullmatch(name) is not None


def piece_hash(data: Buffer) -> bytes:
    """By what a piece is known to be whole."""
    return hashlib.sha256(data).digest()[:HASH_BYTES]


def check_manifest(manifest: Manifest) -> None:
    """That another host's manifest names files of a model, plain names each once, of sizes that there are. Raises ModelError."""
    names = [file.name for file in manifest.files]
    if len(names) > _MOST_FILES or len({name.lower() for name in names}) != len(names):
        raise ModelError("the host that has the model lists files that no model has; join it with the same version")
    for file in manifest.files:
        is_right = is_weight_file(file.name) if file.header_bytes else file.name in SMALL_FILES
        most = _MOST_FILE_BYTES if file.header_bytes else _MOST_SMALL_BYTES
        if not is_right or not 0 <= file.num_bytes <= most or not 0 <= file.header_bytes <= _MOST_HEADER_BYTES:
            raise ModelError(
                f"the host that has the model lists {file.name[:80]!r} as a file of it, which it cannot be"
            )
        if file.header_bytes and not 8 < file.header_bytes <= file.num_bytes:
            raise ModelError(f"the host that has the model gives {file.name} a header that it has no room for")


def header_spans(file: WeightFile) -> tuple[Span, ...]:
    """The first pieces of a file, which are known before its header is: the header itself, or all of a small file."""
    return tuple(_cut(0, file.header_bytes or file.num_bytes, ""))


def spans_of(file: WeightFile, header: bytes) -> tuple[Span, ...]:
    """All pieces of a weight file with this header, length prefix included. Raises ModelError where it is damaged."""
    found = list(header_spans(file))
    end = file.header_bytes
    for name, (start, stop) in sorted(tensor_places(file, header).items(), key=lambda item: item[1]):
        if not end <= start <= stop <= file.num_bytes:
            raise ModelError(f"{file.name} is damaged: its tensors overlap or lie outside; get the model again")
        found += [*_cut(end, start, ""), *_cut(start, stop, name)]
        end = stop
    return (*found, *_cut(end, file.num_bytes, ""))


def tensor_places(file: WeightFile, header: bytes) -> Mapping[str, tuple[int, int]]:
    """Where in its file each tensor lies. Raises ModelError for a header that is none."""
    try:
        (length,) = struct.unpack("<Q", header[:8])
        if length != file.header_bytes - 8:
            raise ValueError("another length")
        named = {
            name: entry["data_offsets"] for name, entry in json.loads(header[8:]).items() if name != "__metadata__"
        }
        places = {name: (file.header_bytes + start, file.header_bytes + stop) for name, (start, stop) in named.items()}
        if not all(isinstance(place, int) for both in places.values() for place in both):
            raise TypeError("no numbers")
    except (struct.error, ValueError, KeyError, TypeError, AttributeError, RecursionError):
        raise ModelError(f"{file.name} is damaged: it has no safetensors header; get the model again") from None
    return places


def _cut(start: int, stop: int, tensor: str) -> Iterator[Span]:
    for first in range(start, stop, PIECE_BYTES):
        yield Span(first, min(first + PIECE_BYTES, stop), tensor)
