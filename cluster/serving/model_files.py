"""The small files of JSON that lie beside a model's weights and that nobody has to have."""

import json
from pathlib import Path
from typing import TypeVar

T = TypeVar("T", dict, list)

_MOST_BYTES = 1 << 20


def said_in(file: Path, kind: type[T]) -> T:
    """What a file says, an empty one of `kind` where it is not there, is no JSON or something else."""
    try:
        with file.open("rb") as opened:
            said = json.loads(opened.read(_MOST_BYTES))
    except (OSError, ValueError, RecursionError):
        return kind()
    return said if isinstance(said, kind) else kind()
