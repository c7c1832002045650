"""`status`: in words, wide, as JSON, watched; on terminals of any width, without colour, and into a pipe that closes."""

import itertools
import json
import os
import subprocess
import sys

import pytest

from cluster.cli.main import main
from cluster.cli.status_picture import bar
from cluster.cli.status_text import status_lines
from tests.cluster.cli.test_cli_commands import CHECKOUT
from tests.support.fake_api import STATUS, chat_piece
from tests.support.screen import Screen

STATUS_COMMAND = [sys.executable, "-m", "cluster.cli", "status"]


@pytest.fixture
def environment(home):
    kept = {name: value for name, value in os.environ.items() if name not in ("CI", "NO_COLOR", "COLUMNS", "LINES")}
    return kept | {"TANDEM_HOME": str(home.root), "PYTHONPATH": str(CHECKOUT)}


@pytest.fixture
def asked(home, monkeypatch):
    monkeypatch.setenv("TANDEM_HOME", str(home.root))


@pytest.mark.usefixtures("asked")
def test_status_is_in_words_and_says_each_thing_once(api, capsys):
    assert main(["status"]) == 0
    printed = capsys.readouterr().out
    held = "worker-0 (ready): layers 0-3, and the whole model; computes 43% of the time"
    assert f"worker  {held}, 1.5 MB of 600.0 MB taken by requests\n" in printed
    assert "worker  worker-1 (ready): layers 4-7; computes" in printed
    assert "asked   0 running, 0 waiting, 3 answered, 0 failed\n" in printed
    assert "reused  300 of 1,200 prompt tokens (25%)\n" in printed
    assert "guessed 201 of 284 next tokens rightly (71%) by tandem-demo-draft\n" in printed
    assert printed.count("worker-0") == 1
    assert printed.count("route ") == 1
    assert "route   single-device-cached: predicted to read 1,982 tokens/s and to generate 92.4 tokens/s\n" in printed
    assert "epoch" not in printed


@pytest.mark.parametrize(
    ("guesses", "expected"),
    [
        ({"draft": None, "proposed": 0, "accepted": 0, "acceptance": None}, None),
        ({"draft": None, "proposed": 9, "accepted": 9, "acceptance": 1.0}, "9 of 9 next tokens rightly (100%)"),
        ({"draft": "lookup", "proposed": 0, "accepted": 0, "acceptance": None}, "0 of 0 next tokens rightly by lookup"),
    ],
)
def test_guesses_are_told_of_where_anybody_guesses(guesses, expected):
    told = [line for line in status_lines(STATUS | {"guesses": guesses}) if line.startswith("guessed")]
    assert told == ([] if expected is None else [f"guessed {expected}"])


@pytest.mark.usefixtures("asked")
def test_wide_is_all_that_is_known(api, capsys):
    workers = [STATUS["workers"][0] | {"oldest_step_s": 12.34}, STATUS["workers"][1] | {"oldest_step_s": None}]
    events = [{"at": 1_700_000_000.5 + number, "what": f"event {number}"} for number in range(9)]
    unknown = {"ranks": 2, "sums": None, "speed": None, "alone": None}
    groups = [unknown | {"workers": workers} for workers in (["worker-0", "worker-1"], ["a", "b", "c", "d"])]
    status = STATUS | {"epoch": (3 << 32) + 7, "workers": workers, "events": events, "groups": groups}
    api.answers["/status"] = (200, json.dumps(status).encode())
    assert main(["status", "-o", "wide"]) == 0
    printed = capsys.readouterr().out
    kept = "3.0 MB of 250.0 MB kept (64.0 KB shared), 2.0 MB on disk"
    for line in (
        "epoch   3.7",
        "group   worker-0, worker-1 compute together as tensor-parallel",
        "group   a, b, then c, d compute together as tensor-parallel",
        "worker  worker-0 (pid 4712, ready): layers 0-3, holds the full model, at a step for 12.3 s",
        "load    worker-0: 43% busy, 12.5 steps/s of 2.2 sequences, 1 waiting",
        f"cache   worker-1: 1.5 MB of 600.0 MB in use, {kept}",
        "predicted single-device-cached on worker-0: 1,024 tokens read in 0.517 s, then 92.4 tokens/s",
        "route   worker-1: predicted to read 1,982 tokens/s and to generate 91.4 tokens/s",
    ):
        assert f"{line}\n" in printed
    assert [line.rpartition("  ")[2] for line in printed.splitlines()[-9:]] == [f"event {n}" for n in range(9)]
    assert main(["status"]) == 0
    printed = capsys.readouterr().out
    assert "at one step for 12.3 s" in printed
    assert "event 3" not in printed


@pytest.mark.usefixtures("asked")
@pytest.mark.parametrize("option", [["--json"], ["-o", "json"]])
def test_json_is_one_object(api, capsys, option):
    assert main(["status", *option]) == 0
    printed = capsys.readouterr().out
    assert json.loads(printed) == STATUS
    assert printed.count("\n") == 1


@pytest.mark.usefixtures("asked")
@pytest.mark.parametrize("option", [[], ["-o", "json"], ["-o", "wide"]])
def test_watching_without_a_terminal_prints_it_again_until_it_is_interrupted(api, capsys, monkeypatch, option):
    naps = []

    def nap(seconds):
        naps.append(seconds)
        if len(naps) == 2:
            raise KeyboardInterrupt

    monkeypatch.setattr("cluster.cli.status_picture.time.sleep", nap)
    assert main(["status", "--watch", *option]) == 0
    printed = capsys.readouterr().out
    assert printed.count('"state": "ready", "api"' if "json" in option else "state   ready") == 2


@pytest.mark.parametrize(("columns", "headings"), [(60, 4), (80, 5), (130, 9)])
def test_terminal_shows_bars_and_whole_names_however_narrow_it_is(api, environment, columns, headings):
    screen = Screen(STATUS_COMMAND, environment=environment, columns=columns, lines=40)
    try:
        assert screen.end() == 0
        screen.await_text("(25%)")
        shown = [line.strip() for line in screen.text.splitlines()]
    finally:
        screen.close()
    (heading,) = (line for line in shown if line.startswith("worker "))
    assert len(heading.replace("whole model", "whole-model").split()) == headings
    (row,) = (line for line in shown if line.startswith("worker-0"))
    assert "████░░░░░░  43%" in row
    assert row.split()[1:3] == ["ready", "0-3"]
    assert not any("…" in line for line in shown)
    assert any(line.startswith("asked   0 running") for line in shown)


def test_watching_renews_the_picture_in_place_and_ctrl_c_ends_it(api, environment):
    screen = Screen([*STATUS_COMMAND, "--watch"], environment=environment, lines=40)
    try:
        screen.await_text("████░░░░░░  43%")
        busy = [worker | {"load": worker["load"] | {"busy_share": 0.97}} for worker in STATUS["workers"]]
        api.answers["/status"] = (200, json.dumps(STATUS | {"workers": busy}).encode())
        screen.await_text("██████████  97%", times=2)
        assert screen.text.count("worker-0") == 1
        screen.type("\x03")
        assert screen.end() == 0
    finally:
        screen.close()


def test_no_colour_where_none_is_wanted(api, environment):
    screen = Screen(STATUS_COMMAND, environment=environment | {"NO_COLOR": "1"}, lines=40)
    try:
        screen.end()
        screen.await_text("(25%)")
    finally:
        screen.close()
    assert not any(b"\x1b[%d" % colour in screen.seen for colour in (*range(30, 38), *range(40, 48), *range(90, 98)))


def test_terminal_that_knows_only_ascii_gets_nothing_else(api, environment):
    screen = Screen(STATUS_COMMAND, environment=environment | {"PYTHONIOENCODING": "ascii"}, lines=40)
    try:
        assert screen.end() == 0
        screen.await_text("####......  43%")
    finally:
        screen.close()


@pytest.mark.parametrize(
    ("share", "shown"), [(0.0, "░░░░░░░░░░   0%"), (0.28, "███░░░░░░░  28%"), (1.2, "██████████ 120%")]
)
def test_bar_is_as_long_as_its_share(share, shown):
    assert bar(share) == shown


@pytest.mark.parametrize(
    "arguments",
    [["status", "-o", "wide"], ["status", "--watch"], ["config"], ["--help"], ["explain", "x"], ["prompt", "x"]],
)
def test_pipe_that_closes_ends_a_command_without_a_word(api, environment, arguments):
    choice = {"strategy": "s", "reason": "r", "prompt_tokens": 1, "max_tokens": 1, "candidates": []}
    api.answers["/v1/explain"] = (200, json.dumps(choice).encode())
    api.answers["/v1/chat/completions"] = (200, lambda: itertools.repeat(chat_piece("a line\n"), 100_000))
    command = subprocess.Popen(
        [sys.executable, "-m", "cluster.cli", *arguments],
        env=environment | {"PYTHONUNBUFFERED": "1"},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
    )
    command.stdout.readline()
    command.stdout.close()
    said = command.stderr.read()
    command.stderr.close()
    assert command.wait() in (0, 1)
    assert said == b""
