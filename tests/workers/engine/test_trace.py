"""The timeline of a worker: events that Perfetto can read, whole lines, in the machine's time."""

import json
import time

from workers.engine.trace import Tracer


def events_of(path):
    return [json.loads(line.rstrip(",")) for line in path.read_text().splitlines()]


def test_what_ended_now_began_its_seconds_ago(tmp_path):
    tracer = Tracer(tmp_path / "trace", "worker-0")
    before_us = time.time_ns() / 1000
    tracer.ended("decode", 2.5, step=7)
    name, event = events_of(tmp_path / "trace")
    assert name["args"] == {"name": "worker-0"}
    assert (event["name"], event["ph"], event["dur"], event["args"]) == ("decode", "X", 2.5e6, {"step": 7})
    assert 0 <= event["ts"] + event["dur"] - before_us < 60e6


def test_workers_of_a_machine_share_a_file(tmp_path):
    for name in ("worker-0", "worker-1"):
        Tracer(tmp_path / "trace", name).ended("prefill", 1.0)
    assert len(events_of(tmp_path / "trace")) == 4
