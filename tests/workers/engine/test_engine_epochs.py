"""Epochs: what ends with one, what is kept for the next, what counts in which, and links with holes."""

import logging
import math

import numpy as np
import pytest

from protocol.codec import Envelope
from protocol.messages import (
    Cancel,
    CloseSequence,
    Generate,
    InspectModel,
    KnownPrefix,
    LinkLost,
    Loaded,
    LoadStage,
    OpenSequence,
    Sampled,
    Step,
)
from protocol.values import Route, Sampling
from strategy.prefix import BLOCK_TOKENS
from tests.support.in_process_cluster import MODEL, InProcessCluster, alone, heartbeat_of
from workers.engine.arrivals import Adrift
from workers.zoo import make_tiny_model

PROMPT = list(range(20, 60))
STRATEGIES = ("single-device-cached", "distributed-cached", "distributed-no-cache")


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    return make_tiny_model("llama", tmp_path_factory.mktemp("models") / "llama")


@pytest.fixture
def cluster_of(model, tmp_path, caplog):
    caplog.set_level(logging.CRITICAL)
    return lambda num_stages=2, **options: InProcessCluster(
        model, num_stages=num_stages, cache_dir=tmp_path, chunk_tokens=16, **options
    )


def ids(*numbers):
    return np.array(numbers, np.int32).tobytes()


def begun(cluster, prompt=PROMPT, strategies=STRATEGIES, max_tokens=60):
    """A request of each strategy in the midst of its answer."""
    numbers = [cluster.generate(prompt, max_tokens, strategy=strategy) for strategy in strategies]
    while not all(len(cluster.tokens[number]) >= 5 for number in numbers):
        cluster.turn()
    return numbers


def assert_all_is_gone(cluster, numbers, before):
    cluster.assert_nothing_is_left()
    assert [cluster.tokens[number] for number in numbers] == before
    assert cluster.failures == {}


@pytest.mark.parametrize("num_stages", [1, 2, 3])
def test_new_epoch_ends_what_runs_and_serves_what_comes(cluster_of, model, num_stages):
    cluster = cluster_of(num_stages)
    numbers = begun(cluster)
    before = [list(cluster.tokens[number]) for number in numbers]
    cluster.replan()
    assert_all_is_gone(cluster, numbers, before)
    again = [cluster.generate(PROMPT, 12, strategy=strategy) for strategy in STRATEGIES]
    cluster.run()
    assert [cluster.tokens[number] for number in again] == [alone(model, PROMPT, 12)] * 3


def test_second_load_while_a_step_is_pending_takes_no_worker_down(cluster_of, model):
    cluster = cluster_of(1)
    begun(cluster, strategies=("single-device-cached",))
    engine = cluster.engines["worker-0"]
    while engine._in_flight is None:
        engine.turn()
    cluster.post("worker-0", cluster.plan)
    cluster.run()
    assert len(cluster.reports_of(Loaded)) == 2
    number = cluster.generate(PROMPT, 12, strategy="single-device-cached")
    cluster.run()
    assert cluster.tokens[number] == alone(model, PROMPT, 12)


def test_request_that_comes_back_finds_what_it_had_computed_on_one_worker(cluster_of, model):
    cluster = cluster_of(2, disk=True)
    prompt = list(range(20, 300)) + PROMPT
    (number,) = begun(cluster, prompt, ("single-device-cached",))
    emitted = cluster.tokens[number]
    cluster.replan()
    again = cluster.generate(prompt + emitted, 6, strategy="single-device-cached")
    cluster.run()
    assert cluster.tokens[again] == alone(model, prompt + emitted, 6)
    assert cluster.reused[again] >= len(prompt + emitted) - BLOCK_TOKENS


OF_AN_EPOCH = {
    "request": (
        Generate(
            sequence=900,
            route=Route(("worker-0",)),
            cached=True,
            max_tokens=5,
            end_tokens=(),
            sampling=Sampling(),
            seed=0,
        ),
        (ids(*PROMPT),),
    ),
    "cancel": (Cancel(sequence=1), ()),
    "known prefixes": (KnownPrefix(route=Route(("worker-0",)), capacity=1, snapshots=False), (b"", b"")),
    "opening": (
        OpenSequence(
            sequence=900,
            route=Route(("worker-0",)),
            cached=True,
            sampling=Sampling(),
            seed=0,
            history=(),
            max_length=9,
        ),
        (b"",),
    ),
    "closing": (CloseSequence(sequence=1, route=Route(("worker-0",))), (b"",)),
    "step": (
        Step(number=1, route=Route(("worker-0",)), slot=None, cached=True, rows=(), num_tokens=0),
        (b"",),
    ),
    "sampled": (Sampled(number=1, route=Route(("worker-0",)), tokens=((1,),)), ()),
}


@pytest.mark.parametrize("difference", [-1, 1])
@pytest.mark.parametrize("what", OF_AN_EPOCH)
def test_what_speaks_of_sequences_in_another_epoch_is_dropped_and_counted(cluster_of, model, what, difference):
    cluster = cluster_of(1)
    (number,) = begun(cluster, strategies=("single-device-cached",), max_tokens=12)
    engine = cluster.engines["worker-0"]
    engine.post(Envelope(1 + difference, *OF_AN_EPOCH[what]))
    cluster.run()
    assert cluster.tokens[number] == alone(model, PROMPT, 12)
    assert 900 not in cluster.tokens
    assert engine._arrivals.num_dropped == 1
    assert engine._arrivals.epoch == 1
    cluster.assert_nothing_is_left()


def test_only_a_plan_raises_the_epoch_and_an_older_one_is_dropped(cluster_of):
    cluster = cluster_of(1)
    engine = cluster.engines["worker-0"]
    engine.post(Envelope(9, InspectModel(model=MODEL, reply_to=cluster.coordinator)))
    cluster.run()
    assert engine._arrivals.epoch == 1
    engine.post(Envelope(7, cluster.plan))
    engine.post(Envelope(6, cluster.plan))
    cluster.run()
    assert engine._arrivals.epoch == 7
    assert len(cluster.reports_of(Loaded)) == 2
    assert engine._arrivals.num_dropped == 1


def test_adrift_it_keeps_its_weights_and_nothing_that_runs(cluster_of, model):
    cluster = cluster_of(2)
    numbers = begun(cluster)
    engine = cluster.engines["worker-0"]
    before = heartbeat_of(engine).weights_bytes
    engine.post(Envelope(0, Adrift()))
    engine.turn()
    assert heartbeat_of(engine).weights_bytes == before > 0
    assert engine.held == (MODEL, ((0, 6),))
    late = cluster.generate(PROMPT, 3)
    cluster.run()
    tokens = [list(cluster.tokens[number]) for number in numbers]
    cluster.replan()
    assert_all_is_gone(cluster, [*numbers, late], [*tokens, []])
    again = cluster.generate(PROMPT, 12)
    cluster.run()
    assert cluster.tokens[again] == alone(model, PROMPT, 12)


def test_plan_and_beats_say_all_that_was_read_since_the_process_began(cluster_of):
    cluster = cluster_of(1)
    (loaded,) = cluster.reports_of(Loaded)
    assert loaded.read_bytes > 0
    cluster.replan()
    (again,) = cluster.reports_of(Loaded)
    assert heartbeat_of(cluster.engines["worker-0"]).read_bytes == again.read_bytes == loaded.read_bytes


class Losing:
    """Passes on what an engine sends to others but for the message of one number, which vanishes on its way."""

    def __init__(self, cluster, links, number):
        self._network = cluster.network
        self._links = links
        self._number = number

    def send(self, worker, message, buffers=()):
        self._number -= 1
        if self._number == 0:
            self._network.lose_next("worker-0", worker)
        self._links.send(worker, message, buffers)


@pytest.mark.parametrize("missing", range(1, 12))
def test_nothing_behind_a_hole_in_a_link_is_computed_and_the_loss_is_reported_once(cluster_of, model, missing):
    cluster = cluster_of(2)
    runner = cluster.engines["worker-0"]._runner
    runner._links = Losing(cluster, runner._links, missing)
    numbers = [cluster.generate(PROMPT, 40) for _ in range(2)]  # the second's steps come behind a hole in the first's
    cluster.run()
    (lost,) = cluster.reports_of(LinkLost)
    assert (lost.worker, lost.peer) == ("worker-0", "worker-1")
    for number in numbers:
        found = cluster.tokens[number]
        assert len(found) < 40
        assert found == alone(model, PROMPT, 40)[: len(found)]
    runner._links = runner._links._links
    cluster.replan()
    again = cluster.generate(PROMPT, 12)
    cluster.run()
    assert cluster.tokens[again] == alone(model, PROMPT, 12)
    cluster.assert_nothing_is_left()


def test_plan_that_cannot_be_loaded_leaves_a_worker_that_can_load_the_next(cluster_of, model):
    cluster = cluster_of(1)
    begun(cluster, strategies=("single-device-cached",))
    engine = cluster.engines["worker-0"]
    load = engine._loading._loader.load
    engine._loading._loader.load = lambda *_: math.sqrt(-1)
    with pytest.raises(AssertionError, match="worker-0 could not use the model"):
        cluster.replan()
    assert (engine.heartbeat(0.0).running, len(list(engine._heads))) == (0, 0)
    engine._loading._loader.load = load
    cluster.replan()
    number = cluster.generate(PROMPT, 12, strategy="single-device-cached")
    cluster.run()
    assert cluster.tokens[number] == alone(model, PROMPT, 12)
    assert isinstance(cluster.plan, LoadStage)
