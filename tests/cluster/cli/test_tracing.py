"""`trace`: what of a recording is in the file, whatever becomes of it, and what is said."""

import json

import pytest

from cluster.cli.main import main

PATH = "/v1/cluster/trace?seconds=2"
LINES = [b'[\n{"ph":"M"}\n', b"\n", b',{"ph":"X"}\n', b"]\n"]
WHOLE = [{"ph": "M"}, {"ph": "X"}]


@pytest.fixture(autouse=True)
def _in_home(home, tmp_path, monkeypatch):
    monkeypatch.setenv("TANDEM_HOME", str(home.root))
    monkeypatch.chdir(tmp_path)


def test_recording_is_in_the_file_and_it_is_said_how_to_open_it(api, tmp_path, capsys):
    api.answers[PATH] = (200, b"".join(LINES))
    assert main(["trace", "2"]) == 0
    assert json.loads((tmp_path / "trace.json").read_bytes()) == WHOLE
    assert capsys.readouterr().out == (
        "trace.json holds 2 s of this cluster: open it at ui.perfetto.dev, which reads it in the browser.\n"
    )


def test_recording_on_standard_output_is_all_that_is_there(api, tmp_path, capfdbinary):
    api.answers[PATH] = (200, b"".join(LINES))
    assert main(["trace", "2", "--output", "-"]) == 0
    assert json.loads(capfdbinary.readouterr().out) == WHOLE
    assert not (tmp_path / "trace.json").exists()


def test_interrupted_recording_can_be_opened(api, tmp_path, monkeypatch):
    api.answers[PATH] = (200, LINES[0])
    seconds = iter((0, 1))

    def show(*_, **__):
        if next(seconds):
            raise KeyboardInterrupt

    monkeypatch.setattr("cluster.cli.terminal.Terminal.progress", show)
    assert main(["trace", "2", "-o", "other.json"]) == 130
    assert json.loads((tmp_path / "other.json").read_bytes()) == WHOLE[:1]


def test_recording_that_broke_off_can_be_opened_and_is_an_error(api, tmp_path, capsys):
    api.answers[PATH] = (200, LINES[0] + LINES[2])
    assert main(["trace", "2"]) == 1
    assert "broke off" in capsys.readouterr().err
    assert json.loads((tmp_path / "trace.json").read_bytes()) == WHOLE


def test_what_the_api_refuses_makes_no_file(api, tmp_path, capsys):
    api.answers[PATH] = (401, json.dumps({"error": {"message": "a key is needed"}}).encode())
    assert main(["trace", "2"]) == 1
    assert "key is needed" in capsys.readouterr().err
    assert not (tmp_path / "trace.json").exists()


def test_file_that_cannot_be_written_is_named(api, capsys):
    api.answers[PATH] = (200, LINES[0])
    assert main(["trace", "2", "--output", "nowhere/trace.json"]) == 1
    assert "nowhere/trace.json cannot be written" in capsys.readouterr().err


def test_without_a_cluster_it_is_said_what_to_do(capsys):
    assert main(["trace", "2"]) == 1
    assert "start it first" in capsys.readouterr().err


@pytest.mark.parametrize("seconds", ["0", "601", "x"])
def test_seconds_that_cannot_be_recorded_are_refused(seconds):
    assert main(["trace", seconds]) == 2
