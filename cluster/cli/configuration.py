"""The command `config`: what is in force in the cluster that runs, or what a start would use, with where each value came from."""

from pathlib import Path
from typing import Any

from cluster.cli.last_start import last_start
from cluster.cli.session import Session
from cluster.cli.showing import layers_text, size_text
from cluster.config import Flags, Resolved, all_origins, is_secret

_AT_ITS_START = "its start"


def config_lines(session: Session, config_file: Path | None, flags: Flags) -> list[str]:
    """Every key with its value and its origin, behind a line that says whose they are. Of the cluster that runs, unless a file or flags
    are given. Raises UsageError.
    """
    state = session.running_state()
    running = None if state is None or config_file is not None or flags != Flags() else _running(session)
    if state is None or running is None:
        return [
            "# what `./launch.sh start` with these options would use",
            *lines_of(session.settings(config_file, flags), {}),
        ]
    return [f"# in force in the cluster at {state.api}", *lines_of(running, _found_out(running, session.status()))]


def lines_of(resolved: Resolved, found_out: dict[str, str]) -> list[str]:
    """found_out: what counts in place of a value that nobody set. The keys of the API are not shown."""
    shown = {key: f"{key} = {_shown(key, resolved.value(key), found_out.get(key))}" for key in resolved.origins}
    width = max(map(len, shown.values()))
    return [f"{text:<{width}}  # {resolved.origins[key]}" for key, text in shown.items()]


def _running(session: Session) -> Resolved | None:
    settings, last = session.running_settings(), last_start(session.home)
    if settings is None:
        return None
    if last is not None and last.settings == settings:
        return last
    return Resolved(settings=settings, origins=dict.fromkeys(all_origins(settings, {}), _AT_ITS_START))


def _found_out(running: Resolved, status: dict[str, Any]) -> dict[str, str]:
    """What the cluster chose where it was told nothing, by key."""
    workers = {worker["name"]: worker for worker in status["workers"]}
    found = {}
    for index, each in enumerate(running.settings.workers):
        worker = workers.get(each.name)
        if worker is not None:
            found[f"workers[{index}].memory_limit"] = size_text(worker["memory"]["limit_bytes"])
            found[f"workers[{index}].layers"] = layers_text(worker["layers"])
    return found


def _shown(key: str, value: Any, found_out: str | None) -> str:
    if is_secret(key) and value is not None:
        return "(set)"
    return f"(not set: {found_out})" if value is None and found_out is not None else _toml(value)


def _toml(value: Any) -> str:
    if value is None:
        return "(not set)"
    if isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, tuple):
        return str(list(value))
    if isinstance(value, float):
        return f"{value:g}"
    return f'"{value}"' if isinstance(value, str) else str(value)
