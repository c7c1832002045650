"""How the processes of a home write their logs: as the cluster was started, read before anything else, so that it never fails."""

import msgspec

from protocol.home import Home
from protocol.log_lines import LogFormat


class _StartedLogs(msgspec.Struct):
    format: LogFormat = "text"


class _Started(msgspec.Struct):
    """What matters here of the settings."""

    logs: _StartedLogs = msgspec.field(default_factory=_StartedLogs)


def started_log_format(home: Home) -> LogFormat:
    """Text where it cannot be read: whoever reads the settings next says so in the log."""
    try:
        return msgspec.json.decode(home.settings_file.read_bytes(), type=_Started).logs.format
    except (OSError, ValueError):
        return "text"
