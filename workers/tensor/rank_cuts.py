"""How a model is cut for the ranks that its workers could be, and what each rank would have: found out once, kept as JSON."""

import contextlib
import hashlib
import json
import os
from collections.abc import Sequence
from pathlib import Path

import msgspec

from protocol.errors import ModelError
from protocol.messages import RankCut
from protocol.version import installed_version
from workers.model import loading
from workers.tensor.cuts import shares
from workers.tensor.plan import CutPlan
from workers.tensor.trying import derive

REVISION = 1


def rank_cuts(path: Path, ranks: Sequence[int], cache_dir: Path) -> tuple[RankCut, ...]:
    """For each number of ranks. path: of the model, of which no weight is read."""
    config = loading.read_config(path)
    about = json.dumps(
        [REVISION, installed_version("mlx-lm"), installed_version("mlx"), config], sort_keys=True, default=str
    )
    name = hashlib.sha256(about.encode()).hexdigest()[:24]
    return tuple(_kept(cache_dir / f"ranks-{name}-{size}.json", path, size) for size in ranks)


def cut_of(plan: str) -> CutPlan:
    """The plan of a `RankCut`. Raises ModelError for a text that is none."""
    try:
        return msgspec.json.decode(plan, type=CutPlan)
    except msgspec.DecodeError as error:
        raise ModelError(f"the coordinator's plan of cuts is none: {error}") from error


def _kept(file: Path, path: Path, size: int) -> RankCut:
    with contextlib.suppress(OSError, ValueError):
        return msgspec.json.decode(file.read_bytes(), type=RankCut)
    found = _found(path, size)
    file.parent.mkdir(parents=True, exist_ok=True)
    partial = file.with_suffix(f".{os.getpid()}")
    partial.write_bytes(msgspec.json.encode(found))
    partial.replace(file)
    return found


def _found(path: Path, size: int) -> RankCut:
    try:
        plan = derive(loading.read_config(path), size)
        return RankCut(
            ranks=size, plan=msgspec.json.encode(plan).decode(), shares=shares(lambda: loading.load(path), plan)
        )
    except ModelError as error:
        return RankCut(ranks=size, why_not=str(error))
