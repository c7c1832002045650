"""Where the measured use of a KV cache is kept: one small file for each model and machine under TANDEM_HOME/cache."""

import hashlib
import platform
from pathlib import Path

import msgspec

from protocol.home import Home
from protocol.model_digest import model_digest
from strategy.cache_use import MeasuredUse


def read_measured_use(home: Home, model: Path) -> MeasuredUse | None:
    """What `bench kv-cache` found for this model here; None where it was not run or its file cannot be read."""
    try:
        return msgspec.json.decode(_file(home, model).read_bytes(), type=MeasuredUse)
    except (OSError, ValueError):
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
    """Changes with the model and the machine."""
    parts = (model_digest(model), platform.node(), platform.machine())
    return hashlib.blake2b("\0".join(parts).encode(), digest_size=12).hexdigest()
