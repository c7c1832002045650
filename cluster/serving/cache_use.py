"""Where the measured use of a KV cache is kept: one small file for each model and machine under TANDEM_HOME/cache."""

import hashlib
import platform
from pathlib import Path

import msgspec

from cluster.planning.model_files import weight_files
from protocol.home import Home
from strategy.cache_use import MeasuredUse


def read_measured_use(home: Home, model: Path) -> MeasuredUse | None:
    """What `bench kv-cache` found for this model here; None where it was not run or its file cannot be read."""
    try:
        return msgspec.json.decode(_file(home, model).read_bytes(), type=MeasuredUse)
    except (OSError, msgspec.DecodeError):
        return None


def write_measured_use(home: Home, model: Path, use: MeasuredUse) -> Path:
    """Keeps it, and returns where."""
    home.create()
    file = _file(home, model)
    Home.write_private(file, msgspec.json.encode(use))
    return file


def _file(home: Home, model: Path) -> Path:
    return home.cache / f"kv-cache-use-{_signature(model)}.json"


def _signature(model: Path) -> str:
    """Changes with the model's configuration, the sizes of its weight files and the machine. Reads no weights."""
    parts = [(model / "config.json").read_bytes(), platform.node().encode(), platform.machine().encode()]
    parts += [f"{file.name} {file.stat().st_size}".encode() for file in weight_files(model)]
    return hashlib.blake2b(b"\0".join(parts), digest_size=12).hexdigest()
