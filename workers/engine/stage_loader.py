"""The stages that this worker has loaded, from one plan to the next."""

from collections.abc import Callable

import msgspec

from protocol.errors import ModelError
from protocol.messages import LoadStage, PrepareStage
from protocol.values import LayerRange
from workers.model.shelf import ModelShelf
from workers.model.stage_loading import LoadedStages, load_stages


class StageLoader:
    """Owns the loaded stages; each plan replaces them."""

    def __init__(self, shelf: ModelShelf):
        self._shelf = shelf
        self._stages = LoadedStages()
        self.held: tuple[str | None, tuple[LayerRange, ...]] = (None, ())

    def __repr__(self) -> str:
        return f"StageLoader({self.held})"

    def load(self, name: str, plan: LoadStage, progress: Callable[[int], None]) -> LoadedStages:
        """The stages of worker `name` in a plan. Raises as `load_stages`."""
        self._stages.flush()
        self._stages, self.held = LoadedStages(), (None, ())
        stages = load_stages(name, plan, self._shelf, progress)
        self._stages = msgspec.structs.replace(stages, read_bytes=stages.weights_bytes)
        own = next(stage for stage in plan.stages if stage.worker == name)
        self.held = (plan.model, (own.layers,))
        return self._stages

    def prepare(self, message: PrepareStage, progress: Callable[[int], None]) -> int:  # noqa: ARG002
        """Bytes read ahead of a plan. Raises ModelError."""
        raise ModelError("this worker reads weights only when it loads")
