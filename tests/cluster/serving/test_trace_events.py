"""Events of a trace: slices for steps and requests, flows and transfers between them, whatever order they are told in."""

import msgspec
import pytest

from cluster.planning.events import ClusterEvent
from cluster.serving import trace_events
from cluster.serving.ledger import RequestRow
from cluster.serving.trace_events import TraceEvents
from protocol.step_reports import StepRecord, StepReport

SINCE = 1000.0
ROW = RequestRow(
    id="7",
    state="running",
    strategy="distributed-cached",
    reason="long",
    workers=("a", "b"),
    key=None,
    arrived_at=1001.0,
    prompt_tokens=9,
    cached_tokens=4,
    completion_tokens=0,
    max_tokens=None,
    ttft_s=None,
    tokens_per_s=None,
    predicted=None,
    total_s=None,
    resumed=0,
    finish_reason=None,
    waits_for=None,
)
ENDED = msgspec.structs.replace(
    ROW, state="finished", ttft_s=0.5, total_s=1.0, completion_tokens=3, finish_reason="stop"
)


@pytest.fixture
def events():
    return TraceEvents(SINCE)


def step(number, at, *, route="a>b", num_bytes=None, requests=("7",), epoch=1):
    return StepRecord(
        n=number, epoch=epoch, route=route, kind="decode", at=at, s=0.25, tokens=1, requests=requests, bytes=num_bytes
    )


def said(events, worker, *steps, ahead_s=0.0):
    return list(events.steps(StepReport(worker, steps), ahead_s))


def of(found, phase):
    return [event for event in found if event["ph"] == phase]


def us(seconds):
    return round(seconds * 1e6)


def test_step_is_a_slice_of_its_worker_on_the_coordinator_s_clock(events):
    found = said(events, "a", step(3, 1001.5, num_bytes=16), ahead_s=0.5) + said(events, "b", step(3, 1001.5))
    names = {event["args"]["name"]: event["pid"] for event in of(found, "M") if event["name"] == "process_name"}
    assert set(names) == {"a", "b"}
    first, second = of(found, "X")
    assert (first["pid"], second["pid"]) == (names["a"], names["b"])
    assert (first["name"], first["ts"], first["dur"]) == ("decode", us(1001.0), us(0.25))
    assert first["args"] == {"step": 3, "route": "a>b", "tokens": 1, "requests": ["7"], "bytes": 16}
    assert of(said(events, "a", step(4, 1002.0)), "M") == []


def test_flow_of_a_request_goes_from_its_slice_through_its_steps_to_its_end(events):
    found = [
        *events.requests([ROW]),
        *said(events, "a", step(1, 1001.25, requests=("7", "8"))),
        *said(events, "b", step(1, 1001.5, requests=("7", "8"))),
        *events.requests([ENDED]),
    ]
    flow = sorted((event for event in found if event.get("id") == 7), key=lambda event: event["ts"])
    assert [event["ph"] for event in flow] == ["s", "t", "t", "f"]
    assert {(event["name"], event["cat"]) for event in flow} == {("request", "request")}
    begin, end = of(found, "B")[0], of(found, "E")[0]
    for event, around in zip(flow, (begin, *of(found, "X"), begin), strict=True):
        assert (event["pid"], event["tid"]) == (around["pid"], around["tid"])
    assert flow[0]["ts"] == begin["ts"] == us(1001.0)
    assert [event["ts"] for event in flow[1:3]] == [event["ts"] for event in of(found, "X")]
    assert flow[3]["bp"] == "e"
    assert begin["ts"] <= flow[3]["ts"] < end["ts"] == us(1002.0)
    assert [(event["ph"], event["id"]) for event in found if event.get("id") == 8] == [("t", 8), ("t", 8)]


@pytest.mark.parametrize("first", ["a", "b"])
def test_transfer_lasts_from_the_end_of_a_step_to_its_beginning_on_the_next_worker(events, first):
    reports = {"a": step(3, 1001.0, num_bytes=16), "b": step(3, 1001.5)}
    found = said(events, first, reports.pop(first))
    assert of(found, "b") == []
    ((second, report),) = reports.items()
    found += said(events, second, report)
    (begin,), (end,) = of(found, "b"), of(found, "e")
    assert (begin["ts"], end["ts"]) == (us(1001.25), us(1001.5))
    assert begin["args"] == {"bytes": 16, "route": "a>b", "step": 3}
    sender = next(event["pid"] for event in found if event["ph"] == "X" and event["ts"] == us(1001.0))
    assert {begin["pid"], end["pid"]} == {sender}
    assert begin["id"] == end["id"]
    assert begin["name"] == end["name"] == "to b"


def test_transfers_are_of_the_same_step_route_and_epoch(events):
    found = said(events, "a", step(3, 1001.0, num_bytes=16))
    for other in (step(4, 1002.0), step(3, 1002.0, epoch=2), step(3, 1002.0, route="c>b")):
        found += said(events, "b", other)
    assert of(found, "b") == []


def test_transfer_between_clocks_that_disagree_takes_no_time(events):
    found = said(events, "a", step(3, 1001.0, num_bytes=16)) + said(events, "b", step(3, 1001.0))
    assert of(found, "b")[0]["ts"] == of(found, "e")[0]["ts"] == us(1001.25)


def test_middle_of_three_workers_takes_and_sends(events):
    found = said(events, "b", step(1, 1001.5, route="a>b>c", num_bytes=8))
    found += said(events, "c", step(1, 1002.0, route="a>b>c"))
    found += said(events, "a", step(1, 1001.0, route="a>b>c", num_bytes=4))
    assert sorted((event["name"], event["args"]["bytes"]) for event in of(found, "b")) == [("to b", 4), ("to c", 8)]


def test_ends_that_never_come_are_not_waited_for_without_end(events, monkeypatch):
    monkeypatch.setattr(trace_events, "_MOST_OPEN", 3)
    for number in range(5):
        said(events, "a", step(number, 1001.0, num_bytes=1))
    found = [event for number in range(5) for event in said(events, "b", step(number, 1002.0))]
    assert [event["args"]["step"] for event in of(found, "b")] == [2, 3, 4]


def test_requests_that_run_at_once_have_lanes_of_their_own_and_later_ones_take_them_over(events):
    def row(number, arrived_at, total_s=None):
        return msgspec.structs.replace(ROW, id=f"{number}", arrived_at=arrived_at, total_s=total_s)

    found = [*events.requests([row(1, 1001.0), row(2, 1001.5, 0.25), row(3, 1002.0)])]
    found += events.requests([row(1, 1001.0, 2.0), row(4, 1003.5)])
    lanes = {event["name"]: event["tid"] for event in of(found, "B")}
    assert lanes == {"request 1": 1, "request 2": 2, "request 3": 2, "request 4": 1}


def test_request_is_told_with_how_it_ran_and_ended(events):
    (begin,) = of([*events.requests([ROW])], "B")
    assert begin["args"]["workers"] == ["a", "b"]
    assert (begin["args"]["prompt_tokens"], begin["args"]["cached_tokens"]) == (9, 4)
    found = [*events.requests([msgspec.structs.replace(ROW, ttft_s=0.5)]), *events.requests([ENDED])]
    (first,) = of(found, "i")
    assert (first["name"], first["ts"], first["tid"]) == ("first token", us(1001.5), begin["tid"])
    (end,) = of(found, "E")
    assert end["args"] == {"state": "finished", "finish_reason": "stop", "resumed": 0, "completion_tokens": 3}


def test_what_began_before_the_trace_begins_with_it_and_what_ended_before_is_not_in_it(events):
    early = msgspec.structs.replace(ROW, arrived_at=10.0, ttft_s=1.0)
    (begin,) = of(found := [*events.requests([early])], "B")
    assert begin["ts"] == us(SINCE)
    assert of(found, "i") == []
    assert [*events.requests([msgspec.structs.replace(ENDED, id="8", arrived_at=10.0)])] == []


def test_what_still_runs_ends_with_the_trace(events):
    [*events.requests([ROW])]
    found = [*events.end(1009.0)]
    assert [(event["ph"], event.get("args")) for event in found] == [("f", None), ("E", {"state": "running"})]
    assert found[1]["ts"] == us(1009.0)


def test_what_happens_to_the_cluster_is_told_once_also_where_much_happens_at_once(events):
    happened = [ClusterEvent(at, what) for at, what in ((999.0, "joined a"), (1001.0, "lost b"), (1001.0, "lost c"))]
    found = [*events.happened(tuple(happened[:2])), *events.happened(tuple(happened))]
    found += events.happened((*happened, ClusterEvent(1002.0, "replanned")))
    assert [(event["name"], event["ph"], event["s"]) for event in found] == [
        ("lost b", "i", "g"),
        ("lost c", "i", "g"),
        ("replanned", "i", "g"),
    ]
    assert [*events.happened(())] == []


def test_names_of_requests_that_are_no_numbers_join_nothing(events):
    assert of(said(events, "a", step(1, 1001.0, requests=("x", "7"))), "t") == [
        {"name": "request", "cat": "request", "ph": "t", "id": 7, "pid": 1, "tid": 0, "ts": us(1001.0)}
    ]
