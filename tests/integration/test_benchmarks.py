"""Benchmarks whose stand-ins speak the wire format go on working when it changes; what is counted in those of faults is right."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

CHECKOUT = Path(__file__).resolve().parents[2]
# Targets in seconds, which no test holds anybody to.
TIMES = ("pause", "seconds", "gap")


def run(name, home, *arguments):
    found = home / "found.json"
    command = [sys.executable, "-m", f"benchmarks.{name}", "--quick", "--json", str(found), *arguments]
    environment = {
        "PATH": "/usr/bin:/bin",
        "TANDEM_HOME": str(home),
        "PYTHONPATH": str(CHECKOUT),
        "MLX_DISABLE_COMPILE": "1",
    }
    done = subprocess.run(command, cwd=CHECKOUT, env=environment, capture_output=True, timeout=100, check=False)
    assert done.returncode == 0, done.stderr.decode()
    return json.loads(found.read_bytes())


def test_coordinator_alone_streams_every_token(tmp_path):
    found = run("coordinator", tmp_path)
    assert [pace["tokens"] for pace in found["runs"]] == [1984, 1024, 192]


def test_a_hop_carries_payloads_there_and_back(tmp_path):
    assert len(run("hop", tmp_path)["tables"][0]["rows"]) in (6, 8)  # between hosts as well, where those can be made


def test_every_cluster_is_planned(tmp_path):
    found = run("planning", tmp_path)
    assert len(found["planned"]) == 15
    assert all(planned["stages"] for planned in found["planned"])


@pytest.mark.parametrize("name", ["joins", "kills", "links", "restarts"])
def test_answers_are_right_whoever_comes_and_whatever_is_lost(tmp_path, name):
    targets = run(name, tmp_path)["targets"]
    counts = [target for target in targets if not any(word in target["what"] for word in TIMES)]
    assert any("wrong" in target["what"] for target in counts)
    assert not [target for target in counts if not target["met"]]
