"""Tiny configurations of every architecture of the installed mlx-lm, and real ones shrunk to the same structure.

Owns the table of small sizes (`widths.toml`) and the layer structures (`architectures.toml`). Facts come from the fields
of mlx-lm's own configuration classes; nothing is downloaded.
"""

import dataclasses
import importlib
import importlib.util
import pkgutil
import tomllib
from collections.abc import Mapping
from functools import cache
from importlib.resources import files
from pathlib import Path
from typing import Any

import mlx_lm.models
from mlx_lm.utils import MODEL_ARCHITECTURE_REMAPPING, MODEL_REMAPPING

from protocol.errors import ModelError

_NOT_ARCHITECTURES = frozenset({"base", "cache", "mla", "pipeline", "rope_utils", "ssm", "switch_layers"})


@cache
def _table(name: str) -> dict[str, Any]:
    return tomllib.loads(files(__package__).joinpath(name).read_text("utf-8"))


def architectures() -> tuple[str, ...]:
    """The names of every architecture of the installed mlx-lm, without importing their code."""
    names = (module.name for module in pkgutil.iter_modules(mlx_lm.models.__path__))
    return tuple(sorted(name for name in names if name not in _NOT_ARCHITECTURES and _has_model(name)))


def tiny_config(architecture: str, **overrides: Any) -> dict[str, Any]:
    """A configuration of a few thousand weights with every kind of layer that the architecture knows.

    overrides: fields of config.json, taken as they are; with a nested text configuration they go there.
    Raises ModelError for an architecture that the installed mlx-lm lacks or that cannot be made.
    """
    special = dict(_table("architectures.toml").get(architecture, {}))
    if "note" in special:
        raise ModelError(f"There is no tiny model of {architecture}: {special['note']}.")
    text_class, text_special = special.pop("text", None), special.pop("text_config", {})
    config = {"model_type": architecture} | _filled(arguments_class(architecture), special)
    if text_class is None:
        return config | overrides
    module, _, name = text_class.partition(".")
    text = {"model_type": module} | _filled(getattr(_module(module), name), text_special) | overrides
    return config | {"text_config": text, "num_hidden_layers": text["num_hidden_layers"]}


def shrunk(config: Mapping[str, Any]) -> dict[str, Any]:
    """The same structure (layers, their kinds, who shares what) with the sizes of `widths.toml`."""
    architecture = architecture_of(config)
    special = _table("architectures.toml").get(architecture, {})
    if isinstance(config.get("text_config"), Mapping) and "text" in special:
        module, _, name = special["text"].partition(".")
        text = _shrunk(config["text_config"], getattr(_module(module), name), special.get("text_config", {}))
        return {**_shrunk(config, arguments_class(architecture), special), "text_config": text}
    return _shrunk(config, arguments_class(architecture), special)


def architecture_of(config: Mapping[str, Any]) -> str:
    """The name of mlx-lm's module for a config.json."""
    kind, classes = config["model_type"], config.get("architectures") or ()
    for name in (classes,) if isinstance(classes, str) else classes:
        if (kind, name) in MODEL_ARCHITECTURE_REMAPPING:
            return MODEL_ARCHITECTURE_REMAPPING[kind, name]
    return MODEL_REMAPPING.get(kind, kind)


def arguments_class(architecture: str) -> Any:
    """The dataclass of the architecture's configuration. Raises ModelError when mlx-lm lacks the architecture."""
    return _module(architecture).ModelArgs


def model_class(architecture: str) -> Any:
    """The class of the architecture's model. Raises ModelError when mlx-lm lacks the architecture."""
    return _module(architecture).Model


def _module(architecture: str) -> Any:
    try:
        module = importlib.import_module(f"mlx_lm.models.{architecture}")
    except ImportError as error:
        raise ModelError(f"The installed mlx-lm has no architecture {architecture!r}; use another model.") from error
    except SystemExit as error:  # one architecture ends the process where a package of its own is missing
        raise ModelError(f"mlx-lm's code for {architecture!r} needs a package that is not installed.") from error
    if not hasattr(module, "Model"):
        raise ModelError(f"The installed mlx-lm has no architecture {architecture!r}; use another model.")
    return module


def _has_model(name: str) -> bool:
    spec = importlib.util.find_spec(f"mlx_lm.models.{name}")
    if spec is None or spec.origin is None:
        return False
    return "\nclass Model(" in Path(spec.origin).read_text("utf-8")


def _filled(arguments: type, special: Mapping[str, Any]) -> dict[str, Any]:
    widths, defaults = _table("widths.toml")["widths"], _table("widths.toml")["defaults"]
    config: dict[str, Any] = {}
    for field in dataclasses.fields(arguments):
        known = field.default
        if field.name in special:
            config[field.name] = special[field.name]
        elif field.name in widths and known not in (None, 0):
            config[field.name] = widths[field.name]
        elif field.name in defaults and known is not None:
            config[field.name] = defaults[field.name]
        elif known is dataclasses.MISSING and field.default_factory is dataclasses.MISSING:
            config[field.name] = None
    return {name: value for name, value in config.items() if name != "model_type"}


def _shrunk(config: Mapping[str, Any], arguments: type, special: Mapping[str, Any]) -> dict[str, Any]:
    widths = _table("widths.toml")["widths"]
    small = {name: _small(name, value, widths, special) for name, value in config.items()}
    for field in dataclasses.fields(arguments):
        if field.name in widths and field.name not in small and isinstance(field.default, int) and field.default:
            small[field.name] = special.get(field.name, widths[field.name])
    return small


def _small(name: str, value: Any, widths: Mapping[str, Any], special: Mapping[str, Any]) -> Any:
    if isinstance(value, Mapping):
        nested = special.get(name, {})
        return {
            key: _small(key, item, widths, nested if isinstance(nested, Mapping) else {}) for key, item in value.items()
        }
    if name in _table("widths.toml")["scalars"]:
        return _table("widths.toml")["scalars"][name]
    if name not in widths or isinstance(value, bool | str) or not value:
        return value
    width = special.get(name, widths[name])
    if isinstance(value, list):
        return [width[index % len(width)] if isinstance(width, list) else width for index in range(len(value))]
    return width[0] if isinstance(width, list) else width
