"""The configuration in force: a strict TOML file, the environment and the flags, parsed once into frozen structs.

A flag beats the environment, which beats the file, which beats the default; `Resolved.origins` says for each key where
its value came from. Knows nothing of models, processes or sockets. An unknown key, a wrong type or an impossible value
is a `UsageError` that names the key and where it stands.
"""

import difflib
import re
import tomllib
from collections.abc import Iterator, Mapping, Sequence
from decimal import Decimal
from pathlib import Path
from typing import Annotated, Any, Literal, get_args, get_type_hints

import msgspec
from msgspec import Meta

from protocol.errors import UsageError
from strategy.decision import POLICIES

Mode = Literal["auto", "always", "never"]
Policy = Literal["thresholds", "measured"]
KvKindName = Literal["dynamic", "static", "rotating", "quantized", "keys-only", "paged"]
Scope = Literal["shared", "api-key"]

Port = Annotated[int, Meta(ge=1, le=65535, description="a port number from 1 to 65535")]
Count = Annotated[int, Meta(ge=1, description="a whole number of at least 1")]
Threshold = Annotated[int, Meta(ge=0, description="a whole number of at least 0")]
Bytes = Annotated[int, Meta(ge=1, description='a number of bytes or a size such as "12GB"')]
Layers = Annotated[tuple[Threshold, Count], Meta(description="[start, end] with 0 <= start < end, end not included")]
Name = Annotated[
    str, Meta(pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]{0,63}$", description="letters, digits, dots, dashes, underscores")
]
Text = Annotated[str, Meta(min_length=1, description="a string that is not empty")]
Switch = Annotated[bool, Meta(description="true or false")]

BUNDLED_MODEL = "models/tandem-demo"
DEFAULT_CONFIG = "configs/local.toml"
DEFAULT_WORKERS = 2

_SIZE = re.compile(r"^\s*(\d+(?:\.\d+)?)\s*([KMGT]?)(i?)B?\s*$", re.IGNORECASE)
_EXPONENT = {"": 0, "K": 1, "M": 2, "G": 3, "T": 4}
_HUB_ID = re.compile(r"^[A-Za-z0-9][\w.-]*/[A-Za-z0-9][\w.-]*$")
_LOOPBACK = ("127.0.0.1", "localhost", "::1")


class ModelSettings(msgspec.Struct, frozen=True, kw_only=True):
    """path: an absolute directory in the Hugging Face layout, or a hub id."""

    path: Text


class ApiSettings(msgspec.Struct, frozen=True, kw_only=True):
    """Where the HTTP API listens. max_queue: requests that may wait before further ones get status 429."""

    host: Text = "127.0.0.1"
    port: Port = 8420
    api_key: Text | None = None
    max_queue: Count = 256


class StrategySettings(msgspec.Struct, frozen=True, kw_only=True):
    """How a request's strategy is chosen; thresholds count tokens and are inclusive."""

    use_distributed_inference: Mode = "auto"
    policy: Policy = "thresholds"
    prompt_threshold: Threshold = 100
    generation_threshold: Threshold = 50


class KvCacheSettings(msgspec.Struct, frozen=True, kw_only=True):
    """The KV cache of a running request, in mlx-lm's terms."""

    kind: KvKindName = "dynamic"
    bits: Count | None = None
    key_bits: Count | None = None
    value_bits: Count | None = None
    group_size: Count | None = None
    max_tokens: Count | None = None
    keep: Threshold | None = None
    adaptive: Switch = False


class CacheSettings(msgspec.Struct, frozen=True, kw_only=True):
    """What is kept between requests; limits in bytes."""

    prefix: Switch = True
    memory_limit: Bytes | None = None
    disk_limit: Bytes | None = None
    scope: Scope = "shared"


class RecoverySettings(msgspec.Struct, frozen=True, kw_only=True):
    """wait_s: how long a request waits for a plan that can serve it."""

    wait_s: Count = 60


class WorkerSettings(msgspec.Struct, frozen=True, kw_only=True):
    """One worker. memory_limit: bytes; layers: a half-open manual range; None leaves either to the planner."""

    name: Name
    host: Text = "local"
    memory_limit: Bytes | None = None
    layers: Layers | None = None


class Settings(msgspec.Struct, frozen=True, kw_only=True):
    """Everything that can be configured. Serializes to JSON and back with msgspec."""

    model: ModelSettings
    api: ApiSettings = ApiSettings()
    strategy: StrategySettings = StrategySettings()
    kv_cache: KvCacheSettings = KvCacheSettings()
    cache: CacheSettings = CacheSettings()
    recovery: RecoverySettings = RecoverySettings()
    workers: tuple[WorkerSettings, ...]


class Resolved(msgspec.Struct, frozen=True, kw_only=True):
    """The settings and, for each key ("api.port", "workers[0].name"), where its value came from."""

    settings: Settings
    origins: dict[str, str]


class Flags(msgspec.Struct, frozen=True, kw_only=True):
    """What the command line of `start` may override."""

    model: str | None = None
    kv_cache: str | None = None
    workers: int | None = None
    port: int | None = None


_SECTIONS: dict[str, type[msgspec.Struct]] = {
    "model": ModelSettings,
    "api": ApiSettings,
    "strategy": StrategySettings,
    "kv_cache": KvCacheSettings,
    "cache": CacheSettings,
    "recovery": RecoverySettings,
}
_ENVIRONMENT = {
    "USE_DISTRIBUTED_INFERENCE": "strategy.use_distributed_inference",
    "TANDEM_STRATEGY_POLICY": "strategy.policy",
    "TANDEM_MODEL": "model.path",
    "TANDEM_PORT": "api.port",
    "TANDEM_API_KEY": "api.api_key",
}


def load_settings(
    config_file: Path | None,
    *,
    checkout: Path,
    working_directory: Path,
    environment: Mapping[str, str],
    flags: Flags,
) -> Resolved:
    """Settings from `config_file` (None: the default file of the checkout), environment and flags.

    Relative model paths are taken from the file's folder in a file, from `working_directory` elsewhere.

    Raises:
        UsageError: the file cannot be read or any value of the three sources is wrong.
    """
    file = config_file or checkout / DEFAULT_CONFIG
    document = _read_toml(file)
    values: dict[str, dict[str, Any]] = {section: {} for section in _SECTIONS}
    origins: dict[str, str] = {}

    def put(key: str, value: Any, origin: str) -> None:
        section, _, name = key.partition(".")
        values[section][name] = value
        origins[key] = origin

    for key, value in _file_values(document, file):
        put(key, value, str(file))
    for variable, key in _ENVIRONMENT.items():
        if variable in environment:
            put(key, _checked(key, environment[variable], variable, strict=False), f"environment {variable}")
    if flags.port is not None:
        put("api.port", _checked("api.port", flags.port, "--port"), "--port")
    if flags.kv_cache is not None:
        put("kv_cache.kind", _checked("kv_cache.kind", flags.kv_cache, "--kv-cache"), "--kv-cache")
    if flags.model is not None:
        put("model.path", _checked("model.path", flags.model, "--model"), "--model")

    folder = file.parent if origins.get("model.path") == str(file) else working_directory
    path = values["model"].get("path")
    values["model"]["path"] = str(checkout / BUNDLED_MODEL) if path is None else model_location(path, folder)
    workers = _workers(document, file, flags.workers, origins)
    settings = msgspec.convert({**values, "workers": msgspec.to_builtins(workers)}, Settings)
    _check_exposure(settings.api)
    _check_policy(settings.strategy, origins)
    return Resolved(settings=settings, origins=_all_origins(settings, origins))


def mode_from_environment(environment: Mapping[str, str]) -> str | None:
    """USE_DISTRIBUTED_INFERENCE, or None when it is not set.

    Raises:
        UsageError: it is set to anything but the three modes.
    """
    variable = "USE_DISTRIBUTED_INFERENCE"
    if variable not in environment:
        return None
    mode: str = _checked("strategy.use_distributed_inference", environment[variable], variable)
    return mode


def parse_size(text: str) -> int:
    """Bytes of "12GB" (powers of 1000), "1.5GiB" (powers of 1024) or "4096".

    Raises:
        ValueError: it is no size.
    """
    match = _SIZE.match(text)
    if match is None or (match[3] and not match[2]):
        raise ValueError(text)
    base = 1024 if match[3] else 1000
    return int(Decimal(match[1]) * base ** _EXPONENT[match[2].upper()])


def model_location(text: str, folder: Path) -> str:
    """An absolute directory, or a hub id such as "org/name" where no such directory lies in `folder`."""
    path = (folder / Path(text).expanduser()).resolve()
    return text if _HUB_ID.match(text) and not path.exists() else str(path)


def _read_toml(file: Path) -> dict[str, Any]:
    try:
        return tomllib.loads(file.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise UsageError(f"the configuration file {file} does not exist") from None
    except OSError as error:
        raise UsageError(f"the configuration file {file} cannot be read: {error.strerror}") from None
    except UnicodeDecodeError:
        raise UsageError(f"the configuration file {file} is not UTF-8 text") from None
    except tomllib.TOMLDecodeError as error:
        raise UsageError(f"the configuration file {file} is not valid TOML: {error}") from None


def _file_values(document: dict[str, Any], file: Path) -> Iterator[tuple[str, Any]]:
    """Every checked "section.key" of the file except the workers."""
    for section, content in document.items():
        _check_known(section, [*_SECTIONS, "workers"], "", file)
        if section == "workers":
            continue
        if not isinstance(content, dict):
            raise UsageError(f"{file}: {section} must be a section, [{section}], not {content!r}")
        for name, value in content.items():
            _check_known(name, _SECTIONS[section].__struct_fields__, f"{section}.", file)
            yield f"{section}.{name}", _checked(f"{section}.{name}", value, str(file))


def _check_known(name: str, known: Sequence[str], prefix: str, file: Path) -> None:
    if name in known:
        return
    nearest = difflib.get_close_matches(name, known, n=1, cutoff=0.0)[0]
    raise UsageError(f"{file}: unknown key {prefix}{name}; did you mean {prefix}{nearest}?")


def _checked(key: str, value: Any, origin: str, *, strict: bool = True) -> Any:
    """`value` as the type of `key` ("section.name" or "workers[i].name")."""
    section, _, name = key.partition(".")
    struct = _SECTIONS.get(section, WorkerSettings)
    return _converted(get_type_hints(struct, include_extras=True)[name], key, value, origin, strict=strict)


def _converted(kind: Any, key: str, value: Any, origin: str, *, strict: bool) -> Any:
    problem = UsageError(f"{origin}: {key} must be {_expectation(kind)}, not {value!r}")
    try:
        if isinstance(value, str) and Bytes in (kind, *get_args(kind)):
            value = parse_size(value)
        converted = msgspec.convert(value, kind, strict=strict)
    except (msgspec.ValidationError, ValueError):
        raise problem from None
    if isinstance(converted, tuple) and converted[0] >= converted[1]:
        raise problem
    return converted


def _expectation(kind: Any) -> str:
    """What a type wants, in words; optional types are described by what they hold when present."""
    for part in (kind, *get_args(kind)):
        for note in getattr(part, "__metadata__", ()):
            return str(note.description)
    choices = [str(choice) for choice in get_args(kind)]
    return f"{', '.join(choices[:-1])} or {choices[-1]}"


def _workers(
    document: dict[str, Any], file: Path, wanted: int | None, origins: dict[str, str]
) -> tuple[WorkerSettings, ...]:
    """The workers of the file; `wanted` of them, named anew, when the flag gives a number."""
    workers = _file_workers(document, file, origins)
    if wanted is None:
        return workers
    wanted = _converted(Count, "the number of workers", wanted, "--workers", strict=True)
    limits = [worker.memory_limit for worker in workers[:wanted]] + [None] * (wanted - len(workers))
    for key in [key for key in origins if key.startswith("workers[")]:
        if not key.endswith(".memory_limit") or int(key[8 : key.index("]")]) >= wanted:
            del origins[key]
    origins.update({f"workers[{index}].name": "--workers" for index in range(wanted)})
    return tuple(WorkerSettings(name=f"worker-{index}", memory_limit=limit) for index, limit in enumerate(limits))


def _file_workers(document: dict[str, Any], file: Path, origins: dict[str, str]) -> tuple[WorkerSettings, ...]:
    if "workers" not in document:
        return tuple(WorkerSettings(name=f"worker-{index}") for index in range(DEFAULT_WORKERS))
    tables = document["workers"]
    if not isinstance(tables, list) or not tables or not all(isinstance(table, dict) for table in tables):
        raise UsageError(f"{file}: workers must be one or more [[workers]] sections")
    workers: list[WorkerSettings] = []
    for index, table in enumerate(tables):
        fields: dict[str, Any] = {"name": f"worker-{index}"}
        for name, value in table.items():
            _check_known(name, WorkerSettings.__struct_fields__, f"workers[{index}].", file)
            fields[name] = _checked(f"workers[{index}].{name}", value, str(file))
            origins[f"workers[{index}].{name}"] = str(file)
        _check_worker(fields, index, [worker.name for worker in workers], file)
        workers.append(WorkerSettings(**fields))
    return tuple(workers)


def _check_worker(fields: dict[str, Any], index: int, taken: list[str], file: Path) -> None:
    if fields["name"] in taken:
        raise UsageError(
            f"{file}: workers[{index}].name {fields['name']!r} is used twice; give each worker its own name"
        )
    host = fields.get("host", "local")
    if host != "local":
        raise UsageError(
            f'{file}: workers[{index}].host {host!r}: workers on other hosts come with a later version; use "local"'
        )


def _check_exposure(api: ApiSettings) -> None:
    if api.host not in _LOOPBACK and api.api_key is None:
        raise UsageError(f"api.host {api.host!r} can be reached from other machines; set api.api_key as well")


def _check_policy(strategy: StrategySettings, origins: Mapping[str, str]) -> None:
    if strategy.policy not in POLICIES:
        raise UsageError(
            f"{origins['strategy.policy']}: strategy.policy {strategy.policy!r} comes with a later version; "
            f"use {' or '.join(POLICIES)}"
        )


def _all_origins(settings: Settings, origins: dict[str, str]) -> dict[str, str]:
    """Origins of every key, in the order of the sections."""
    keys = [f"{section}.{name}" for section, struct in _SECTIONS.items() for name in struct.__struct_fields__]
    keys += [
        f"workers[{index}].{name}"
        for index in range(len(settings.workers))
        for name in WorkerSettings.__struct_fields__
    ]
    return {key: origins.get(key, "default") for key in keys}
