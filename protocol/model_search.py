"""Finds a model by its digest in the folders of this machine, wherever it was put here.

A digest takes reading the headers of all weights, and a hub's cache may hold many models: what was read is kept in a file, and a
model is read again only when one of its files was written.
"""

import logging
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path

import msgspec

from protocol.home import Home
from protocol.model_digest import model_digest, model_stamp

log = logging.getLogger(__name__)


class KnownDigest(msgspec.Struct, frozen=True):
    """The digest of a model whose files had this stamp; None for one that cannot be read."""

    stamp: str
    digest: str | None


def model_folders(checkout: Path, environment: Mapping[str, str]) -> tuple[Path, ...]:
    """Where models are looked for: beside the bundled one, and in the hub's cache."""
    hub = environment.get("HF_HUB_CACHE") or str(Path(environment.get("HF_HOME", "~/.cache/huggingface")) / "hub")
    return checkout / "models", Path(hub).expanduser()


def find_model(digest: str, folders: Iterable[Path], kept: Path) -> Path | None:
    """The directory of the model of that digest, or None. kept: the file of what is known, which need not be there."""
    known = _read(kept)
    stamps = {str(path): model_stamp(path) for folder in folders for path in models_in(folder)}
    current = {path: known[path] for path in stamps if path in known and known[path].stamp == stamps[path]}
    found = next((path for path, seen in current.items() if seen.digest == digest), None)
    if found is None:
        for path in (path for path in stamps if path not in current):
            current[path] = KnownDigest(stamps[path], _digest(Path(path)))
            if current[path].digest == digest:
                found = path
                break
        if current != known:
            _write(kept, current)
    return None if found is None else Path(found)


def models_in(folder: Path) -> Iterator[Path]:
    """Directories with a configuration: in the folder, and as the hub's library keeps snapshots."""
    for pattern in ("*/config.json", "*/snapshots/*/config.json"):
        for file in sorted(folder.glob(pattern)):
            yield file.parent


def model_name(path: Path) -> str:
    """What people call the model in a directory: as on the hub for a snapshot in its cache, else by the directory's name."""
    if path.parent.name == "snapshots" and path.parent.parent.name.startswith("models--"):
        return path.parent.parent.name.removeprefix("models--").replace("--", "/")
    return path.name


def _digest(path: Path) -> str | None:
    try:
        return model_digest(path)
    except OSError:
        return None


def _read(kept: Path) -> dict[str, KnownDigest]:
    try:
        return msgspec.json.decode(kept.read_bytes(), type=dict[str, KnownDigest])
    except (OSError, ValueError):
        return {}


def _write(kept: Path, known: dict[str, KnownDigest]) -> None:
    try:
        Home.write_private(kept, msgspec.json.encode(known))
    except OSError as error:
        log.info("digests of models are not kept: %s", error)
