"""`config` of a cluster that runs, and what a command starts that finds none."""

import msgspec
import pytest

from cluster.cli.last_start import as_last, last_start, remember_start
from cluster.cli.main import main
from cluster.config import Flags, load_settings
from protocol.home import Home
from tests.cluster.cli.test_cli_commands import CHECKOUT
from tests.support.fake_api import STATUS


@pytest.fixture(autouse=True)
def surroundings(home, monkeypatch):
    for variable in ("USE_DISTRIBUTED_INFERENCE", "TANDEM_STRATEGY_POLICY", "TANDEM_API_KEY", "TANDEM_PORT"):
        monkeypatch.delenv(variable, raising=False)
    monkeypatch.setenv("TANDEM_HOME", str(home.root))


def resolved(environment=None, **flags):
    return load_settings(
        None, checkout=CHECKOUT, working_directory=CHECKOUT, environment=environment or {}, flags=Flags(**flags)
    )


def run_with(home, told):
    Home.write_private(home.settings_file, msgspec.json.encode(told.settings))


def shown(capsys, *arguments):
    """The first line, and the others as value and origin by key."""
    assert main(["config", *arguments]) == 0
    first, *lines = capsys.readouterr().out.splitlines()
    told = {}
    for line in lines:
        key, _, rest = line.partition(" = ")
        value, _, origin = rest.rpartition("  # ")
        told[key] = (value.strip(), origin)
    return first, told


def test_config_is_what_the_running_cluster_was_told_whatever_is_said_now(api, home, capsys, monkeypatch):
    told = resolved({"TANDEM_STRATEGY_POLICY": "measured"}, port=9123)
    run_with(home, told)
    remember_start(home, told)
    monkeypatch.setenv("TANDEM_PORT", "9999")
    first, found = shown(capsys)
    assert api.url in first
    assert found["api.port"] == ("9123", "--port")
    assert found["strategy.policy"] == ('"measured"', "environment TANDEM_STRATEGY_POLICY")
    limit = STATUS["workers"][0]["memory"]["limit_bytes"]
    assert limit == 10**9
    assert found["workers[0].memory_limit"] == ("(not set: 1.0 GB)", "default")
    assert found["workers[1].layers"] == ("(not set: 4-7)", "default")


def test_origins_are_not_guessed_where_none_were_kept(api, home, capsys):
    run_with(home, resolved(port=9123))
    remember_start(home, resolved(port=9000))
    _, found = shown(capsys)
    assert found["api.port"] == ("9123", "its start")


def test_config_with_options_is_what_a_start_with_them_would_use(api, home, capsys):
    run_with(home, resolved(port=9123))
    first, found = shown(capsys, "--port", "9001")
    assert "would use" in first
    assert found["api.port"] == ("9001", "--port")


def test_what_was_started_last_is_started_again_but_for_what_the_environment_says(home):
    told = resolved(port=9123, workers=3)
    assert as_last(home, resolved()) == resolved()
    remember_start(home, told)
    assert last_start(home) == told
    assert as_last(home, resolved()).settings == told.settings
    again = as_last(home, resolved({"TANDEM_PORT": "9124", "USE_DISTRIBUTED_INFERENCE": "always"}))
    assert (again.settings.api.port, len(again.settings.workers)) == (9124, 3)
    assert again.settings.strategy.use_distributed_inference == "always"
    assert again.origins["api.port"] == "environment TANDEM_PORT"


def test_what_another_version_wrote_of_its_start_counts_for_nothing(home):
    home.started_file.write_text('{"settings": {"model": 7}}')
    assert as_last(home, resolved()) == resolved()
