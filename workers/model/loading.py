"""Opens a model directory with mlx-lm, and says in one sentence what is wrong with one that cannot be used.

Owns the checks before and around `mlx_lm.utils.load_model`. Reads the headers of weight files, never the weights.
"""

import json
import struct
from collections.abc import Callable
from pathlib import Path
from typing import Any

import mlx.core as mx
from mlx import nn
from mlx_lm.utils import load_config, load_model

from protocol.errors import ModelError
from workers.zoo.configurations import architecture_of, arguments_class, model_class

MAX_HEADER_BYTES = 256 << 20


def load(path: Path, classes: Callable[[dict[str, Any]], tuple[Any, Any]] | None = None) -> nn.Module:
    """The model of a directory in the Hugging Face layout, with no weight read from disk yet. Raises ModelError.

    classes: of model and arguments, by config; None for mlx-lm's own.
    """
    config = read_config(path)
    model_class(architecture_of(config))
    check_weight_files(path)
    try:
        own = {} if classes is None else {"get_model_classes": classes}
        model, _ = load_model(path, lazy=True, **own)
    except Exception as error:  # whatever a damaged or foreign directory makes mlx-lm raise
        raise ModelError(_why(path, config, error)) from error
    return model


def load_noting(path: Path) -> tuple[nn.Module, dict[str, mx.array]]:
    """As `load`, and by name what was read from the weight files, as it was before the model's own code saw it."""
    noted: dict[str, mx.array] = {}

    def classes(config: dict[str, Any]) -> tuple[Any, Any]:
        architecture = architecture_of(config)
        known = model_class(architecture)

        class Noting(known):  # type: ignore[misc, valid-type]
            def sanitize(self, weights: dict[str, mx.array]) -> dict[str, mx.array]:
                noted.update(weights)
                return super().sanitize(weights) if hasattr(known, "sanitize") else weights

        return Noting, arguments_class(architecture)

    return load(path, classes), noted


def read_config(path: Path) -> dict[str, Any]:
    """config.json as mlx-lm reads it. Raises ModelError."""
    if not (path / "config.json").is_file():
        raise ModelError(f"{path} has no config.json; give a model directory in the Hugging Face layout")
    try:
        config = load_config(path)
    except (ValueError, OSError) as error:
        raise ModelError(f"{path / 'config.json'} is not valid JSON ({error}); download it again") from error
    if not isinstance(config, dict) or not isinstance(config.get("model_type"), str):
        raise ModelError(f"{path / 'config.json'} names no model_type; it is not the configuration of a model")
    return config


def check_weight_files(path: Path) -> None:
    """Raises ModelError unless there are weight files, all that the index names, each whole."""
    files = sorted(path.glob("model*.safetensors"))
    if not files:
        raise ModelError(f"{path} has no model*.safetensors; give a directory with the model's weights")
    missing = sorted(_indexed(path) - {file.name for file in files})
    if missing:
        raise ModelError(f"{path} lacks {missing[0]}, which its index names; download the model again")
    for file in files:
        _check_weight_file(file)


def _indexed(path: Path) -> set[str]:
    try:
        index = json.loads((path / "model.safetensors.index.json").read_bytes())
        return {str(name) for name in index["weight_map"].values()}
    except FileNotFoundError:
        return set()
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise ModelError(f"{path / 'model.safetensors.index.json'} is damaged; download it again") from error


def _check_weight_file(file: Path) -> None:
    size = file.stat().st_size
    try:
        with file.open("rb") as opened:
            (header_bytes,) = struct.unpack("<Q", opened.read(8))
            header = json.loads(opened.read(min(header_bytes, size, MAX_HEADER_BYTES)))
        ends = [tensor["data_offsets"][1] for name, tensor in header.items() if name != "__metadata__"]
        expected = 8 + header_bytes + max(ends, default=0)
    except (struct.error, ValueError, KeyError, TypeError, AttributeError, IndexError) as error:
        raise ModelError(f"{file} is not a safetensors file or is corrupt; download it again") from error
    if expected != size:
        raise ModelError(
            f"{file} has {size} bytes instead of {expected}: it is truncated or corrupt; download it again"
        )


def _why(path: Path, config: dict[str, Any], error: Exception) -> str:
    kind = config["model_type"]
    text = " ".join(str(error).split())
    if "parameters" in text or "shape" in text.lower():
        return f"The weights in {path} do not match its config.json: {_shortened(text)}"
    return f"mlx-lm cannot use {path} as a {kind!r} model: {_shortened(text or type(error).__name__)}"


def _shortened(text: str, limit: int = 200) -> str:
    return text if len(text) <= limit else text[:limit].rsplit(" ", 1)[0] + " ..."
