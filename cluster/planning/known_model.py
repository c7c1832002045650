"""The model that a cluster serves: where it lies, its names, and what was found out about it."""

from pathlib import Path

from cluster.planning.model_files import read_sizes
from cluster.planning.plan import ModelFacts
from protocol.messages import Inspected


class KnownModel:
    """path: its directory here; digest: its name between processes. facts: None until it was inspected."""

    def __init__(self, path: Path, digest: str):
        self.path = path
        self.digest = digest
        self.facts: ModelFacts | None = None

    def __repr__(self) -> str:
        return f"KnownModel({self.path.name})"

    def inspected(self, found: Inspected) -> ModelFacts:
        """A worker inspected it. Raises ModelError for damaged files."""
        sizes = read_sizes(self.path, found.num_layers)
        self.facts = ModelFacts(id=self.path.name, digest=self.digest, sizes=sizes, inspected=found)
        return self.facts
