"""The configuration in force: a strict TOML file, the environment and the flags, parsed once into `cluster.settings`.

A flag beats the environment, which beats the file, which beats the default; `Resolved.origins` says for each key where
its value came from. Knows nothing of models, processes or sockets. An unknown key, a wrong type or an impossible value
is a `UsageError` that names the key and where it stands.
"""

import difflib
import re
import tomllib
from collections.abc import Iterator, Mapping, Sequence
from decimal import Decimal
from enum import EnumType
from operator import attrgetter
from pathlib import Path
from typing import Any, get_args, get_type_hints

import msgspec

from cluster.contradictions import API_KEYS, check_settings, check_workers
from cluster.settings import (
    ApiSettings,
    Bytes,
    CacheSettings,
    EngineSettings,
    GroupSettings,
    HostSettings,
    KeySettings,
    KvCacheSettings,
    LinkNaming,
    LinkSettings,
    LogSettings,
    ModelSettings,
    PlanSettings,
    RecoverySettings,
    Settings,
    SpeculationSettings,
    StrategySettings,
    WorkerSettings,
)
from protocol.errors import UsageError
from protocol.interfaces.names import is_link_name
from protocol.values import Count, KvSettings, LayerRange

BUNDLED_MODEL = "models/tandem-demo"
# What is no model in `speculation.draft`.
DRAFT_WORDS = ("auto", "off", "lookup")
DEFAULT_CONFIG = "configs/local.toml"
DEFAULT_WORKERS = 2

_SIZE = re.compile(r"^\s*(\d+(?:\.\d+)?)\s*([KMGT]?)(i?)B?\s*$", re.IGNORECASE)
_EXPONENT = {"": 0, "K": 1, "M": 2, "G": 3, "T": 4}
_HUB_ID = re.compile(r"^[A-Za-z0-9][\w.-]*/[A-Za-z0-9][\w.-]*$")


class Resolved(msgspec.Struct, frozen=True, kw_only=True):
    """The settings and, for each key ("api.port", "workers[0].name"), where its value came from."""

    settings: Settings
    origins: dict[str, str]

    def value(self, key: str) -> Any:
        """What is in force for a key of `origins`."""
        section, _, name = key.rpartition(".")
        table, _, index = section.rstrip("]").partition("[")
        if index:
            return getattr(attrgetter(table)(self.settings)[int(index)], name)
        struct = getattr(self.settings, section)
        return getattr(struct if name in struct.__struct_fields__ else struct.kv, name)


class Flags(msgspec.Struct, frozen=True, kw_only=True):
    """What the command line of `start` may override."""

    model: str | None = None
    served_model_name: str | None = None
    kv_cache: str | None = None
    workers: int | None = None
    port: int | None = None
    log_format: str | None = None
    allow_mixed: bool = False


_SECTIONS: dict[str, type[msgspec.Struct]] = {
    "model": ModelSettings,
    "api": ApiSettings,
    "strategy": StrategySettings,
    "kv_cache": KvCacheSettings,
    "cache": CacheSettings,
    "plan": PlanSettings,
    "recovery": RecoverySettings,
    "links": LinkSettings,
    "speculation": SpeculationSettings,
    "engine": EngineSettings,
    "logs": LogSettings,
}
_TABLES: dict[str, type[msgspec.Struct]] = {
    "workers": WorkerSettings, "hosts": HostSettings, "groups": GroupSettings, API_KEYS: KeySettings,
}  # fmt: skip
_OWN_TABLES = ("workers", "hosts", "groups")  # in no section
# How the origin of a value that the environment gave begins; the variable follows.
ENVIRONMENT_ORIGIN = "environment "
_ENVIRONMENT = {
    "USE_DISTRIBUTED_INFERENCE": "strategy.use_distributed_inference",
    "TANDEM_STRATEGY_POLICY": "strategy.policy",
    "TANDEM_MODEL": "model.path",
    "TANDEM_PORT": "api.port",
    "TANDEM_API_KEY": "api.api_key",
    "TANDEM_LISTEN": "links.listen",
    "TANDEM_PREFILL_CHUNK": "engine.prefill_chunk",
    "TANDEM_TRACE": "engine.trace",
    "TANDEM_LOG_FORMAT": "logs.format",
}
_FLAGS = {
    "--port": ("port", "api.port"),
    "--log-format": ("log_format", "logs.format"),
    "--kv-cache": ("kv_cache", "kv_cache.kind"),
    "--model": ("model", "model.path"),
    "--served-model-name": ("served_model_name", "model.served_name"),
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

    Relative paths are taken from the file's folder in a file, from `working_directory` elsewhere.

    Raises:
        UsageError: the file cannot be read or any value of the three sources is wrong.
    """
    file = config_file or checkout / DEFAULT_CONFIG
    document = _read_toml(file)
    values: dict[str, dict[str, Any]] = {section: {} for section in _SECTIONS}
    origins: dict[str, str] = {}
    for key, value, origin in _given(document, file, environment, flags):
        section, _, name = key.partition(".")
        values[section][name] = _located(key, value, file.parent if origin == str(file) else working_directory)
        origins[key] = origin
    values["model"].setdefault("path", str(checkout / BUNDLED_MODEL))
    values["api"]["keys"] = _api_keys(document.get("api", {}), file, origins)
    workers = _workers(document, file, flags.workers, origins)
    settings = msgspec.structs.replace(
        _settings(values, workers),
        hosts=_hosts(document, file, origins),
        groups=_groups(document, file, origins),
        allow_mixed=flags.allow_mixed,
    )
    check_settings(settings, file)
    return Resolved(settings=settings, origins=all_origins(settings, origins))


def _given(
    document: dict[str, Any], file: Path, environment: Mapping[str, str], flags: Flags
) -> Iterator[tuple[str, Any, str]]:
    """Every checked (key, value, origin) of file, environment and flags, the weakest first; without the workers."""
    for key, value in _file_values(document, file):
        yield key, value, str(file)
    for variable, key in _ENVIRONMENT.items():
        if variable in environment:
            value = _listed(environment[variable]) if key == "links.listen" else environment[variable]
            yield key, _checked(key, value, variable, strict=False), f"{ENVIRONMENT_ORIGIN}{variable}"
    for flag, (attribute, key) in _FLAGS.items():
        if (value := getattr(flags, attribute)) is not None:
            yield key, _checked(key, value, flag), flag


def _listed(text: str) -> str | tuple[str, ...]:
    """Addresses with commas between them, or the word for all."""
    return text if text == "all" else tuple(part.strip() for part in text.split(","))


def _located(key: str, value: Any, folder: Path) -> Any:
    """A path made absolute, from `folder` on; any other value as it is."""
    if key == "model.path" or (key == "speculation.draft" and value not in DRAFT_WORDS):
        return model_location(value, folder)
    return str((folder / Path(value).expanduser()).resolve()) if key == "engine.trace" else value


def _settings(values: dict[str, dict[str, Any]], workers: tuple[WorkerSettings, ...]) -> Settings:
    """Checked values by section and name, each as its type."""
    kv_cache = values["kv_cache"]
    kv = KvSettings(**{name: value for name, value in kv_cache.items() if name in KvSettings.__struct_fields__})
    own = {name: value for name, value in kv_cache.items() if name not in KvSettings.__struct_fields__}
    sections: dict[str, Any] = {
        name: struct(**values[name]) for name, struct in _SECTIONS.items() if struct is not KvCacheSettings
    }
    return Settings(**sections, kv_cache=KvCacheSettings(kv=kv, **own), workers=workers)


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
    """Every checked "section.key" of the file except workers, hosts and groups."""
    for section, content in document.items():
        _check_known(section, [*_SECTIONS, *_OWN_TABLES], "", file)
        if section in _TABLES:
            continue
        if not isinstance(content, dict):
            raise UsageError(f"{file}: {section} must be a section, [{section}], not {content!r}")
        for name, value in content.items():
            _check_known(name, [*_keys(section), *_tables_in(section)], f"{section}.", file)
            if name in _tables_in(section):
                continue
            yield f"{section}.{name}", _checked(f"{section}.{name}", value, str(file))


def _check_known(name: str, known: Sequence[str], prefix: str, file: Path) -> None:
    if name in known:
        return
    nearest = difflib.get_close_matches(name, known, n=1, cutoff=0.0)[0]
    raise UsageError(f"{file}: unknown key {prefix}{name}; did you mean {prefix}{nearest}?")


def _checked(key: str, value: Any, origin: str, *, strict: bool = True) -> Any:
    """`value` as the type of `key` ("section.name", "workers[i].name", "hosts[i].name", "groups[i].workers" or "api.keys[i].name")."""
    section, _, name = key.rpartition(".")
    struct = _SECTIONS.get(section) or _TABLES[section.partition("[")[0]]
    if struct is KvCacheSettings and name in KvSettings.__struct_fields__:
        struct = KvSettings
    return _converted(get_type_hints(struct, include_extras=True)[name], key, value, origin, strict=strict)


def _keys(section: str) -> tuple[str, ...]:
    """The names that a section of the file may hold."""
    struct = _SECTIONS[section]
    if struct is KvCacheSettings:
        return (*KvSettings.__struct_fields__, "adaptive")
    return tuple(name for name in struct.__struct_fields__ if name not in _tables_in(section))


def _tables_in(section: str) -> tuple[str, ...]:
    """The names of the tables, [[section.name]], that stand within a section."""
    return tuple(table.removeprefix(f"{section}.") for table in _TABLES if table.startswith(f"{section}."))


def is_secret(key: str) -> bool:
    """Whether what is configured is shown to nobody."""
    return key == "api.api_key" or (key.startswith(f"{API_KEYS}[") and key.endswith("].key"))


def _converted(kind: Any, key: str, value: Any, origin: str, *, strict: bool) -> Any:
    given = "" if is_secret(key) else f", not {value!r}"
    problem = UsageError(f"{origin}: {key} must be {_expectation(kind)}{given}")
    try:
        if isinstance(value, str) and Bytes in (kind, *get_args(kind)):
            value = parse_size(value)
        converted = msgspec.convert(value, kind, strict=strict)
    except (msgspec.ValidationError, ValueError):
        raise problem from None
    if isinstance(converted, LayerRange) and not 0 <= converted.start < converted.end:
        raise problem
    if kind == LinkNaming and not all(map(is_link_name, converted)):
        raise problem
    return converted


def _expectation(kind: Any) -> str:
    """What a type wants, in words; optional types are described by what they hold when present."""
    for part in (kind, *get_args(kind)):
        for note in getattr(part, "__metadata__", ()):
            return str(note.description)
    choices = [str(choice) for choice in (kind if isinstance(kind, EnumType) else get_args(kind))]
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
    workers: list[WorkerSettings] = []
    for index, given in enumerate(_tables("workers", document["workers"], file, origins)):
        workers.append(WorkerSettings(**{"name": f"worker-{index}"} | given))
    check_workers(workers, file)
    return tuple(workers)


def _hosts(document: dict[str, Any], file: Path, origins: dict[str, str]) -> tuple[HostSettings, ...]:
    """A host without a name has the first part of its address as one."""
    hosts: list[HostSettings] = []
    for index, given in enumerate(_tables("hosts", document["hosts"], file, origins) if "hosts" in document else ()):
        if "address" not in given:
            raise UsageError(f'{file}: hosts[{index}].address is missing; give it as in address = "mac2.local"')
        hosts.append(HostSettings(**{"name": _name_of(given["address"])} | given))
    return tuple(hosts)


def _groups(document: dict[str, Any], file: Path, origins: dict[str, str]) -> tuple[GroupSettings, ...]:
    found = _tables("groups", document["groups"], file, origins) if "groups" in document else ()
    return tuple(GroupSettings(**given) for given in found)


def _name_of(address: str) -> str:
    """mac2 of mac2.local; of an address in numbers all of it."""
    label = address if address.replace(".", "").isdigit() or ":" in address else address.partition(".")[0]
    return re.sub(r"[^A-Za-z0-9._-]", "-", label).strip("-")[:64]


def _api_keys(api: dict[str, Any], file: Path, origins: dict[str, str]) -> tuple[KeySettings, ...]:
    keys: list[KeySettings] = []
    for index, given in enumerate(_tables(API_KEYS, api["keys"], file, origins) if "keys" in api else ()):
        if missing := [name for name in ("name", "key") if name not in given]:
            raise UsageError(f"{file}: {API_KEYS}[{index}].{missing[0]} is missing; each key has a name and a key")
        keys.append(KeySettings(**given))
    return tuple(keys)


def _tables(table: str, tables: Any, file: Path, origins: dict[str, str]) -> Iterator[dict[str, Any]]:
    """The checked values of each [[table]] of the file."""
    if not isinstance(tables, list) or not tables or not all(isinstance(each, dict) for each in tables):
        raise UsageError(f"{file}: {table} must be one or more [[{table}]] sections")
    for index, given in enumerate(tables):
        fields: dict[str, Any] = {}
        for name, value in given.items():
            key = f"{table}[{index}].{name}"
            _check_known(name, _TABLES[table].__struct_fields__, f"{table}[{index}].", file)
            fields[name] = _checked(key, value, str(file))
            origins[key] = str(file)
        yield fields


def all_origins(settings: Settings, origins: dict[str, str]) -> dict[str, str]:
    """Origins of every key, in the order of the sections."""
    keys = [f"{section}.{name}" for section in _SECTIONS for name in _keys(section)]
    for table, struct in _TABLES.items():
        keys += [
            f"{table}[{index}].{name}"
            for index in range(len(attrgetter(table)(settings)))
            for name in struct.__struct_fields__
        ]
    return {key: origins.get(key, "default") for key in keys}
