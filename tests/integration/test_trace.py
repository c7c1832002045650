"""A trace of real workers: each step of a request stands on both stages in its order, joined by flows and transfers."""

import json

import httpx
import pytest

from tests.support.running_cluster import RunningCluster, wait_until

ROUTE = "worker-0>worker-1"
NUM_TOKENS = 8
# One chunk, then the tokens, on two workers.
NUM_SLICES = 2 * (1 + NUM_TOKENS)


def of(events, phase):
    return [event for event in events if event["ph"] == phase]


def flow_of(events, request):
    return [event for event in events if event.get("cat") == "request" and event.get("id") == request]


def is_whole(events, request):
    """Whether all of a request is there."""
    phases = [event["ph"] for event in flow_of(events, request)]
    return phases.count("t") >= NUM_SLICES and "f" in phases


def check(events, request):
    """A request of NUM_TOKENS tokens by both workers is in the trace as it ran."""
    names = {event["pid"]: event["args"]["name"] for event in events if event.get("name") == "process_name"}
    steps = {}
    for event in of(events, "X"):
        if event["args"]["requests"] == [f"{request}"]:
            assert event["args"]["route"] == ROUTE
            steps.setdefault(event["args"]["step"], {})[names[event["pid"]]] = event
    assert [step["worker-0"]["name"] for step in steps.values()] == ["prefill", *["decode"] * NUM_TOKENS]
    marked = {(event["pid"], event["tid"], event["ts"]) for event in of(flow_of(events, request), "t")}
    transfers = {event["args"]["step"]: event for event in of(events, "b") if event["args"]["step"] in steps}
    ends = {event["id"]: event["ts"] for event in of(events, "e")}
    for number, step in steps.items():
        first, second, transfer = step["worker-0"], step["worker-1"], transfers[number]
        assert first["ts"] + first["dur"] <= second["ts"] + 1
        assert {(event["pid"], event["tid"], event["ts"]) for event in (first, second)} <= marked
        assert transfer["args"]["bytes"] == first["args"]["bytes"] > 0
        assert transfer["ts"] == pytest.approx(first["ts"] + first["dur"], abs=2)
        assert ends[transfer["id"]] == pytest.approx(second["ts"], abs=2)
    (begin,) = [event for event in of(events, "B") if event["name"] == f"request {request}"]
    assert names[begin["pid"]] == "coordinator"
    assert begin["ts"] <= min(step["worker-0"]["ts"] for step in steps.values())
    assert sorted(event["ph"] for event in flow_of(events, request)) == ["f", "s", *["t"] * NUM_SLICES]


def ask(cluster: RunningCluster, prompt):
    answer = cluster.complete(prompt, NUM_TOKENS, strategy="distributed-cached", ignore_eos=True)
    return int(answer["id"].removeprefix("cmpl-"))


def read_all(events, lines):
    """Take events from lines until nothing happened for a moment."""
    while line := next(lines):
        take(events, line)


def read_until(events, lines, holds):
    """Take events from lines until something holds of them."""
    while not holds():
        take(events, next(lines))


def take(events, line):
    """The event of a line, if it is one."""
    if line not in ("", "[", "]"):
        events.append(json.loads(line.removeprefix(",")))


def test_running_cluster_is_recorded_and_a_whole_life_kept_in_a_file(tiny_model, tmp_path, cluster: RunningCluster):
    kept, events = tmp_path / "kept.json", []
    cluster.start(tiny_model, environment={"TANDEM_TRACE": str(kept)})
    with httpx.stream("GET", f"{cluster.url}/v1/cluster/trace?seconds=600", timeout=60) as recording:
        lines = recording.iter_lines()
        while not of(events, "X"):  # workers begin with the next Beat that they hear
            ask(cluster, [5, 6, 7])
            read_all(events, lines)
        request = ask(cluster, [8, 9, 10])
        read_until(events, lines, lambda: is_whole(events, request))
    check(events, request)
    wait_until(lambda: is_whole(json.loads(kept.read_text() + "]"), request), "the end of the request in the file")
    cluster.stop()
    events = json.loads(kept.read_text())
    check(events, request)
    happened = [event["name"] for event in of(events, "i") if event["s"] == "g"]
    assert {"joined worker-0", "joined worker-1"} <= set(happened)


def test_recording_of_a_shared_cluster_is_json_on_standard_output(serving: RunningCluster):
    done = serving.command("trace", "1", "--output", "-")
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout)[0] == {
        "name": "process_name",
        "ph": "M",
        "pid": 0,
        "tid": 0,
        "args": {"name": "coordinator"},
    }
