"""Downloads from a hub, as a person sees them: how far, how long still, and what an interruption leaves."""

import os
import signal
import subprocess
import sys

import pytest

from tests.cluster.cli.test_cli_commands import CHECKOUT
from tests.support.fake_hub import FakeHub
from tests.support.running_cluster import free_port
from tests.support.screen import Screen

WEIGHTS = "model.safetensors"


@pytest.fixture
def hub(tmp_path):
    folder = tmp_path / "served"
    folder.mkdir()
    (folder / "config.json").write_text('{"model_type": "llama", "num_hidden_layers": 2}')
    (folder / WEIGHTS).write_bytes(bytes(30_000_000))
    (folder / "README.txt").write_text("a few words")
    hub = FakeHub("maker/tiny", folder)
    yield hub
    hub.close()


@pytest.fixture
def surroundings(hub, home, tmp_path):
    kept = {name: value for name, value in os.environ.items() if name not in ("CI", "HF_HOME", "HF_HUB_OFFLINE")}
    return kept | {
        "HF_ENDPOINT": hub.url,
        "HF_HUB_CACHE": str(tmp_path / "hub"),
        "TANDEM_HOME": str(home.root),
        "PYTHONPATH": str(CHECKOUT),
    }


PULL = [sys.executable, "-m", "cluster.cli", "models", "pull"]


def test_pull_says_where_the_model_is_and_a_second_one_fetches_nothing(hub, surroundings):
    for _ in range(2):
        done = subprocess.run([*PULL, "maker/tiny"], env=surroundings, capture_output=True, text=True, check=True)
        assert "`./launch.sh start --model maker/tiny` uses it" in done.stdout
    assert sorted(hub.fetched) == ["README.txt", "config.json", WEIGHTS]


def test_download_shows_how_far_it_is_and_ctrl_c_ends_it_with_nothing_half_done(hub, surroundings, tmp_path):
    hub.hold(WEIGHTS)
    screen = Screen([*PULL, "maker/tiny"], environment=surroundings)
    try:
        screen.await_text("downloading maker/tiny: 10.")
        screen.type("\x03")
        assert screen.end() == 130
    finally:
        screen.close()
    assert list((tmp_path / "hub").rglob("*.incomplete")) == []
    hub.held[WEIGHTS].set()
    subprocess.run([*PULL, "maker/tiny"], env=surroundings, capture_output=True, check=True)
    assert sorted(hub.fetched) == ["README.txt", "config.json", WEIGHTS, WEIGHTS]


def test_repository_that_is_not_there_is_one_sentence(surroundings):
    done = subprocess.run([*PULL, "maker/other"], env=surroundings, capture_output=True, text=True, check=False)
    assert done.returncode == 1
    assert done.stdout == ""
    assert done.stderr.startswith("tandem: The model maker/other cannot be had from the hub (")
    assert done.stderr.count("\n") == 1


def test_start_without_a_terminal_tells_of_its_download_in_lines_and_other_commands_of_it(hub, surroundings):
    held = hub.hold(WEIGHTS)
    command = [sys.executable, "-m", "cluster.cli", "start", "--model", "maker/tiny", "--port", str(free_port())]
    process = subprocess.Popen(command, env=surroundings, stderr=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
    try:
        assert process.stderr.readline().startswith("tandem: downloading maker/tiny: 10.")
        status = [sys.executable, "-m", "cluster.cli", "status"]
        seen = subprocess.run(status, env=surroundings, capture_output=True, text=True, check=False)
        assert (seen.returncode, seen.stderr) == (3, "")
        assert seen.stdout.startswith("state   starting\nnote    downloading maker/tiny: 10.")
    finally:
        process.send_signal(signal.SIGTERM)
        held.set()
        process.communicate()
    assert process.returncode == 143
