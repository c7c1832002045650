"""What an engine does beside computing tokens: losing steps, loading, old messages, progress, fairness, stopping."""

import logging

import msgspec
import numpy as np
import pytest

from protocol.codec import Envelope
from protocol.messages import (
    Cancel,
    ComputeFigures,
    FiguresComputed,
    Generate,
    Heartbeat,
    Inspected,
    InspectModel,
    LoadFailed,
    Sampled,
    Shutdown,
    Step,
)
from protocol.transport import InProcessNetwork
from protocol.values import LayerRange
from strategy.vocabulary import Route
from tests.support.in_process_cluster import MODEL, InProcessCluster, alone, heartbeat_of, shelf_of
from workers.engine.engine import Engine
from workers.model.figures import stage_figures
from workers.model.split_model import SplitModel
from workers.zoo import make_tiny_model

PROMPT = list(range(20, 60))


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    return make_tiny_model("llama", tmp_path_factory.mktemp("models") / "llama")


@pytest.fixture(scope="module")
def cache_dir(tmp_path_factory):
    return tmp_path_factory.mktemp("cache")


@pytest.fixture
def cluster(model, cache_dir):
    return InProcessCluster(model, num_stages=2, cache_dir=cache_dir, chunk_tokens=16)


class Tampering:
    """Passes on what an engine sends to others; `change` may replace the steps among it (message, buffers)."""

    def __init__(self, links, change):
        self._links = links
        self._change = change

    def send(self, worker, message, buffers=()):
        if isinstance(message, Step):
            message, buffers = self._change(message, list(buffers))
        self._links.send(worker, message, buffers)


def tamper(cluster, change):
    """Have the first stage's steps changed on their way; returns the links as they were."""
    runner = cluster.engines["worker-0"]._runner
    honest, runner._links = runner._links, Tampering(runner._links, change)
    return honest


def concerns(step, sequence):
    return any(row.sequence == sequence for row in step.rows)


def cut_hidden_states(step, buffers):
    return step, [buffers[0], bytes(buffers[1])[:-4]]


def lose_hidden_states(step, buffers):
    return step, buffers[:1]


def rename_payload(step, buffers):
    return msgspec.structs.replace(step, payload=["object", "os.system"]), buffers


def change_shape(step, buffers):
    return msgspec.structs.replace(step, payload=["array", "float32", [1, 2, 3]]), [buffers[0], bytes(24)]


def cut_tokens(step, buffers):
    return step, [bytes(buffers[0])[:-4], *buffers[1:]]


def lose_every_buffer(step, _buffers):
    return step, []


def name_a_stranger(step, buffers):
    return msgspec.structs.replace(
        step, rows=(msgspec.structs.replace(step.rows[0], sequence=999), *step.rows[1:])
    ), buffers


@pytest.mark.parametrize(
    "damage",
    [
        cut_hidden_states,
        lose_hidden_states,
        rename_payload,
        change_shape,
        cut_tokens,
        lose_every_buffer,
        name_a_stranger,
    ],
)
def test_step_that_cannot_be_run_fails_its_request_and_no_other(cluster, model, damage, caplog):
    caplog.set_level(logging.CRITICAL)
    bad = cluster.generate(PROMPT, 6)
    good = cluster.generate(PROMPT[:20], 6)
    tamper(cluster, lambda step, buffers: damage(step, buffers) if concerns(step, bad) else (step, buffers))
    cluster.run()
    assert "worker-1" in cluster.failures[bad]
    assert cluster.tokens[bad] == []
    assert cluster.tokens[good] == alone(model, PROMPT[:20], 6)
    assert good not in cluster.failures
    cluster.assert_nothing_is_left()


def test_request_after_a_failed_one_is_served(cluster, model, caplog):
    caplog.set_level(logging.CRITICAL)
    honest = tamper(cluster, cut_hidden_states)
    cluster.generate(PROMPT, 6)
    cluster.run()
    cluster.engines["worker-0"]._runner._links = honest
    later = cluster.generate(PROMPT, 6)
    cluster.run()
    assert cluster.tokens[later] == alone(model, PROMPT, 6)


def test_failure_while_decoding_keeps_the_tokens_before_it(cluster, model, caplog):
    caplog.set_level(logging.CRITICAL)
    sequence = cluster.generate(PROMPT, 8)
    while len(cluster.tokens[sequence]) < 3:
        cluster.turn()
    tamper(cluster, cut_hidden_states)
    cluster.run()
    assert sequence in cluster.failures
    found = cluster.tokens[sequence]
    assert 3 <= len(found) < 8
    assert found == alone(model, PROMPT, 8)[: len(found)]
    cluster.assert_nothing_is_left()


def test_messages_of_an_older_plan_are_dropped(cluster):
    worker = cluster.engines["worker-0"]
    message = Generate(
        sequence=50, route=Route(cluster.names), cached=True, max_tokens=5, end_tokens=(), sampling={}, seed=0
    )
    worker.post(Envelope(0, message, (np.array(PROMPT, np.int32).tobytes(),)))
    worker.post(Envelope(0, Sampled(number=1, route=Route(cluster.names), tokens=((1,),))))
    cluster.run()
    assert 50 not in cluster.tokens
    cluster.assert_nothing_is_left()


def test_cancelled_request_stops_costing_steps_within_two(cluster):
    sequence = cluster.generate(PROMPT, 10_000, strategy="distributed-no-cache")
    while len(cluster.tokens[sequence]) < 3:
        cluster.turn()
    cluster.cancel(sequence)
    before = [heartbeat_of(engine).steps for engine in cluster.engines.values()]
    cluster.run()
    after = [heartbeat_of(engine).steps for engine in cluster.engines.values()]
    assert all(later - earlier <= 2 for earlier, later in zip(before, after, strict=True))
    cluster.assert_nothing_is_left()


def test_request_cancelled_before_it_began_leaves_nothing(cluster):
    sequence = cluster.generate(PROMPT, 5)
    cluster.cancel(sequence)
    cluster.run()
    assert cluster.tokens[sequence] == []
    cluster.assert_nothing_is_left()


def test_cancel_of_an_unknown_request_is_ignored(cluster):
    cluster.cancel(12345)
    cluster.run()


def test_two_long_requests_progress_together(cluster):
    for strategy in ("distributed-no-cache", "distributed-cached", "single-device-cached"):
        pair = [cluster.generate(PROMPT, 30, strategy=strategy) for _ in range(2)]
        while not all(sequence in cluster.finish_reasons for sequence in pair):
            assert cluster.turn()
            first, second = (len(cluster.tokens[sequence]) for sequence in pair)
            assert abs(first - second) <= 3, strategy


def test_routes_that_begin_on_one_worker_share_it(cluster):
    pair = [cluster.generate(PROMPT, 30, strategy=s) for s in ("single-device-cached", "distributed-no-cache")]
    while not all(sequence in cluster.finish_reasons for sequence in pair):
        assert cluster.turn()
        counts = [len(cluster.tokens[sequence]) for sequence in pair]
        assert max(counts) < 10 or min(counts) > 0


def test_long_prompt_does_not_stop_a_running_stream(cluster):
    stream = cluster.generate(PROMPT[:4], 200)
    while len(cluster.tokens[stream]) < 5:
        cluster.turn()
    before = len(cluster.tokens[stream])
    long = cluster.generate(list(range(20, 270)) * 2, 1)
    while long not in cluster.finish_reasons:
        cluster.turn()
    num_chunks = -(-500 // 16)
    assert len(cluster.tokens[stream]) - before >= num_chunks / 2
    assert cluster.progress[long] == sorted(cluster.progress[long])
    assert cluster.progress[long][-1] == 499
    cluster.run()


def test_short_prompt_overtakes_a_long_one(cluster):
    long = cluster.generate(list(range(20, 270)) * 4, 1)
    short = cluster.generate(PROMPT[:4], 1)
    while long not in cluster.finish_reasons:
        cluster.turn()
        if short in cluster.finish_reasons:
            break
    assert long not in cluster.finish_reasons
    cluster.run()


def test_steps_of_all_stages_are_in_flight_together(cluster):
    """With two sequences in two slots, stage 0 begins the second while stage 1 still has the first."""
    for _ in range(2):
        cluster.generate(PROMPT[:1], 20)
    head = None
    most = 0
    while cluster.turn():
        head = head or next(iter(cluster.engines["worker-0"]._heads), None)
        if head is not None:
            most = max(most, head.num_in_flight)
    assert most >= 2


def test_heartbeat_counts_weights_caches_and_steps(cluster):
    sequence = cluster.generate(PROMPT, 50)
    while len(cluster.tokens[sequence]) < 3:
        cluster.turn()
    for engine in cluster.engines.values():
        stats = heartbeat_of(engine)
        assert isinstance(stats, Heartbeat)
        assert stats.weights_bytes > 0
        assert stats.kv_bytes > 0
        assert stats.running == 1
        assert stats.steps >= 3
        assert stats.busy_s > 0
    cluster.cancel(sequence)
    cluster.run()


def engine_alone(path, cache_dir):
    network, reports = InProcessNetwork(), []
    coordinator = network.inbox("coordinator", lambda envelope: reports.append(envelope.message))
    engine = Engine("worker-0", network.links("worker-0", print), shelf_of(path, cache_dir))
    engine.post(Envelope(1, InspectModel(model=MODEL, reply_to=coordinator)))
    return engine, network, reports


def ask(path, cache_dir):
    """What an engine that has nothing loaded reports when it is to inspect the model in `path`."""
    engine, network, reports = engine_alone(path, cache_dir)
    while engine.turn():
        pass
    network.run()
    return reports


def test_architecture_that_mlx_lm_lacks_is_said_to_be_the_reason(tmp_path, cache_dir):
    (tmp_path / "config.json").write_text('{"model_type": "no_such_architecture"}')
    (found,) = ask(tmp_path, cache_dir)
    assert found.legal_cuts == ()
    assert "no_such_architecture" in found.why_not
    assert "\n" not in found.why_not


def test_directory_without_configuration_fails_the_inspection(tmp_path, cache_dir):
    (failed,) = ask(tmp_path, cache_dir)
    assert isinstance(failed, LoadFailed)
    assert "config.json" in failed.message


def test_inspection_reports_what_the_planner_needs(model, cache_dir):
    (found,) = ask(model, cache_dir)
    assert isinstance(found, Inspected)
    assert (found.architecture, found.num_layers, found.why_not) == ("llama", 6, None)
    assert found.legal_cuts == (1, 2, 3, 4, 5)


def test_loading_tells_how_far_it_is_after_each_layer(cluster):
    for name in cluster.names:
        told = [report.loaded_bytes for report in cluster.load_progress if report.worker == name]
        assert len(told) >= 6 // len(cluster.names)
        assert told == sorted(told)
        assert told[0] < told[-1]


def test_damaged_weights_fail_the_load_in_a_sentence(tmp_path, cache_dir):
    path = make_tiny_model("llama", tmp_path / "damaged")
    weights = path / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:-100])
    with pytest.raises(AssertionError, match="truncated"):
        InProcessCluster(path, num_stages=2, cache_dir=cache_dir)


def test_engine_ends_when_told_to_even_with_work_at_hand(model, cache_dir):
    cluster = InProcessCluster(model, num_stages=1, cache_dir=cache_dir)
    cluster.generate(PROMPT, 10_000, strategy="single-device-cached")
    cluster.turn()
    cluster.post("worker-0", Shutdown())
    cluster.engines["worker-0"].run()


def test_message_that_is_not_for_engines_is_dropped(cluster):
    cluster.post("worker-0", LoadFailed(worker="worker-1", message="?"))
    cluster.post("worker-0", Cancel(sequence=3))
    cluster.run()
    cluster.assert_nothing_is_left()


def test_figures_are_those_of_the_layers_and_a_request_that_runs_does_not_notice(cluster, model):
    expected = alone(model, PROMPT, 20)
    sequence = cluster.generate(PROMPT, 20)
    while len(cluster.tokens.get(sequence, ())) < 5:
        cluster.turn()
    assert sequence not in cluster.finish_reasons
    for name in cluster.names:
        cluster._send(name, ComputeFigures(number=7))
    cluster.run()
    assert cluster.tokens[sequence] == expected
    told = {message.worker: message.stages for message in cluster.reports_of(FiguresComputed)}
    whole = SplitModel.load(model)
    assert {stage.layers for stage in told["worker-0"]} == {LayerRange(0, 3), LayerRange(0, 6)}
    assert {stage.layers for stage in told["worker-1"]} == {LayerRange(3, 6)}
    for stage in (*told["worker-0"], *told["worker-1"]):
        assert stage == stage_figures(whole, stage.layers)


@pytest.mark.parametrize("launch_waits", [True, False])
def test_first_token_waits_for_no_launch_that_waits_for_the_step_behind_it(model, cache_dir, launch_waits):
    cluster = InProcessCluster(model, num_stages=1, cache_dir=cache_dir)
    runner, events, sampled = cluster.engines["worker-0"]._runner, [], []
    launch, finish = runner.launch, runner.finish

    def noted_launch(begun, before):
        events.append(("begun", begun.step.number))
        sampled.extend(begun.step.number for row in begun.step.rows if row.num_sampled)
        return launch(begun, before)

    def noted_finish(in_flight):
        events.append(("ended", in_flight.step.number))
        return finish(in_flight)

    runner.launch, runner.finish, runner._launch_returns_at_once = noted_launch, noted_finish, not launch_waits
    number = cluster.generate(PROMPT, 6, strategy="single-device-cached")
    cluster.run()
    assert cluster.tokens[number] == alone(model, PROMPT, 6)
    first, second, third, *_ = sampled
    assert (events.index(("ended", first)) < events.index(("begun", second))) is launch_waits
    assert events.index(("begun", third)) < events.index(("ended", second))
