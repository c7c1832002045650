"""What settings cannot say together: names and keys that are used twice, groups of nobody, an API that is open to others without a key.

Knows settings as a whole, each of which is right by itself, and the file that they stand in, for its name.
"""

from collections.abc import Sequence
from pathlib import Path

from cluster.settings import ApiSettings, Settings, WorkerSettings
from protocol.errors import UsageError

API_KEYS = "api.keys"
_LOCAL = "local"
_LOOPBACK = ("127.0.0.1", "localhost", "::1")


def check_settings(settings: Settings, file: Path) -> None:
    """Raises UsageError."""
    _check_hosts(settings, file)
    _check_groups(settings, file)
    _check_keys(settings.api, file)
    if settings.api.host not in _LOOPBACK and not settings.api.asks_for_key:
        raise UsageError(f"api.host {settings.api.host!r} can be reached from other machines; set api.api_key as well")


def check_workers(workers: Sequence[WorkerSettings], file: Path) -> None:
    """Those of the file, also where a flag asks for others. Raises UsageError."""
    names: list[str] = []
    for index, worker in enumerate(workers):
        if worker.name in names:
            raise UsageError(
                f"{file}: workers[{index}].name {worker.name!r} is used twice; give each worker its own name"
            )
        if worker.host != _LOCAL:
            raise UsageError(
                f'{file}: workers[{index}].host {worker.host!r} must be "local"; '
                "workers on other hosts are started by [[hosts]]"
            )
        names.append(worker.name)


def _check_hosts(settings: Settings, file: Path) -> None:
    """Hosts and all workers are told apart by name."""
    taken = [worker.name for worker in settings.workers]
    for index, host in enumerate(settings.hosts):
        if host.name == _LOCAL or host.name in [other.name for other in settings.hosts[:index]]:
            raise UsageError(f"{file}: hosts[{index}].name {host.name!r} is taken; give each host its own name")
        if used := [name for name in host.worker_names if name in taken]:
            raise UsageError(f"{file}: hosts[{index}] has a worker {used[0]!r} like another; give it another name")
        taken += host.worker_names


def _check_groups(settings: Settings, file: Path) -> None:
    """Each worker is in one group, once, and each stage has as many; a name that the configuration does not know may be a guest's."""
    taken: list[str] = []
    for index, group in enumerate(settings.groups):
        if len(group.workers) < 2:
            raise UsageError(f"{file}: groups[{index}].workers is missing; name the workers that compute together")
        if len(group.workers) % group.num_ranks:
            raise UsageError(
                f"{file}: groups[{index}].ranks is {group.ranks}, which does not divide its {len(group.workers)} workers; each "
                "stage has as many"
            )
        for name in group.workers:
            if name in taken:
                raise UsageError(
                    f"{file}: groups[{index}].workers names {name!r} again; a worker is in one group, once"
                )
            taken.append(name)


def _check_keys(api: ApiSettings, file: Path) -> None:
    """Keys are told apart by themselves and by name."""
    for index, key in enumerate(api.keys):
        others = api.keys[:index]
        if key.name in [other.name for other in others]:
            raise UsageError(f"{file}: {API_KEYS}[{index}].name {key.name!r} is used twice; give each key its own name")
        if key.key in [api.api_key, *(other.key for other in others)]:
            raise UsageError(f"{file}: {API_KEYS}[{index}].key is used twice; give {key.name} a key of its own")
