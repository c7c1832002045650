"""What a worker is asked about models: inspect one, load its stages of a plan, read weights ahead of one.

On the MLX thread; sends nothing itself. Whatever a model's code raises passes through: it is the message's failure.
"""

from collections.abc import Callable, Sequence

import msgspec

from protocol.messages import InspectModel, Loaded, LoadProgress, LoadStage, Prepared, PrepareStage
from protocol.values import LayerRange, pack_ids, pack_keys
from strategy.prefix import Key
from workers.drafting.guessers import GuessersLoader
from workers.engine.actions import Report
from workers.model.outlook import outlook
from workers.model.shelf import ModelShelf
from workers.model.stage_loading import LoadedStages, StageLoader
from workers.tensor.rank_cuts import rank_cuts


class Loading:
    """report: told how far reading and fetching have come."""

    def __init__(self, name: str, shelf: ModelShelf, loader: StageLoader, report: Callable[[LoadProgress], object]):
        self._name = name
        self._shelf = shelf
        self._loader = loader
        self._report = report
        self._guessers = GuessersLoader(shelf)
        self.read_bytes = 0  # since the process began

    def __repr__(self) -> str:
        return f"Loading({self._name}, {self._loader})"

    @property
    def held(self) -> tuple[str | None, tuple[LayerRange, ...]]:
        """The model that is open and its layers whose weights were read."""
        return self._loader.held

    def _progress(self, num_bytes: int, fetched_bytes: int = 0, wanted_bytes: int = 0) -> None:
        self._report(
            LoadProgress(
                worker=self._name, loaded_bytes=num_bytes, fetched_bytes=fetched_bytes, wanted_bytes=wanted_bytes
            )
        )

    def inspect(self, message: InspectModel) -> Report:
        """Find out how a model can be cut."""
        path = self._shelf.ensure(message.model, (), message.sources, self._progress)
        found = outlook(path, self._shelf.cache, message.kv)
        cuts = rank_cuts(path, message.ranks, self._shelf.cache)
        return Report(msgspec.structs.replace(found, worker=self._name, rank_cuts=cuts))

    def load(self, plan: LoadStage) -> tuple[LoadedStages, Report]:
        """The stages of a plan, and what to say of them."""
        stages = self._loader.load(self._name, plan, self._progress)
        if stages.chunk_costs:  # some route begins here
            guessers = self._guessers.load(plan, stages.vocabulary_size, self._progress)
            stages = msgspec.structs.replace(stages, guessers=guessers)
        self.read_bytes += stages.read_bytes
        loaded = Loaded(
            worker=self._name,
            weights_bytes=stages.weights_bytes,
            vocabulary_size=stages.vocabulary_size,
            read_bytes=self.read_bytes,
            prefixes=stages.prefixes,
            layers=stages.layers,
            draft=None if stages.guessers is None else stages.guessers.needs,
            unmet=self._loader.company.unmet,
        )
        known = [stages.executors[prefix.route].prefixes.known for prefix in stages.prefixes]
        return stages, Report(loaded, [buffer for keys in known for buffer in _packed(keys)])

    def prepare(self, message: PrepareStage) -> Report:
        """Read weights ahead of a plan."""
        read_bytes = self._loader.prepare(message, self._progress)
        self.read_bytes += read_bytes
        return Report(Prepared(worker=self._name, layers=message.layers, read_bytes=read_bytes))


def _packed(keys: Sequence[tuple[Key, int]]) -> tuple[bytes, bytes]:
    """Keys, and their numbers of tokens, as two buffers."""
    return pack_keys([key for key, _ in keys]), pack_ids(length for _, length in keys)
