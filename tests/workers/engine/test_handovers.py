"""Prompts that all stages read for one worker, which generates alone: the same ids, whoever holds the model and whatever is lost."""

import logging
from collections import Counter

import pytest

from protocol.messages import (
    HandedOver,
    HandOver,
    LinkLost,
    ReadingFailed,
    ReadPrompt,
    StopReading,
)
from protocol.values import KvSettings, Route
from strategy.prefix import BLOCK_TOKENS
from tests.support.in_process_cluster import InProcessCluster, alone
from workers.engine.generation import HAND_OVER_EVERY_TOKENS
from workers.engine.handovers import LEAST_TOKENS
from workers.zoo import make_tiny_model

PROMPT = [(7 * index) % 290 + 5 for index in range(600)]
COUNT = 12
NUM_LAYERS = 6
PLACES = [(2, 0), (2, 1), (3, 0), (3, 1), (3, 2)]
KINDS = [
    KvSettings(kind="dynamic"),
    KvSettings(kind="static"),
    KvSettings(kind="paged"),
    KvSettings(kind="keys-only"),
    KvSettings(kind="rotating", max_tokens=1024),
    KvSettings(kind="rotating", max_tokens=200),
    KvSettings(kind="quantized", bits=8, group_size=32),
    KvSettings(kind="quantized", key_bits=8, value_bits=4, group_size=32),
]
PREFILL = "distributed-prefill"


@pytest.fixture(scope="module")
def models(tmp_path_factory):
    root = tmp_path_factory.mktemp("models")
    made = {
        name: make_tiny_model(name, root / name, num_hidden_layers=NUM_LAYERS)
        for name in ("llama", "gemma3_text", "mamba2", "deepseek_v3", "jamba")
    }
    return made | {"wide": make_tiny_model("llama", root / "wide", num_hidden_layers=NUM_LAYERS, hidden_size=128)}


@pytest.fixture
def cluster_of(models, tmp_path, caplog):
    caplog.set_level(logging.CRITICAL)

    def make(num_stages=2, architecture="llama", *, chunk_tokens=100, **options):
        return InProcessCluster(
            models[architecture], num_stages=num_stages, cache_dir=tmp_path, chunk_tokens=chunk_tokens, **options
        )

    return make


class Watched:
    """What one worker sends to others of some kinds."""

    def __init__(self, cluster, worker):
        self.sent = []
        links = cluster.engines[worker]._links
        send = links.send

        def watched(peer, message, buffers=()):
            self.sent.append((peer, message))
            send(peer, message, buffers)

        links.send = watched

    def of(self, *kinds):
        return [message for _, message in self.sent if isinstance(message, kinds)]


def steps_of(cluster, worker):
    return cluster.engines[worker]._vitals.num_steps


def read_until(cluster, watched, count=1):
    """Until a worker has handed something over."""
    while len(watched.of(HandedOver)) < count:
        assert cluster.turn()


@pytest.mark.parametrize(("num_stages", "holder"), PLACES)
def test_answer_is_that_of_the_holder_alone_whichever_stage_it_has(cluster_of, models, num_stages, holder):
    cluster = cluster_of(num_stages, holder=holder)
    number = cluster.generate(PROMPT, COUNT, strategy=PREFILL)
    cluster.run()
    assert cluster.failures == {}
    assert cluster.tokens[number] == alone(models["llama"], PROMPT, COUNT)
    assert cluster.finish_reasons[number] == "length"
    assert cluster.progress[number] == [100, 200, 300, 400, 500, 599]  # and not once more by the holder
    cluster.assert_nothing_is_left()


def test_stages_read_and_the_holder_alone_generates(cluster_of):
    cluster = cluster_of(2, holder=1)
    watched = Watched(cluster, "worker-0")
    cluster.generate(PROMPT, COUNT, strategy=PREFILL)
    cluster.run()
    assert steps_of(cluster, "worker-0") == 6  # chunks of 100
    assert steps_of(cluster, "worker-1") >= 6 + COUNT
    spans = [(message.start, message.end) for message in watched.of(HandedOver)]
    assert spans == [(0, 300), (300, 599)]
    assert all(end - start >= HAND_OVER_EVERY_TOKENS for start, end in spans)


def test_caches_of_the_holders_own_stage_cross_no_link(cluster_of):
    cluster = cluster_of(3, holder=1)
    everybody = {name: Watched(cluster, name) for name in cluster.names}
    cluster.generate(PROMPT, COUNT, strategy=PREFILL)
    cluster.run()
    num_handed = {name: len(watched.of(HandedOver)) for name, watched in everybody.items()}
    assert num_handed == {"worker-0": 2, "worker-1": 0, "worker-2": 2}


@pytest.mark.parametrize("length", [1, 2, LEAST_TOKENS, LEAST_TOKENS + 1, LEAST_TOKENS + 2, 257, 258])
def test_prompts_of_any_length_are_answered_and_short_ones_read_alone(cluster_of, models, length):
    cluster = cluster_of(2, holder=1)
    watched = Watched(cluster, "worker-1")
    number = cluster.generate(PROMPT[:length], COUNT, strategy=PREFILL)
    cluster.run()
    assert cluster.tokens[number] == alone(models["llama"], PROMPT[:length], COUNT)
    assert len(watched.of(ReadPrompt)) == (length > LEAST_TOKENS)
    cluster.assert_nothing_is_left()


@pytest.mark.parametrize("kv", KINDS, ids=lambda kv: f"{kv.kind} {kv.max_tokens or kv.key_bits or ''}")
def test_every_kind_of_cache_is_handed_over(cluster_of, kv):
    answers, num_handed = [], []
    for strategy in ("single-device-cached", PREFILL):
        cluster = cluster_of(2, "wide", kv=kv, holder=1, prefix_capacity=0)
        watched = Watched(cluster, "worker-0")
        number = cluster.generate(PROMPT, COUNT, strategy=strategy)
        cluster.run()
        assert cluster.failures == {}
        answers.append(cluster.tokens[number])
        num_handed.append(len(watched.of(HandedOver)))
        cluster.assert_nothing_is_left()
    assert answers[0] == answers[1]
    assert num_handed == [0, 1 if kv.kind == "rotating" else 2]
    assert len(cluster.progress[number]) == 6


@pytest.mark.parametrize("architecture", ["gemma3_text", "mamba2", "deepseek_v3", "jamba"])
@pytest.mark.parametrize("holder", [0, 1])
def test_unlike_caches_are_handed_over(cluster_of, models, architecture, holder):
    cluster = cluster_of(2, architecture, holder=holder)
    watched = Watched(cluster, cluster.names[1 - holder])
    number = cluster.generate(PROMPT, COUNT, strategy=PREFILL)
    cluster.run()
    assert cluster.tokens[number] == alone(models[architecture], PROMPT, COUNT)
    assert len(watched.of(HandedOver)) == (2 if architecture == "deepseek_v3" else 1)
    assert len(cluster.progress[number]) == 6
    cluster.assert_nothing_is_left()


# --- reuse


def test_what_the_holder_kept_is_not_read_again(cluster_of, models):
    cluster = cluster_of(2, holder=1)
    cluster.generate(PROMPT[:300], COUNT, strategy="single-device-cached")
    cluster.run()
    watched = Watched(cluster, "worker-0")
    number = cluster.generate(PROMPT, COUNT, strategy=PREFILL)
    cluster.run()
    assert next(message.start for message in watched.of(HandedOver)) == 256
    assert cluster.reused[number] == 256
    assert cluster.tokens[number] == alone(models["llama"], PROMPT, COUNT)


def test_holder_that_has_most_of_a_prompt_reads_the_rest_alone_unless_the_stages_have_it_too(cluster_of, models):
    cluster = cluster_of(2, holder=1)
    cluster.generate(PROMPT[:500], COUNT, strategy="single-device-cached")
    cluster.run()
    before = steps_of(cluster, "worker-0")
    number = cluster.generate(PROMPT, COUNT, strategy=PREFILL)
    cluster.run()
    assert steps_of(cluster, "worker-0") == before
    assert cluster.reused[number] == 448
    assert cluster.tokens[number] == alone(models["llama"], PROMPT, COUNT)
    cluster.generate(PROMPT[:500], COUNT)
    cluster.run()
    other = [*PROMPT[:500], *PROMPT[:150]]
    before = steps_of(cluster, "worker-0")
    number = cluster.generate(other, COUNT, strategy=PREFILL)
    cluster.run()
    assert steps_of(cluster, "worker-0") > before
    assert cluster.tokens[number] == alone(models["llama"], other, COUNT)


def test_what_the_stages_kept_is_handed_over_and_not_computed(cluster_of, models):
    cluster = cluster_of(2, holder=1)
    cluster.generate(PROMPT[:300], COUNT)
    cluster.run()
    before = steps_of(cluster, "worker-0")
    number = cluster.generate(PROMPT, COUNT, strategy=PREFILL)
    cluster.run()
    assert steps_of(cluster, "worker-0") - before == 4  # from 256 on
    assert cluster.reused[number] == 256
    assert cluster.tokens[number] == alone(models["llama"], PROMPT, COUNT)


def test_prompt_that_the_stages_have_whole_is_handed_over_at_once(cluster_of, models):
    cluster = cluster_of(2, holder=1)
    first = cluster.generate(PROMPT, COUNT, strategy=PREFILL)
    cluster.run()
    other = cluster_of(2, holder=1)  # whose holder knows nothing
    for name in cluster.names:
        assert len(cluster.stores_of(name)[Route(cluster.names)]) > 0
    before = steps_of(cluster, "worker-0")
    cluster.engines["worker-1"]._heads._heads.pop(Route(("worker-1",)))
    cluster.engines["worker-1"]._heads._directories.pop(Route(("worker-1",)))
    again = cluster.generate(PROMPT, COUNT, strategy=PREFILL)
    cluster.run()
    assert steps_of(cluster, "worker-0") == before
    assert cluster.reused[again] == len(PROMPT) - 1
    assert cluster.tokens[again] == cluster.tokens[first] == alone(models["llama"], PROMPT, COUNT)
    other.assert_nothing_is_left()


@pytest.mark.parametrize("architecture", ["llama", "gemma3_text"])
def test_next_turn_begins_with_the_answer_that_the_holder_kept(cluster_of, models, architecture):
    cluster = cluster_of(2, architecture, holder=1)
    first = cluster.generate(PROMPT, COUNT, strategy=PREFILL)
    cluster.run()
    said = PROMPT + cluster.tokens[first] + PROMPT[:200]
    number = cluster.generate(said, COUNT, strategy=PREFILL)
    cluster.run()
    assert cluster.reused[number] >= len(PROMPT) - 1
    assert cluster.tokens[number] == alone(models[architecture], said, COUNT)
    cluster.assert_nothing_is_left()


# --- company


def test_streams_of_the_holder_go_on_while_a_prompt_is_read(cluster_of, models):
    cluster = cluster_of(2, holder=1, chunk_tokens=40)
    streams = [cluster.generate(PROMPT[start : start + 20], 60, strategy="single-device-cached") for start in range(3)]
    while min(len(cluster.tokens[number]) for number in streams) < 3:
        cluster.turn()
    before = [len(cluster.tokens[number]) for number in streams]
    late = cluster.generate(PROMPT, COUNT, strategy=PREFILL)
    while not cluster.tokens[late]:
        cluster.turn()
    num_chunks = len(cluster.progress[late])
    assert num_chunks == 15
    for number, length in zip(streams, before, strict=True):
        assert len(cluster.tokens[number]) - length >= num_chunks // 2
    cluster.run()
    assert cluster.tokens[late] == alone(models["llama"], PROMPT, COUNT)
    for start, number in enumerate(streams):
        assert cluster.tokens[number] == alone(models["llama"], PROMPT[start : start + 20], 60)


def test_several_prompts_are_read_at_once_and_generated_in_one_batch(cluster_of, models):
    cluster = cluster_of(3, holder=2)
    prompts = [PROMPT[start:] for start in range(4)]
    numbers = [cluster.generate(prompt, COUNT, strategy=PREFILL) for prompt in prompts]
    cluster.run()
    for number, prompt in zip(numbers, prompts, strict=True):
        assert cluster.tokens[number] == alone(models["llama"], prompt, COUNT)
    cluster.assert_nothing_is_left()


# --- ends


@pytest.mark.parametrize("holder", [0, 1])
@pytest.mark.parametrize("num_turns", range(0, 24, 3))
def test_cancel_at_any_moment_frees_everything_everywhere(cluster_of, holder, num_turns):
    cluster = cluster_of(2, holder=holder)
    number = cluster.generate(PROMPT, COUNT, strategy=PREFILL)
    for _ in range(num_turns):
        cluster.turn()
    cluster.cancel(number)
    cluster.run()
    assert number not in cluster.finish_reasons or num_turns > 12
    assert cluster.failures == {}
    cluster.assert_nothing_is_left()


def test_cancel_while_it_is_read_ends_the_reading_and_keeps_what_was_read(cluster_of):
    cluster = cluster_of(2, holder=1)
    watched = Watched(cluster, "worker-0")
    number = cluster.generate(PROMPT, COUNT, strategy=PREFILL)
    read_until(cluster, watched)
    before = steps_of(cluster, "worker-0")
    cluster.cancel(number)
    cluster.run()
    assert steps_of(cluster, "worker-0") <= before + 2
    assert len(cluster.stores_of("worker-0")[Route(cluster.names)]) >= 300 // BLOCK_TOKENS
    cluster.assert_nothing_is_left()


def breaks_at(cluster, worker, step):
    """This worker's forward pass of that number from now on raises."""
    model = cluster.engines[worker]._runner.stages.executors[Route(cluster.names)]._model
    forward, passes = model.forward, Counter()

    def broken(*arguments, **options):
        passes["all"] += 1
        if passes["all"] == step:
            raise RuntimeError("no memory")
        return forward(*arguments, **options)

    model.forward = broken


@pytest.mark.parametrize(("worker", "holder"), [(0, 0), (0, 1), (1, 0), (1, 1)])
@pytest.mark.parametrize("step", [1, 4, 6])
def test_step_that_fails_while_a_prompt_is_read_costs_time_and_no_answer(cluster_of, models, worker, holder, step):
    cluster = cluster_of(2, holder=holder)
    breaks_at(cluster, cluster.names[worker], step)
    watched = Watched(cluster, "worker-0")
    number = cluster.generate(PROMPT, COUNT, strategy=PREFILL)
    cluster.run()
    assert cluster.failures == {}
    assert cluster.tokens[number] == alone(models["llama"], PROMPT, COUNT)
    assert watched.of(ReadingFailed) or holder == 0
    cluster.assert_nothing_is_left()


def test_prefix_that_a_stage_lost_costs_time_and_no_answer_and_is_forgotten(cluster_of, models):
    cluster = cluster_of(2, holder=1)
    cluster.generate(PROMPT[:300], COUNT)
    cluster.run()
    store = cluster.stores_of("worker-1")[Route(cluster.names)]
    store.drop([key for key, _ in store.known])
    number = cluster.generate(PROMPT, COUNT, strategy=PREFILL)
    cluster.run()
    again = cluster.generate(PROMPT[:300], COUNT)
    cluster.run()
    assert cluster.failures == {}
    assert again not in cluster.reused
    assert cluster.tokens[number] == alone(models["llama"], PROMPT, COUNT)
    cluster.assert_nothing_is_left()


def test_link_that_loses_a_part_ends_the_epoch_and_the_request_comes_back(cluster_of, models):
    cluster = cluster_of(2, holder=1)
    watched = Watched(cluster, "worker-0")
    number = cluster.generate(PROMPT, COUNT, strategy=PREFILL)
    read_until(cluster, watched)
    cluster.network.lose_next("worker-0", "worker-1")
    cluster.run()
    assert cluster.reports_of(LinkLost)
    assert cluster.tokens[number] == []
    cluster.replan()
    cluster.assert_nothing_is_left()
    again = cluster.generate(PROMPT, COUNT, strategy=PREFILL)
    cluster.run()
    assert cluster.tokens[again] == alone(models["llama"], PROMPT, COUNT)


# --- what does not fit

BOTH = Route(("worker-0", "worker-1"))
PART = ["list", 599, ["list"], ["list"]]


def handed(**changes):
    given = {"sequence": 1, "route": BOTH, "worker": "worker-0", "start": 0, "end": 599, "part": PART}
    return HandedOver(**given | changes)


UNFIT = {
    "of a route that is not loaded": handed(route=Route(("worker-0", "worker-7"))),
    "of nobody": handed(worker="worker-7"),
    "of an unknown request": handed(sequence=900),
    "of nothing": handed(end=0),
    "of more than the prompt": handed(end=700, part=["list", 700, ["list"], ["list"]]),
    "with a gap before it": handed(start=5),
    "that ends elsewhere": handed(end=598),
    "of no part": handed(part=None),
    "of no cache": handed(part=["list", 599, ["list", 0], ["list", ["list", "eval", None]]]),
    "of no tokens": handed(
        part=["list", 599, ["list", 0], ["list", ["list", "ArraysCache", ["tuple", ["list"], None, None]]]]
    ),
    "without any layer": handed(),
}


@pytest.mark.parametrize("what", UNFIT)
def test_part_that_does_not_fit_costs_no_answer(cluster_of, models, what):
    cluster = cluster_of(2, holder=1)
    number = cluster.generate(PROMPT, COUNT, strategy=PREFILL)
    cluster.turn()
    cluster.post("worker-1", UNFIT[what], ())
    cluster.run()
    assert cluster.failures == {}
    assert cluster.tokens[number] == alone(models["llama"], PROMPT, COUNT)
    cluster.assert_nothing_is_left()


def test_more_bytes_than_a_cache_can_have_are_refused(cluster_of, models):
    cluster = cluster_of(2, holder=1)
    number = cluster.generate(PROMPT, COUNT, strategy=PREFILL)
    cluster.turn()
    cluster.post("worker-1", handed(), (bytes(50 << 20),))
    cluster.run()
    assert cluster.tokens[number] == alone(models["llama"], PROMPT, COUNT)


STRAY = {
    "to stop what is not read": ("worker-0", StopReading(sequence=900, route=BOTH)),
    "to stop on an unknown route": ("worker-0", StopReading(sequence=1, route=Route(("worker-0", "worker-7")))),
    "to hand over what is not open": (
        "worker-1",
        HandOver(sequence=900, route=BOTH, holder="worker-0", request=900, start=0, end=64),
    ),
    "to hand over to nobody": (
        "worker-1",
        HandOver(sequence=1, route=BOTH, holder="worker-7", request=900, start=0, end=64),
    ),
    "to read for nobody": ("worker-0", ReadPrompt(sequence=900, route=BOTH, holder="worker-7", start=0)),
    "to read without a prompt": ("worker-0", ReadPrompt(sequence=900, route=BOTH, holder="worker-1", start=0)),
    "to read elsewhere": ("worker-1", ReadPrompt(sequence=900, route=BOTH, holder="worker-1", start=0)),
    "that what nobody awaits failed": ("worker-1", ReadingFailed(sequence=900, message="?")),
}


@pytest.mark.parametrize("what", STRAY)
def test_message_that_does_not_fit_is_dropped_alone(cluster_of, models, what):
    cluster = cluster_of(2, holder=1)
    number = cluster.generate(PROMPT, COUNT, strategy=PREFILL)
    cluster.turn()
    cluster.post(*STRAY[what])
    cluster.run()
    assert cluster.failures == {}
    assert cluster.tokens[number] == alone(models["llama"], PROMPT, COUNT)
    cluster.assert_nothing_is_left()
