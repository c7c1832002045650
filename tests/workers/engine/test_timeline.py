"""What a worker keeps of its steps while somebody looks: whose they are and when they were, no more than it may, no longer than it must."""

import pytest

from protocol.errors import WireError
from protocol.messages import CloseSequence, OpenSequence, Row, Step
from protocol.step_reports import MOST_BYTES, StepRecord, StepReport, decode_report, encode_report
from protocol.values import Route, Sampling
from workers.engine.timeline import MOST_STEPS, WATCHED_FOR_S, Timeline
from workers.step_reporter import REPORT_EVERY_S, StepReporter

ROUTE = Route(("a", "b"))
RECORD = StepRecord(
    n=3, epoch=1, route="a>b", kind="decode", at=1000.0, s=0.25, tokens=2, requests=("7", "9"), bytes=16
)


class Told:
    """A timeline on a clock that is told, and its reporter."""

    def __init__(self):
        self.now = 50.0
        self.timeline = Timeline(lambda: self.now, lambda: self.now + 1000)
        self.reporter = StepReporter("a", self.timeline, lambda: self.now + 1000)

    def ran(self, number=1, began_at=50.0, requests=("7",)):
        self.timeline.ended(step_of(1, number=number), requests, began_at, 0.25, None)

    def reported(self):
        """Numbers of the steps that are said now."""
        said = self.reporter.report(self.now)
        if said is None:
            return []
        message, (report,) = said
        assert (message.worker, message.clock) == ("a", self.now + 1000)
        return [step.n for step in decode_report(report).steps]


@pytest.fixture
def told():
    return Told()


def step_of(*sequences, number=1, num_tokens=1, slot=0):
    rows = tuple(Row(sequence, 4, True) for sequence in sequences)
    return Step(number=number, route=ROUTE, slot=slot, cached=True, rows=rows, num_tokens=num_tokens)


def opening(sequence, request_id, route=ROUTE):
    return OpenSequence(
        sequence=sequence,
        request_id=request_id,
        route=route,
        cached=True,
        sampling=Sampling(),
        seed=1,
        history=(),
        max_length=9,
    )


def test_step_is_told_with_when_it_began_and_all_its_tokens(told):
    told.timeline.renew(4)
    told.now = 51.0
    told.timeline.ended(step_of(1, 2, number=3, num_tokens=8, slot=None), ("7", "9"), 50.5, 0.25, 16)
    (record,) = told.timeline.take()
    expected = {"n": 3, "epoch": 4, "route": "a>b", "kind": "prefill", "at": 1050.5, "s": 0.25, "tokens": 16}
    assert record == StepRecord(**expected, requests=("7", "9"), bytes=16)
    assert told.timeline.take() == ()


def test_rows_are_of_the_requests_that_opened_their_sequences_on_that_route(told):
    told.timeline.opened(opening(1, 7))
    told.timeline.opened(opening(1, 8, Route(("a",))))
    told.timeline.opened(opening(2, 9))
    assert told.timeline.requests_of(step_of(2, 1)) == ("9", "7")
    told.timeline.closed(CloseSequence(sequence=2, route=ROUTE))
    told.timeline.closed(CloseSequence(sequence=5, route=Route(("b",))))
    assert told.timeline.requests_of(step_of(2, 1)) == ("7",)
    told.timeline.renew(2)
    assert told.timeline.requests_of(step_of(1)) == ()


def test_nobody_who_looked_for_a_while_is_nobody_who_looks(told):
    assert not told.timeline.is_watched(told.now)
    told.timeline.watch(told.now)
    told.timeline.renew(9)
    assert told.timeline.is_watched(told.now + WATCHED_FOR_S - 0.01)
    assert not told.timeline.is_watched(told.now + WATCHED_FOR_S)


def test_of_more_steps_than_are_kept_the_oldest_go(told):
    for number in range(MOST_STEPS + 5):
        told.ran(number)
    assert [record.n for record in told.timeline.take()] == list(range(5, MOST_STEPS + 5))


def test_steps_are_said_a_few_times_a_second_and_once_more_behind_the_last_look(told):
    told.ran(1)
    assert (told.reported(), told.reporter.due_at) == ([], None)
    told.timeline.watch(told.now)
    assert told.reported() == [1]
    told.ran(2)
    assert told.reported() == []
    told.now = told.reporter.due_at
    assert told.now == 50 + REPORT_EVERY_S
    assert (told.reported(), told.reported()) == ([2], [])
    told.ran(3)
    told.now += WATCHED_FOR_S
    assert (told.reported(), told.reporter.due_at) == ([3], None)


def test_report_is_a_line_of_json_in_the_page_s_words():
    line = encode_report(StepReport("a", (RECORD,)))
    assert line == (
        b'{"worker":"a","steps":[{"n":3,"epoch":1,"route":"a>b","kind":"decode","at":1000.0,"s":0.25,"tokens":2,'
        b'"requests":["7","9"],"bytes":16}]}'
    )
    assert decode_report(line) == StepReport("a", (RECORD,))


@pytest.mark.parametrize(
    "line",
    [
        b"",
        b"\xff",
        b'{"worker":"a","steps":[]}\n',
        b'{"worker":"a",\r"steps":[]}',
        b'{"worker":"a"}',
        b'{"worker":"a","steps":[{"n":-1}]}',
        encode_report(StepReport("a", (RECORD,))).replace(b"0.25", b"1e999"),
        encode_report(StepReport("a", (RECORD,))).replace(b"0.25", b"-1"),
        encode_report(StepReport("a", (RECORD,))).replace(b'"7"', b'"' + b"7" * 99 + b'"'),
        b" " * (MOST_BYTES + 1),
    ],
)
def test_what_is_no_report_is_refused(line):
    with pytest.raises(WireError, match="a report of steps"):
        decode_report(line)
