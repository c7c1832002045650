"""What surrounds every benchmark: options, the report, the exit code."""

import json
import signal
import sys
from pathlib import Path

import pytest

import benchmarks
from benchmarks.support.main import main
from benchmarks.support.reporting import Report
from protocol.errors import UsageError

DOC = "Measures nothing.\n\nMore."


@pytest.fixture(autouse=True)
def _sigterm_stays_as_it_was():
    before = signal.getsignal(signal.SIGTERM)
    yield
    signal.signal(signal.SIGTERM, before)


def options(parser):
    parser.add_argument("--rounds", type=int, default=5)


def reported(arguments):
    report = Report("nothing")
    report.data["rounds"] = arguments.rounds
    return report


async def reported_later(arguments):
    return reported(arguments)


@pytest.mark.parametrize("run", [reported, reported_later])
@pytest.mark.parametrize(("given", "rounds"), [([], 5), (["--rounds", "3"], 3), (["--quick"], 1)])
def test_report_is_written_with_the_settings_asked_for(monkeypatch, tmp_path, run, given, rounds):
    file = tmp_path / "found.json"
    monkeypatch.setattr(sys, "argv", ["bench", *given, "--json", str(file)])
    assert main("nothing", DOC, options, run, quick={"rounds": 1}) == 0
    assert json.loads(file.read_bytes())["rounds"] == rounds


def test_failure_is_one_sentence_and_an_exit_code(monkeypatch, capsys):
    def refused(_arguments):
        raise UsageError("give another --url")

    monkeypatch.setattr(sys, "argv", ["bench"])
    assert main("nothing", DOC, options, refused, quick={}) == UsageError.exit_code
    assert capsys.readouterr().err == "bench nothing: give another --url\n"


def test_help_is_the_first_line_of_the_docstring(monkeypatch, capsys):
    monkeypatch.setattr(sys, "argv", ["bench", "--help"])
    with pytest.raises(SystemExit):
        main("nothing", DOC, options, reported, quick={})
    shown = capsys.readouterr().out
    assert "launch.sh bench nothing" in shown
    assert "Measures nothing." in shown
    assert "More." not in shown


def test_no_benchmark_has_a_parser_of_its_own():
    scripts = Path(benchmarks.__file__).parent.glob("[a-z]*.py")
    own = {script.stem for script in scripts if "ArgumentParser(" in script.read_text()}
    assert own == {"models", "record"}  # which make and write, and measure nothing
