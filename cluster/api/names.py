"""By which names clients ask for the model: its own, its further ones, and whatever they were set up with before."""

from collections.abc import Collection

import msgspec

from cluster.api.surface import ApiRequest
from cluster.serving.requests import ModelInfo, Service
from cluster.settings import ApiSettings
from protocol.errors import NotFound, Unavailable

_ANY = "*"
# What Ollama's clients put behind a name that has no other tag.
_TAG = ":latest"


class Names:
    """Of the loaded model. ids: further ones than its own, the last part of that, "default" and the aliases that are configured."""

    def __init__(self, service: Service, api: ApiSettings, ids: Collection[str]) -> None:
        self._service = service
        self._aliases = tuple(name for name in api.aliases if name != _ANY)
        self._takes_any = _ANY in api.aliases
        self._ids = {*ids, *self._aliases, "default"}
        self._strict = api.strict_model

    def listed(self) -> list[tuple[str, ModelInfo]]:
        """By which names clients may know the model, its own first."""
        models = self._service.models()
        return [
            *((model.id, model) for model in models),
            *((name, model) for name in self._aliases for model in models),
        ]

    def served(self, request: ApiRequest) -> tuple[ApiRequest, str]:
        """What runs, and the name of the model that answers; a note where another one was asked for."""
        model, notes = self.found(request.model)
        return msgspec.structs.replace(request, notes=(*request.notes, *notes)), model.id

    def found(self, name: str | None) -> tuple[ModelInfo, tuple[str, ...]]:
        """The model for a name, with a note where that is another one's. Raises as `find`."""
        model, is_another = self.find(name)
        return model, (f"{(name or '')[:200]!r} is not served here, {model.id!r} answered",) if is_another else ()

    def find(self, name: str | None) -> tuple[ModelInfo, bool]:
        """The model for a name, and whether that is another one's. Raises NotFound where that will not do."""
        if name is None or not self._strict:
            model = self._loaded()
            return model, not (name is None or self._is_of(model, name))
        return self.find_exactly(name), False

    def find_exactly(self, name: str) -> ModelInfo:
        """Raises NotFound for another model's name."""
        model = self._loaded()
        if self._is_of(model, name):
            return model
        error = NotFound(f"the model {name[:200]!r} is not loaded; this cluster serves {model.id!r}", param="model")
        error.code = "model_not_found"
        raise error

    def _is_of(self, model: ModelInfo, name: str) -> bool:
        own = {model.id, model.id.rpartition("/")[2]}
        return self._takes_any or any(asked in own or asked in self._ids for asked in (name, name.removesuffix(_TAG)))

    def _loaded(self) -> ModelInfo:
        models = self._service.models()
        if not models:
            raise Unavailable("no model is loaded yet; try again when /health says ready")
        return models[0]
