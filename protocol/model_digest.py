"""By what a model is known: a digest of its files, the same on every machine that has them.

Reads the small files and the headers of the weight files, never a tensor.
"""

import hashlib
import struct
from pathlib import Path

_MAX_HEADER_BYTES = 100 << 20
_SMALL_FILES = ("config.json", "model.safetensors.index.json")


def model_digest(path: Path, *, with_times: bool = False) -> str:
    """32 hexadecimal digits that change when the configuration, or the names, sizes or headers of the weights do.

    with_times: also when a weight file was written again on this machine, for what is kept here of its results.
    Raises OSError when a file cannot be read.
    """
    digest = hashlib.blake2b(digest_size=16)
    for name in _SMALL_FILES:
        if (path / name).is_file():
            digest.update(name.encode() + b"\0" + (path / name).read_bytes())
    for file in _weights(path):
        status = file.stat()
        digest.update(f"{file.name} {status.st_size} {status.st_mtime_ns if with_times else 0}\n".encode())
        digest.update(_header(file))
    return digest.hexdigest()


def model_stamp(path: Path) -> str:
    """32 hexadecimal digits that change when a file that `model_digest` reads is written on this machine; reads none."""
    digest = hashlib.blake2b(digest_size=16)
    for file in (*(path / name for name in _SMALL_FILES), *_weights(path)):
        try:
            status = file.stat()
        except OSError:
            continue
        digest.update(f"{file.name} {status.st_ino} {status.st_size} {status.st_mtime_ns}\n".encode())
    return digest.hexdigest()


def _weights(path: Path) -> list[Path]:
    return sorted(path.glob("model*.safetensors"))


def _header(file: Path) -> bytes:
    with file.open("rb") as opened:
        prefix = opened.read(8)
        length = struct.unpack("<Q", prefix)[0] if len(prefix) == 8 else 0
        return opened.read(min(length, _MAX_HEADER_BYTES))
