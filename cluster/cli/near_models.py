"""Which models may have been meant by a location that leads to none. Knows names, and looks at folders; loads nothing."""

import difflib
from collections.abc import Iterator, Sequence
from pathlib import Path

from cluster.cli.terminal import Terminal
from protocol.errors import UsageError
from protocol.model_search import model_name, models_in

_MOST = 3


def check_location(location: str, folders: Sequence[Path], terminal: Terminal) -> None:
    """location, folders: as `near_models` has them. What is taken for a hub id and may have been meant otherwise is noted.

    Raises UsageError where it is a directory that is not there, naming those that may have been meant.
    """
    path = Path(location)
    if path.is_dir():
        return
    near = " or ".join(near_models(location, folders))
    if path.is_absolute():
        instead = f"did you mean {near}?" if near else "give --model a directory in the Hugging Face layout"
        raise UsageError(f"the model directory {path} does not exist; {instead}")
    if near and location.lower() not in {
        model_name(found).lower() for folder in folders for found in models_in(folder)
    }:
        terminal.note(f"tandem: {location} is no directory here, so it is a model of the hub; did you mean {near}?")


def near_models(location: str, folders: Sequence[Path]) -> list[str]:
    """Directories and hub ids of a near name, nearest first. folders: where models lie, as `model_folders` says."""
    known = dict(_known(location, folders))
    wanted = [location, Path(location).name]
    near = [name for each in wanted for name in difflib.get_close_matches(each.lower(), known, n=_MOST)]
    return list(dict.fromkeys(known[name] for name in near))[:_MOST]


def _known(location: str, folders: Sequence[Path]) -> Iterator[tuple[str, str]]:
    """In lower case each name by which a model may have been meant, and how to say it."""
    beside = Path(location).absolute().parent
    for folder in (*folders, *([beside] if beside.is_dir() else [])):
        for path in models_in(folder):
            name = model_name(path)
            said = name if "/" in name else str(path)
            yield name.lower(), said
            yield name.rpartition("/")[2].lower(), said
            yield f"{path.parent.name}/{path.name}".lower(), said
