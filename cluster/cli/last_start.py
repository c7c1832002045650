"""What the last start of a home that became ready was told, and from where: what runs, and what a command starts that finds nothing.

Knows no processes: whether that cluster still runs is somebody else's question.
"""

import msgspec

from cluster.config import ENVIRONMENT_ORIGIN, Resolved
from protocol.home import Home


def remember_start(home: Home, resolved: Resolved) -> None:
    """It became ready with these."""
    home.write_private(home.started_file, msgspec.json.encode(resolved))


def last_start(home: Home) -> Resolved | None:
    """None where there was none, or what is written is not of this version."""
    try:
        return msgspec.json.decode(home.started_file.read_bytes(), type=Resolved)
    except (OSError, ValueError):
        return None


def as_last(home: Home, now: Resolved) -> Resolved:
    """What the last start was told, but for what the environment says now; `now` itself where there was none."""
    last = last_start(home)
    if last is None:
        return now
    settings, origins = last.settings, dict(last.origins)
    for key, origin in now.origins.items():
        if origin.startswith(ENVIRONMENT_ORIGIN):
            section, _, name = key.partition(".")
            changed = msgspec.structs.replace(getattr(settings, section), **{name: now.value(key)})
            settings, origins[key] = msgspec.structs.replace(settings, **{section: changed}), origin
    return Resolved(settings=settings, origins=origins)
