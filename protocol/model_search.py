"""Finds a model by its digest in the folders of this machine, wherever it was put here."""

from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path

from protocol.model_digest import model_digest


def model_folders(checkout: Path, environment: Mapping[str, str]) -> tuple[Path, ...]:
    """Where models are looked for: beside the bundled one, and in the hub's cache."""
    hub = environment.get("HF_HUB_CACHE") or str(Path(environment.get("HF_HOME", "~/.cache/huggingface")) / "hub")
    return checkout / "models", Path(hub).expanduser()


def find_model(digest: str, folders: Iterable[Path]) -> Path | None:
    """The directory of the model of that digest, or None."""
    return next((path for folder in folders for path in models_in(folder) if _digest(path) == digest), None)


def models_in(folder: Path) -> Iterator[Path]:
    """Directories with a configuration: in the folder, and as the hub's library keeps snapshots."""
    for pattern in ("*/config.json", "*/snapshots/*/config.json"):
        for file in sorted(folder.glob(pattern)):
            yield file.parent


def _digest(path: Path) -> str | None:
    try:
        return model_digest(path)
    except OSError:
        return None
