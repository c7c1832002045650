"""What an engine says of itself while its thread is at work, stuck, idle or loading; and steps that do not come back."""

import logging

import mlx.core as mx
import pytest

from protocol.codec import Envelope
from protocol.messages import StepOverdue
from protocol.values import Route
from tests.support.in_process_cluster import InProcessCluster
from workers.engine.usual_times import LIMIT_OF_UNKNOWN_S, SHORTEST_LIMIT_S
from workers.engine.vitals import DEAF_LIMIT_S, MESSAGE_LIMIT_S, RANK_LIMIT_S, READING_LIMIT_S, Vitals, moving_limit_s
from workers.zoo import make_tiny_model

PROMPT = list(range(20, 60))


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    return make_tiny_model("llama", tmp_path_factory.mktemp("models") / "llama")


@pytest.fixture
def cluster(model, tmp_path, caplog):
    caplog.set_level(logging.CRITICAL)
    return InProcessCluster(model, num_stages=2, cache_dir=tmp_path, chunk_tokens=16)


class Spy:
    """Stands in for a method; notes the heartbeat of an engine while it is called, and some seconds after its begin."""

    def __init__(self, engine, method, later_s=100.0):
        self._engine = engine
        self._method = method
        self._later_s = later_s
        self.seen = []

    def __call__(self, *arguments, **options):
        self.seen.append(self._engine.heartbeat(self._engine._now() + self._later_s))
        return self._method(*arguments, **options)


def executor_of(cluster, worker, route):
    return cluster.engines[worker]._runner.stages.executors[route]


@pytest.mark.parametrize("method", ["launch", "finish"])
@pytest.mark.parametrize("worker", ["worker-0", "worker-1"])
def test_thread_stuck_in_a_step_shows_for_how_long_and_how_long_is_too_long(cluster, worker, method):
    executor = executor_of(cluster, worker, Route(cluster.names))
    spy = Spy(cluster.engines[worker], getattr(executor, method))
    setattr(executor, method, spy)
    cluster.generate(PROMPT, 5)
    cluster.run()
    assert spy.seen
    for beat in spy.seen:
        assert 100.0 < beat.oldest_step_s < 101.0
        assert SHORTEST_LIMIT_S <= beat.overdue_s <= 2 * LIMIT_OF_UNKNOWN_S
    assert spy.seen[-1].overdue_s <= 2 * SHORTEST_LIMIT_S


def test_thread_stuck_in_another_message_shows_too(cluster):
    executor = executor_of(cluster, "worker-1", Route(cluster.names))
    spy = executor.open = Spy(cluster.engines["worker-1"], executor.open)
    cluster.generate(PROMPT, 5)
    cluster.run()
    (beat,) = spy.seen
    assert (beat.oldest_step_s > 100.0, beat.overdue_s) == (True, MESSAGE_LIMIT_S)


def test_thread_that_waits_for_another_rank_may_wait_until_that_one_is_missed():
    vitals = Vitals("a", {})
    vitals.wait_for_rank()  # at nothing
    assert vitals.heartbeat(7.0, num_waiting=0).oldest_step_s is None
    vitals.begin(5.0)
    vitals.wait_for_rank()
    beat = vitals.heartbeat(7.0, num_waiting=0)
    assert (beat.oldest_step_s, beat.overdue_s) == (2.0, RANK_LIMIT_S)
    vitals.begin(8.0, READING_LIMIT_S)
    vitals.wait_for_rank()
    assert vitals.heartbeat(8.0, num_waiting=0).overdue_s == READING_LIMIT_S
    vitals.begin(9.0)
    assert vitals.heartbeat(9.0, num_waiting=0).overdue_s == MESSAGE_LIMIT_S


def test_thread_that_loads_may_take_long_for_each_layer_and_begins_anew_with_every_one(cluster):
    engine = cluster.engines["worker-0"]
    loader = engine._loading._loader
    load = spy = Spy(engine, loader.load)

    def slowly(name, plan, progress):
        cluster.clock.now += 80
        progress(1)
        cluster.clock.now += 80
        return load(name, plan, progress)

    loader.load = slowly
    cluster.replan()
    (beat,) = spy.seen
    assert (beat.oldest_step_s, beat.overdue_s) == (pytest.approx(180.0, abs=0.1), READING_LIMIT_S)


def test_thread_that_waits_for_messages_counts_as_at_nothing(cluster):
    engine = cluster.engines["worker-0"]
    cluster.generate(PROMPT, 5)
    cluster.run()
    wait = engine._arrivals.next
    spy = engine._arrivals.next = Spy(engine, wait)
    engine.turn(wait_s=0.001)
    assert [beat.oldest_step_s for beat in spy.seen] == [None]


def test_what_requests_left_unused_is_given_back_once_nothing_comes(cluster, monkeypatch):
    given_back = []
    monkeypatch.setattr(
        "workers.engine.stage_runner.give_back_memory", lambda: given_back.append(mx.get_cache_memory())
    )
    engine = cluster.engines["worker-0"]
    engine.turn(wait_s=0.001)  # of the plan
    cluster.generate(PROMPT, 5)
    for _ in range(6):
        cluster.turn()
    engine._runner.rest()  # as after a pause of another stage
    assert len(given_back) == 1
    cluster.run()
    engine.turn()
    assert len(given_back) == 1
    for _ in range(3):
        engine.turn(wait_s=0.001)
    assert given_back == [0, 0]


def test_messages_that_wait_for_a_stuck_thread_are_counted(cluster):
    engine = cluster.engines["worker-0"]
    for _ in range(3):
        engine.post(Envelope(0, object()))
    assert engine.heartbeat(0.0).queued == 3


def test_step_that_does_not_come_back_is_reported_once(cluster):
    for _ in range(3):
        cluster.generate(PROMPT, 5)
        cluster.run()
    cluster.network._inboxes.pop("worker-1")
    cluster.generate(PROMPT, 5)
    cluster.run()
    cluster.clock.now += SHORTEST_LIMIT_S - 1
    cluster.run()
    assert cluster.reports_of(StepOverdue) == []
    cluster.clock.now += 2
    cluster.run()
    told = cluster.reports_of(StepOverdue)
    assert told
    assert {(report.worker, report.route) for report in told} == {("worker-0", Route(cluster.names))}
    assert all(SHORTEST_LIMIT_S < report.seconds < SHORTEST_LIMIT_S + 2 for report in told)
    cluster.clock.now += 60
    cluster.run()
    assert cluster.reports_of(StepOverdue) == told


def test_steps_that_come_back_are_never_reported(cluster):
    for _ in range(20):
        cluster.generate(PROMPT, 5)
        while cluster.turn():
            cluster.clock.now += 0.3
    assert cluster.reports_of(StepOverdue) == []


def test_thread_that_does_not_wake_up_for_a_message_is_stuck_like_one_in_a_step():
    vitals = Vitals("worker-0", {})
    vitals.wait()
    assert vitals.heartbeat(10.0, num_waiting=0).oldest_step_s is None
    assert vitals.heartbeat(11.0, num_waiting=2).oldest_step_s == 0.0
    beat = vitals.heartbeat(17.0, num_waiting=2)
    assert (beat.oldest_step_s, beat.overdue_s) == (6.0, DEAF_LIMIT_S)
    vitals.begin(17.0)
    vitals.wait()
    assert vitals.heartbeat(18.0, num_waiting=1).oldest_step_s == 0.0  # it took others meanwhile
    vitals.rest()
    assert vitals.heartbeat(60.0, num_waiting=1).oldest_step_s is None  # it ends


def test_parts_of_caches_may_take_longer_the_more_there_is_to_move():
    assert moving_limit_s(0) == MESSAGE_LIMIT_S == SHORTEST_LIMIT_S
    assert moving_limit_s(10_000_000_000) > 100
