"""Ranks begin and compute all or none, and whoever fails keeps nobody waiting."""

from types import SimpleNamespace

import mlx.core as mx
import numpy as np
import pytest

from protocol.codec import Envelope
from protocol.messages import (
    CloseSequence,
    Heartbeat,
    KeepPrefix,
    LinkLost,
    Sampled,
    Shutdown,
    Step,
    Tokens,
)
from protocol.values import Peer, Route
from tests.support.load_stages import load_stage
from workers.engine import together
from workers.engine.actions import AnswerHead, Forward, Launch, Report
from workers.engine.arrivals import Adrift, Arrivals
from workers.engine.engine import Engine
from workers.engine.failures import failure_of
from workers.engine.fitness import UnfitMessage
from workers.engine.launched import Launched
from workers.engine.stage_runner import FinishedStep, StepInFlight
from workers.model.shelf import ModelShelf
from workers.tensor.company import Company
from workers.tensor.group import GroupBroken

ROUTE = Route(("a", "b"), ranks=2)
STEP = Step(number=3, route=ROUTE, slot=None, cached=True, rows=(), num_tokens=1)


class Ranks:
    """A group whose other rank says something."""

    rank, size = 0, 2

    def __init__(self, other=1):
        self.other = other
        self.is_aborted = self.is_closed = False

    def sum(self, x):
        return x + self.other

    def abort(self):
        self.is_aborted = True

    def failed(self, error):
        self.abort()

    def close(self):
        self.is_closed = True


@pytest.mark.parametrize(("here", "there"), [(True, 1), (True, 0), (False, 1), (False, 0)])
def test_sequence_is_open_on_all_ranks_or_on_none(here, there):
    assert together.agree({ROUTE: Ranks(there)}, ROUTE, is_so=here) == (here and bool(there))


def test_worker_alone_asks_nobody():
    assert together.agree({}, ROUTE, is_so=True)
    assert not together.agree({}, ROUTE, is_so=False)


@pytest.mark.parametrize(("error", "frees"), [(ValueError, True), (GroupBroken, True), (UnfitMessage, False)])
def test_rank_that_fails_in_a_step_frees_the_others_unless_they_fail_alike(error, frees):
    ranks = Ranks()
    with pytest.raises(error), together.or_nobody({ROUTE: ranks}, ROUTE):
        raise error("for the test")
    assert ranks.is_aborted == frees


def test_step_of_another_route_frees_nobody():
    ranks = Ranks()
    with pytest.raises(ValueError, match="elsewhere"), together.or_nobody({ROUTE: ranks}, Route(("a",))):
        raise ValueError("elsewhere")
    assert not ranks.is_aborted


@pytest.mark.parametrize("message", [STEP, KeepPrefix(sequence=1, route=ROUTE, spans=())])
def test_broken_group_is_a_lost_link_and_no_failure_of_the_request(message):
    (report,) = failure_of(message, GroupBroken("b is gone"), "a")
    assert isinstance(report, Report)
    assert isinstance(report.message, LinkLost)
    assert (report.message.worker, report.message.why) == ("a", "b is gone")
    assert isinstance(failure_of(STEP, ValueError("its own"), "a")[0], AnswerHead)


@pytest.mark.parametrize(
    ("message", "frees"),
    [
        (load_stage("d", Peer(endpoint="e", public_key="k")), True),
        (Shutdown(), True),
        (Adrift(), True),
        (STEP, False),
        (Heartbeat(worker="a"), False),
    ],
)
def test_rank_that_waits_is_freed_when_something_else_is_wanted(message, frees):
    company = Company(None, lambda: False)
    company.group = ranks = Ranks()
    Arrivals("a", company).post(Envelope(1, message))
    assert ranks.is_aborted == frees


def test_whom_a_message_frees_from_is_never_who_is_met_for_its_sake():
    """The compute thread takes it as soon as it is there, and a moment later has met others."""
    company, waiting = Company(None, lambda: False), []
    arrivals = Arrivals("a", company)
    company.group = ranks = Ranks()
    ranks.abort = lambda: waiting.append(arrivals.num_waiting)
    arrivals.post(Envelope(2, load_stage("d", Peer(endpoint="e", public_key="k"))))
    assert (waiting, arrivals.num_waiting) == ([0], 1)


class NotedRunner:
    """Of a stage runner what one launch takes, in order."""

    def __init__(self, told=()):
        self.noted = []
        self._told = told

    def sent_bytes(self):
        return {}

    def announce(self, launch):
        self.noted.append("announce")

    def launch_waits(self, route):
        return True

    def passes_on(self, route):
        return False

    def finish(self, in_flight):
        self.noted.append("finish")
        return FinishedStep(0.1, self._told)

    def launch(self, launch, before):
        assert before is None
        self.noted.append("launch")
        return StepInFlight(Launched(launch.step), launch.tokens, 0.0, 1.0, None)

    def apply(self, message, keys, handed):
        self.noted.append(type(message).__name__)
        return ()

    def send(self, worker, message, buffers=()):
        self.noted.append(type(message).__name__)


class NotedHeads:
    def __init__(self, actions):
        self._actions = actions

    def ran(self, step, seconds):
        pass

    def answered(self, message, now):
        return self._actions


@pytest.mark.parametrize(
    ("tokens", "order"),
    [
        (None, ["announce", "finish", "Tokens", "launch", "CloseSequence"]),
        (np.array([[7]]), ["announce", "finish", "CloseSequence", "Tokens", "launch"]),
    ],
)
def test_what_ends_a_sequence_is_done_behind_the_step_that_other_ranks_were_told_of_before(tokens, order, tmp_path):
    answer = AnswerHead(Sampled(number=3, route=ROUTE, tokens=((7,),)))
    runner = NotedRunner((answer,))
    engine = Engine("a", runner, ModelShelf(SimpleNamespace(model_place=lambda _: None), tmp_path))
    engine._runner = runner
    engine._heads = NotedHeads([Forward(CloseSequence(sequence=1, route=ROUTE)), Report(Tokens(updates=()))])
    in_flight = StepInFlight(Launched(STEP), None, 0.0, 1.0, None)
    launched = engine._launch(Launch(STEP, tokens), in_flight)
    assert launched.step is STEP
    assert runner.noted == order


def test_sum_of_a_vote_is_a_whole_number():
    seen = []

    class Watched(Ranks):
        def sum(self, x):
            seen.append(x.dtype)
            return x + self.other

    together.agree({ROUTE: Watched()}, ROUTE, is_so=True)
    assert seen == [mx.int32]
