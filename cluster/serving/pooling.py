"""How a model's makers want a text to become one vector: what sentence-transformers' files beside the model say.

Where they say nothing it is the hidden state of the last token, as decoders that were trained to embed have it.
"""

from pathlib import Path
from typing import Any

import msgspec

from cluster.serving.model_files import said_in
from protocol.errors import BadRequest
from protocol.values import Pooling

_USUAL_PLACE = "1_Pooling"
_KINDS: dict[str, Pooling] = {"lasttoken": "last", "mean": "mean", "cls": "cls"}
# What every vector becomes here in any case, and what makes its hidden states.
_KNOWN_MODULES = ("Transformer", "Pooling", "Normalize")


class PoolingChoice(msgspec.Struct, frozen=True):
    """kind: None for the reason `why_not`, a clause."""

    kind: Pooling | None
    why_not: str = ""

    def required(self, param: str) -> Pooling:
        """Raises BadRequest where this model's vectors are made in a way that is not known here."""
        if self.kind is None:
            raise BadRequest(f"no embeddings can be made with this model: {self.why_not}", param=param)
        return self.kind


BY_LAST_TOKEN = PoolingChoice("last")


def pooling_of(model_path: Path) -> PoolingChoice:
    """By `modules.json` and the configuration of its pooling module, or by that in its usual place."""
    modules = [module for module in said_in(model_path / "modules.json", list) if isinstance(module, dict)]
    kinds = {str(module.get("type", "")).rpartition(".")[2]: module for module in modules}
    unknown = [kind for kind in kinds if kind not in _KNOWN_MODULES]
    if unknown:
        return PoolingChoice(None, f"its modules.json asks for {unknown[0][:60]}, which is not supported")
    place = str(kinds.get("Pooling", {}).get("path") or _USUAL_PLACE)
    file = model_path / place / "config.json"
    if not file.resolve().is_relative_to(model_path.resolve()):
        return PoolingChoice(None, "its modules.json points outside of the model")
    return _chosen(said_in(file, dict), f"{place[:60]}/config.json")


def _chosen(said: dict[str, Any], file: str) -> PoolingChoice:
    prefix = "pooling_mode_"
    modes = [name.removeprefix(prefix).removesuffix("_token").removesuffix("_tokens") for name in said
             if name.startswith(prefix) and said[name] is True]  # fmt: skip
    if isinstance(said.get("pooling_mode"), str):
        modes = [said["pooling_mode"]]
    if not modes:
        return BY_LAST_TOKEN
    if len(modes) > 1 or modes[0] not in _KINDS:
        return PoolingChoice(
            None, f"its {file} pools by {' and '.join(modes)[:60]}; mean, cls and lasttoken are supported"
        )
    return PoolingChoice(_KINDS[modes[0]])
