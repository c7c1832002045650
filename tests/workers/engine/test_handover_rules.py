"""What may be handed over of a prompt, and who is told when it comes to nothing: the rules alone, beside a head that notes what it is asked."""

from types import SimpleNamespace

import pytest

from protocol.messages import Generate, HandedOver, ReadingFailed, ReadPrompt, StopReading
from protocol.values import Route, Sampling
from strategy.prefix import Match
from workers.engine.actions import Tell
from workers.engine.fitness import UnfitMessage
from workers.engine.handovers import LEAST_TOKENS, Handovers

READERS, HOLDER = Route(("one", "two")), Route(("two",))
KEPT = 64
PROMPT = list(range(KEPT + LEAST_TOKENS + 137))
LAST = len(PROMPT) - 1


class NotingHead:
    """Keeps KEPT tokens of every prompt, and notes what follows."""

    def __init__(self):
        self.noted = []
        self.kept = Match(KEPT, ())

    def match(self, request, prompt):
        return self.kept

    def release(self, match):
        self.noted.append(("release", match))

    def begin_with(self, match, request, prompt):
        self.noted.append(("alone", match))
        return ["alone"]

    def begin_handed(self, match, request, prompt, spans):
        self.noted.append(("handed", spans))
        return ["handed"]


@pytest.fixture
def reading():
    """A request whose prompt is being read."""
    head, handovers = NotingHead(), Handovers("two")
    request = Generate(
        sequence=7, route=HOLDER, cached=True, max_tokens=5, end_tokens=(), sampling=Sampling(), seed=0, read_by=READERS
    )
    (asked,) = handovers.begin(head, request, PROMPT)
    assert (asked.worker, type(asked.message), asked.message.start) == ("one", ReadPrompt, KEPT)
    return SimpleNamespace(handovers=handovers, head=head)


def part(worker, start, end, *, route=READERS):
    return HandedOver(sequence=7, route=route, worker=worker, start=start, end=end, part=None)


def is_stop(action):
    return isinstance(action, Tell) and (action.worker, type(action.message)) == ("one", StopReading)


def test_request_begins_once_every_stage_has_handed_over_all_of_it(reading):
    assert reading.handovers.handed_over(part("one", KEPT, 100), "a") == []
    assert reading.handovers.handed_over(part("one", 100, LAST), "b") == []
    assert reading.handovers.handed_over(part("two", KEPT, 100), "c") == []
    assert reading.handovers.handed_over(part("two", 100, LAST), "d") == ["handed"]
    assert reading.head.noted == [("handed", [("a", "c"), ("b", "d")])]
    assert not len(reading.handovers)


@pytest.mark.parametrize(
    "unfit",
    [
        part("one", KEPT, 100, route=Route(("one", "three"))),
        part("one", KEPT + 1, 100),
        part("one", 0, 100),
        part("one", KEPT, LAST + 1),
    ],
    ids=["another route", "a gap", "what is here", "beyond the prompt"],
)
def test_part_that_does_not_follow_is_refused(reading, unfit):
    with pytest.raises(UnfitMessage):
        reading.handovers.handed_over(unfit, None)
    assert not reading.head.noted


def test_stages_that_cut_differently_do_not_go_together(reading):
    for each in (part("one", KEPT, 100), part("one", 100, LAST), part("two", KEPT, 120)):
        reading.handovers.handed_over(each, None)
    with pytest.raises(UnfitMessage):
        reading.handovers.handed_over(part("two", 120, LAST), None)
    assert not reading.head.noted


def test_request_whose_reading_failed_begins_alone_and_the_readers_are_told(reading):
    stop, alone = reading.handovers.failed(ReadingFailed(sequence=7, message="why"))
    assert is_stop(stop)
    assert alone == "alone"
    assert reading.head.noted == [("alone", reading.head.kept)]
    assert reading.handovers.handed_over(part("one", KEPT, 100), None) == []


def test_request_that_leaves_gives_back_what_is_kept_for_it_and_the_readers_are_told(reading):
    (stop,) = reading.handovers.cancel(7)
    assert is_stop(stop)
    assert reading.head.noted == [("release", reading.head.kept)]
    assert reading.handovers.cancel(7) == []
