"""Which models lie on this machine's disk, and how much of each: `python -m workers.model.held_models` prints them as JSON.

Reads configurations, indexes, headers and journals, never a tensor; needs no MLX. Whatever cannot be read is no model.
"""

import argparse
import sys
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path

import msgspec

from protocol.home import Home
from protocol.messages import HeldModel
from protocol.model_digest import model_digest
from protocol.model_search import models_in
from workers.model.sparse_model import SparseModel
from workers.model.weights_source import manifest_of

_INDEX = "model.safetensors.index.json"
_HUB, _SNAPSHOTS = "models--", "snapshots"


class LocalModel(msgspec.Struct, frozen=True, kw_only=True):
    """One of them, and where it lies, which no other machine is told."""

    model: HeldModel
    path: str


class _Index(msgspec.Struct):
    weight_map: dict[str, str]


def models_here(home: Home, folders: Iterable[Path]) -> list[LocalModel]:
    """Those fetched from other hosts, those in these folders, and those that were used from elsewhere on this machine."""
    found = list(_fetched(home.models))
    seen: set[Path] = set()
    places = [path for folder in folders for path in models_in(folder)]
    for path in (*places, *home.model_places().values()):
        if path.resolve() not in seen:
            seen.add(path.resolve())
            found += _whole(path)
    return found


def _fetched(root: Path) -> Iterator[LocalModel]:
    for path in sorted(root.iterdir()) if root.is_dir() else ():
        model = SparseModel.open(path)
        if model is None:
            continue
        num_bytes = sum(file.num_bytes for file in model.manifest.files)
        missing = sum(model.spans[file][piece].num_bytes for file, piece in model.missing(None))
        held = HeldModel(
            digest=path.name, name="", held_bytes=num_bytes - missing, num_bytes=num_bytes, source="fetched"
        )
        yield LocalModel(model=held, path=str(path))


def _whole(path: Path) -> Iterator[LocalModel]:
    """As people and the hub's library put it there; of a download that broke off, files are missing."""
    try:
        files = manifest_of(path).files
        named = {file.name for file in files if not file.is_small}
        held_bytes = sum(file.num_bytes for file in files)
        wanted = _named_by_index(path)
        digest = model_digest(path)
    except (OSError, ValueError):
        return
    if not named:
        return
    is_hub = path.parent.name == _SNAPSHOTS and path.parents[1].name.startswith(_HUB)
    name = path.parents[1].name.removeprefix(_HUB).replace("--", "/") if is_hub else path.name
    held = HeldModel(
        digest=digest,
        name=name,
        held_bytes=held_bytes,
        num_bytes=held_bytes if wanted <= named else None,
        source="hub" if is_hub else "folder",
    )
    yield LocalModel(model=held, path=str(path))


def _named_by_index(path: Path) -> set[str]:
    file = path / _INDEX
    return set(msgspec.json.decode(file.read_bytes(), type=_Index).weight_map.values()) if file.is_file() else set()


def main(arguments: Sequence[str]) -> int:
    """Print them as a JSON list of LocalModel."""
    parser = argparse.ArgumentParser(prog="held_models", description="The models on this machine's disk.")
    parser.add_argument("--home", required=True, type=Path)
    parser.add_argument("--models", action="append", type=Path, default=[], metavar="DIR", help="where to look")
    options = parser.parse_args(arguments)
    sys.stdout.buffer.write(msgspec.json.encode(models_here(Home(options.home), options.models)))
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
