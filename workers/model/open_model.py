"""A model that is open on a worker: lazily, with the weights of some layers in memory."""

from dataclasses import dataclass
from pathlib import Path

from workers.cache.disk_tier import DiskTiers
from workers.engine.grammar import Grammars
from workers.model.profile import Profile
from workers.model.split_model import SplitModel


@dataclass(frozen=True)
class OpenModel:
    """digest: its name between processes; path: where it lies here."""

    digest: str
    path: Path
    model: SplitModel
    profile: Profile
    tiers: DiskTiers
    grammars: Grammars
