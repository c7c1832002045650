"""The model that a cluster serves: where it lies, its names, what was found out about it, and plans made of that."""

from collections.abc import Mapping
from pathlib import Path

from cluster.planning.assembly import Assembly, Part
from cluster.planning.model_files import read_sizes
from cluster.planning.plan import ModelFacts
from cluster.settings import Settings
from protocol.messages import Inspected, InspectModel, PrepareStage
from protocol.values import LayerRange, Peer
from strategy.partition import Partition


class KnownModel:
    """path: its directory here; digest: its name between processes. facts: None until it was inspected."""

    def __init__(self, path: Path, digest: str, settings: Settings):
        self.path = path
        self._settings = settings
        self.digest = digest
        self.facts: ModelFacts | None = None

    def __repr__(self) -> str:
        return f"KnownModel({self.path.name})"

    def inspected(self, found: Inspected) -> ModelFacts:
        """A worker inspected it. Raises ModelError for damaged files."""
        sizes = read_sizes(self.path, found.num_layers)
        self.facts = ModelFacts(id=self.path.name, digest=self.digest, sizes=sizes, inspected=found)
        return self.facts

    def to_inspect(self, reply_to: Peer, sources: tuple[Peer, ...]) -> InspectModel:
        """What asks a worker to inspect it. reply_to, sources: as in the message."""
        return InspectModel(model=self.digest, reply_to=reply_to, sources=sources)

    def to_prepare(self, layers: LayerRange, reply_to: Peer, sources: tuple[Peer, ...]) -> PrepareStage:
        """What asks a worker to read layers of it in advance. reply_to, sources: as in the message."""
        return PrepareStage(model=self.digest, layers=layers, reply_to=reply_to, sources=sources)

    def assemble(self, epoch: int, found: Partition, parts: Mapping[str, Part]) -> Assembly:
        """A plan of this model on its way. Only once it was inspected."""
        assert self.facts is not None
        return Assembly(epoch, self.facts, found, parts, self._settings)
