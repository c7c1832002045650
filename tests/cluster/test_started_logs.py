"""How the logs of a cluster that was started are written."""

import msgspec
import pytest

from cluster.settings import LogSettings, ModelSettings, Settings
from cluster.started_logs import started_log_format
from protocol.home import Home


def test_logs_are_written_as_the_cluster_was_started(tmp_path):
    home = Home(tmp_path / "home")
    home.create()
    settings = Settings(model=ModelSettings(path="m"), workers=(), logs=LogSettings(format="json"))
    home.write_private(home.settings_file, msgspec.json.encode(settings))
    assert started_log_format(home) == "json"


@pytest.mark.parametrize("written", [None, b"", b"{", b"{}", b'{"logs": {"format": "xml"}}'])
def test_logs_are_text_where_nothing_says_otherwise(tmp_path, written):
    home = Home(tmp_path / "home")
    home.create()
    if written is not None:
        home.write_private(home.settings_file, written)
    assert started_log_format(home) == "text"
