"""Who looks at steps: all of them hear the same, from when they look until they do not, and with how far each clock is ahead."""

import json

from cluster.planning.watched_steps import WatchedSteps
from protocol.messages import StepsRecorded


class Watched:
    def __init__(self, *elsewhere):
        self.now = 1000.0
        self.steps = WatchedSteps(lambda name: name in elsewhere, lambda: self.now)

    def said(self, worker="w", *, clock=1000.0, report=b'{"steps":[]}'):
        self.steps.recorded(StepsRecorded(worker=worker, clock=clock), report)


def test_all_who_look_hear_while_they_look():
    watched, first, second = Watched(), [], []
    watched.said()
    with watched.steps.watch(first.append):
        watched.said(report=b'{"n":1}')
        with watched.steps.watch(second.append):
            watched.said("v", report=memoryview(b'{"n":2} '))
        watched.said(report=b'{"n":3}')
    assert not watched.steps.are_watched
    watched.said()
    assert [(said.worker, json.loads(said.report)["n"]) for said in first] == [("w", 1), ("v", 2), ("w", 3)]
    assert [json.loads(said.report)["n"] for said in second] == [2]


def test_clock_is_as_far_ahead_as_the_report_says_that_took_least():
    watched, heard = Watched("w"), []
    with watched.steps.watch(heard.append):
        for late_s in (0.5, 0.25, 0.75):
            watched.now += 1
            watched.said(clock=watched.now + 3.0 - late_s)
    assert [said.clock_ahead_s for said in heard] == [2.5, 2.75, 2.75]
    assert [json.loads(said.report) for said in heard][1] == {"steps": [], "clock_ahead_s": 2.75}


def test_worker_of_this_machine_has_its_clock():
    watched, heard = Watched("w"), []
    with watched.steps.watch(heard.append):
        watched.said("v", clock=990.0)
    assert heard[0].clock_ahead_s == 0.0
