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
# Fields that count heads of keys and values, and those that count the heads of queries to them.
_KV_HEADS = {
    "num_key_value_heads": "num_attention_heads",
    "num_swa_key_value_heads": "num_swa_attention_heads",
    "swa_num_key_value_heads": "swa_num_attention_heads",
    "n_kv_heads": "n_heads",
}


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
        raise ModelError(f"there is no tiny model of {architecture}: {special['note']}")
    text_class, text_special = special.pop("text", None), special.pop("text_config", {})
    config = {"model_type": architecture} | _filled(arguments_class(architecture), special)
    if text_class is None:
        return config | overrides
    module, _, name = text_class.partition(".")
    text = {"model_type": module} | _filled(getattr(_module(module), name), text_special) | overrides
    return config | {"text_config": text, "num_hidden_layers": text["num_hidden_layers"]}


def shrunk(config: Mapping[str, Any], *, only_windows: bool = False) -> dict[str, Any]:
    """The same structure (layers, their kinds, who shares what) with the sizes of `widths.toml`.

    only_windows: weights keep their shapes; only what decides how much of a context counts gets small.
    """
    architecture = architecture_of(config)
    special = _table("architectures.toml").get(architecture, {})
    sizes = _sizes(only_windows=only_windows)
    small = _shrunk(config, arguments_class(architecture), special, sizes)
    if isinstance(config.get("text_config"), Mapping):
        module, _, name = special.get("text", f"{architecture}.ModelArgs").partition(".")
        text_class = getattr(_module(module), name)
        small["text_config"] = _shrunk(config["text_config"], text_class, special.get("text_config", {}), sizes)
    return small


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
        raise ModelError(f"the installed mlx-lm has no architecture {architecture!r}; use another model") from error
    except SystemExit as error:  # one architecture ends the process where a package of its own is missing
        raise ModelError(f"mlx-lm's code for {architecture!r} needs a package that is not installed") from error
    if not hasattr(module, "Model"):
        raise ModelError(f"the installed mlx-lm has no architecture {architecture!r}; use another model")
    return module


def _has_model(name: str) -> bool:
    spec = importlib.util.find_spec(f"mlx_lm.models.{name}")
    if spec is None or spec.origin is None:
        return False
    return "\nclass Model(" in Path(spec.origin).read_text("utf-8")


def _filled(arguments: type, special: Mapping[str, Any]) -> dict[str, Any]:
    widths, defaults = _sizes(), _table("widths.toml")["defaults"]
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
    return {name: value for name, value in (dict(special) | config).items() if name != "model_type"}


def _sizes(*, only_windows: bool = False) -> dict[str, Any]:
    """Small sizes by the name of their field."""
    table = _table("widths.toml")
    sizes: dict[str, Any] = table["windows"]
    return sizes if only_windows else table["widths"] | sizes


def _shrunk(
    config: Mapping[str, Any], arguments: type, special: Mapping[str, Any], sizes: Mapping[str, Any]
) -> dict[str, Any]:
    small = {name: _small(name, value, sizes, special) for name, value in config.items()}
    for field in dataclasses.fields(arguments):
        if field.name in sizes and field.name not in small and isinstance(field.default, int) and field.default:
            small[field.name] = special.get(field.name, sizes[field.name])
    return _as_many_kv_heads(config, small)


def _as_many_kv_heads(config: Mapping[str, Any], small: dict[str, Any]) -> dict[str, Any]:
    """Whether each query head has keys of its own is structure."""
    equal = {kv for kv, heads in _KV_HEADS.items() if config.get(kv) and config[kv] == config.get(heads)}
    return small | {kv: small[_KV_HEADS[kv]] for kv in equal}


def _small(name: str, value: Any, sizes: Mapping[str, Any], special: Mapping[str, Any]) -> Any:
    if isinstance(value, Mapping):
        nested = special.get(name, {})
        nested = nested if isinstance(nested, Mapping) else {}
        return _as_many_kv_heads(value, {key: _small(key, item, sizes, nested) for key, item in value.items()})
    if isinstance(value, list) and any(isinstance(item, Mapping) for item in value):
        return [_small(name, item, sizes, {}) for item in value]
    if name in _table("widths.toml")["scalars"] and "hidden_size" in sizes:
        return _table("widths.toml")["scalars"][name]
    if name not in sizes or isinstance(value, bool | str) or not value:
        return value
    small = sizes[name] if name in _table("widths.toml")["windows"] else special.get(name, sizes[name])
    if isinstance(value, list):
        return [
            _size(item, small[index % len(small)] if isinstance(small, list) else small)
            for index, item in enumerate(value)
        ]
    return _size(value, small[0] if isinstance(small, list) else small)


def _size(value: Any, small: Any) -> Any:
    """None of a thing, and one alone, are structure."""
    return value if value in (0, 1) else small
