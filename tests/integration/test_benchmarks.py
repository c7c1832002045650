"""Benchmarks whose stand-ins speak the wire format go on working when it changes."""

import json
import subprocess
import sys
from pathlib import Path

CHECKOUT = Path(__file__).resolve().parents[2]


def run(name, home, *arguments):
    found = home / "found.json"
    command = [sys.executable, "-m", f"benchmarks.{name}", "--quick", "--json", str(found), *arguments]
    environment = {"PATH": "/usr/bin:/bin", "TANDEM_HOME": str(home), "PYTHONPATH": str(CHECKOUT)}
    done = subprocess.run(command, cwd=CHECKOUT, env=environment, capture_output=True, timeout=100, check=False)
    assert done.returncode == 0, done.stderr.decode()
    return json.loads(found.read_bytes())


def test_coordinator_alone_streams_every_token(tmp_path):
    found = run("coordinator", tmp_path)
    assert [pace["tokens"] for pace in found["runs"]] == [1984, 1024, 192]


def test_a_hop_carries_payloads_there_and_back(tmp_path):
    assert len(run("hop", tmp_path)["tables"][0]["rows"]) == 6
