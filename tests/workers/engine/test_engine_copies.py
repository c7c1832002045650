"""Copies of what stages keep, at their neighbours: handed over beside the steps, and what goes on from them after a loss."""

import logging

import msgspec
import pytest

from protocol.codec import Envelope
from protocol.messages import CopyArrived, CopyPrefix, OpenSequence, StagePlan
from protocol.values import KvSettings, LayerRange, Route, Sampling
from strategy.copies import copy_holder
from strategy.prefix import BLOCK_TOKENS, block_keys, snapshot_key
from tests.support.in_process_cluster import PREFIX_BYTES, InProcessCluster, alone
from workers.engine import copying
from workers.engine.arrivals import Adrift
from workers.zoo import make_tiny_model

PROMPT = [(7 * index) % 290 + 5 for index in range(300)]
NUM_LAYERS = 6
KINDS = [
    KvSettings(kind="dynamic"),
    KvSettings(kind="quantized", bits=8, group_size=32),
    KvSettings(kind="paged"),
    KvSettings(kind="static"),
    KvSettings(kind="keys-only"),
]
# By number of stages and the one that is lost: the layers of those that are left.
LOSSES = {
    "first of two": (2, 0, [(0, 6)]),
    "last of two": (2, 1, [(0, 6)]),
    "first of three": (3, 0, [(0, 4), (4, 6)]),
    "middle of three": (3, 1, [(0, 2), (2, 6)]),
    "last of three": (3, 2, [(0, 2), (2, 6)]),
}


@pytest.fixture(scope="module")
def models(tmp_path_factory):
    root = tmp_path_factory.mktemp("models")
    made = {
        name: make_tiny_model(name, root / name, num_hidden_layers=NUM_LAYERS)
        for name in ("llama", "gemma3_text", "mamba2")
    }
    return made | {"wide": make_tiny_model("llama", root / "wide", num_hidden_layers=NUM_LAYERS, hidden_size=128)}


@pytest.fixture
def cluster_of(models, tmp_path, caplog):
    """A cluster whose stages hand copies of what they keep to their neighbours."""
    caplog.set_level(logging.CRITICAL)

    def make(num_stages=2, architecture="llama", *, kv_copies=1, memory=PREFIX_BYTES, chunk_tokens=64, **options):
        cluster = InProcessCluster(
            models[architecture], num_stages=num_stages, cache_dir=tmp_path, chunk_tokens=chunk_tokens, **options
        )
        cluster.plan = msgspec.structs.replace(cluster.plan, kv_copies=kv_copies, prefix_memory_bytes=memory)
        cluster.replan()
        return cluster

    return make


def store_of(cluster, worker):
    return cluster.stores_of(worker)[Route(cluster.names)]


def copies_at(cluster, worker):
    """By key, the layers of which a worker holds copies."""
    store = store_of(cluster, worker)
    held = {key: parts.keys() - {store.layers} for key, parts in store.in_memory()}
    return {key: layers for key, layers in held.items() if layers}


def run_until(cluster, number, num_tokens):
    while len(cluster.tokens[number]) < num_tokens:
        assert cluster.turn()


def lose(cluster, lost, bounds):
    """One worker dies; the others are given its layers in a new epoch."""
    name = cluster.names[lost]
    cluster.network.remove(name)
    del cluster.engines[name]
    cluster.names = tuple(cluster.engines)
    stages = tuple(
        StagePlan(worker=name, peer=cluster.peers[name], layers=LayerRange(*layers), holds_full_model=index == 0)
        for index, (name, layers) in enumerate(zip(cluster.names, bounds, strict=True))
    )
    cluster.plan = msgspec.structs.replace(cluster.plan, stages=stages, pipeline=Route(cluster.names))
    cluster.replan()


@pytest.mark.parametrize("num_stages", [2, 3])
def test_neighbour_has_every_finished_block_while_the_answer_is_generated(cluster_of, num_stages):
    cluster = cluster_of(num_stages)
    number = cluster.generate(PROMPT, 200)
    run_until(cluster, number, 100)
    pipeline = Route(cluster.names)
    finished = block_keys([*PROMPT, *cluster.tokens[number][:80]], "")
    assert len(finished) == 5
    for stage in cluster.plan.stages:
        held = copies_at(cluster, copy_holder(pipeline, stage.worker))
        assert all(stage.layers in held.get(key, ()) for key in finished), stage.worker


@pytest.mark.parametrize("chunk_tokens", [16, 100, 512])
def test_neighbour_has_the_prompt_soon_after_it_was_read(cluster_of, chunk_tokens):
    cluster = cluster_of(2, chunk_tokens=chunk_tokens)
    number = cluster.generate(PROMPT * 3, 20)
    run_until(cluster, number, 3)
    finished = block_keys(PROMPT * 3, "")
    assert len(finished) == 14
    for worker in cluster.names:
        assert copies_at(cluster, worker).keys() == set(finished), worker


@pytest.mark.parametrize("loss", LOSSES)
def test_request_goes_on_from_copies_after_a_loss(cluster_of, models, loss):
    num_stages, lost, bounds = LOSSES[loss]
    cluster = cluster_of(num_stages)
    number = cluster.generate(PROMPT, 200)
    run_until(cluster, number, 100)
    lose(cluster, lost, bounds)
    emitted = cluster.tokens[number]
    again = cluster.generate(PROMPT + emitted, 20)
    cluster.run()
    known = PROMPT + emitted
    assert cluster.reused[again] == len(known) // BLOCK_TOKENS * BLOCK_TOKENS == 384
    assert emitted + cluster.tokens[again] == alone(models["llama"], PROMPT, len(emitted) + 20)
    cluster.assert_nothing_is_left()


@pytest.mark.parametrize("kv", KINDS, ids=lambda kv: kv.kind)
def test_every_kind_of_cache_goes_on_from_copies(cluster_of, kv):
    undisturbed = cluster_of(2, "wide", kv=kv)
    whole = undisturbed.generate(PROMPT, 40)
    undisturbed.run()
    cluster = cluster_of(2, "wide", kv=kv)
    number = cluster.generate(PROMPT, 40)
    run_until(cluster, number, 15)
    lose(cluster, 0, [(0, 6)])
    emitted = cluster.tokens[number]
    again = cluster.generate(PROMPT + emitted, 40 - len(emitted))
    cluster.run()
    assert cluster.reused[again] == len(PROMPT) // BLOCK_TOKENS * BLOCK_TOKENS
    assert emitted + cluster.tokens[again] == undisturbed.tokens[whole]


@pytest.mark.parametrize("architecture", ["gemma3_text", "mamba2"])
def test_caches_that_cannot_be_cut_go_on_from_the_end_of_the_prompt(cluster_of, models, architecture):
    cluster = cluster_of(2, architecture)
    number = cluster.generate(PROMPT, 40)
    run_until(cluster, number, 15)
    assert snapshot_key(PROMPT[:-1], "") in copies_at(cluster, "worker-1")
    lose(cluster, 0, [(0, 6)])
    emitted = cluster.tokens[number]
    again = cluster.generate(PROMPT + emitted, 40 - len(emitted))
    cluster.run()
    assert cluster.reused[again] == len(PROMPT) - 1
    assert emitted + cluster.tokens[again] == alone(models[architecture], PROMPT, 40)


def test_second_loss_finds_what_was_copied_again_after_the_first(cluster_of, models):
    cluster = cluster_of(3)
    number = cluster.generate(PROMPT, 5)
    cluster.run()
    lose(cluster, 1, [(0, 2), (2, 6)])
    cluster.run()
    lose(cluster, 1, [(0, 6)])
    again = cluster.generate(PROMPT, 5)
    cluster.run()
    assert cluster.reused[again] >= len(PROMPT) // BLOCK_TOKENS * BLOCK_TOKENS
    assert cluster.tokens[again] == cluster.tokens[number] == alone(models["llama"], PROMPT, 5)


def test_what_a_sequence_begins_with_goes_before_what_else_is_from_before(cluster_of):
    cluster = cluster_of(2)
    for start in range(3):
        cluster.generate([start + 5, *PROMPT], 5)
    cluster.run()
    cluster.replan()  # comes to rest with all of it handed over
    watched = Watched(cluster, "worker-1")
    cluster.epoch += 1
    for name in cluster.names:
        cluster._send(name, cluster.plan)
    engine = cluster.engines["worker-1"]
    cluster.network.run()
    engine.turn()
    cluster.post("worker-1", opening([5, *PROMPT]), (b"".join(block_keys([5, *PROMPT], "")),))
    while len(watched.copies) < 12:
        cluster.turn()
    went = [(message.is_earlier, buffers[0]) for message, buffers in watched.copies]
    first = [key for is_earlier, key in went if not is_earlier]
    assert set(first) <= set(block_keys([5, *PROMPT], ""))
    assert len(first) >= 3


def test_engine_that_is_adrift_hands_nothing_over_and_goes_on_with_the_next_plan(cluster_of, models):
    cluster = cluster_of(2)
    number = cluster.generate(PROMPT, 5)
    cluster.run()
    watched = Watched(cluster, "worker-0")
    cluster.epoch += 1
    for name in cluster.names:
        cluster._send(name, cluster.plan)
    cluster.network.run()
    for engine in cluster.engines.values():
        engine.post(Envelope(0, Adrift()))
        engine.turn()
    cluster.run()
    assert watched.copies == []
    cluster.replan()
    again = cluster.generate(PROMPT, 5)
    cluster.run()
    assert cluster.tokens[again] == cluster.tokens[number] == alone(models["llama"], PROMPT, 5)
    assert watched.copies != []


class Watched:
    """What goes over the links of one worker, beside what it was asked for."""

    def __init__(self, cluster, worker):
        self.sent = []
        links = cluster.engines[worker]._links
        send = links.send

        def watched(peer, message, buffers=()):
            self.sent.append((peer, message, [bytes(buffer) for buffer in buffers]))
            send(peer, message, buffers)

        links.send = watched

    @property
    def copies(self):
        return [(message, buffers) for _, message, buffers in self.sent if isinstance(message, CopyPrefix)]


def test_nothing_is_copied_twice_in_an_epoch_and_all_of_it_again_in_the_next(cluster_of):
    cluster = cluster_of(2)
    watched = Watched(cluster, "worker-0")
    cluster.generate(PROMPT, 100)
    cluster.generate(PROMPT, 100)
    cluster.run()
    keys = [buffers[0] for _, buffers in watched.copies]
    assert len(keys) == len(set(keys)) == len(store_of(cluster, "worker-0"))
    cluster.replan()
    cluster.run()
    assert sorted(buffers[0] for _, buffers in watched.copies) == sorted(keys * 2)


def test_few_copies_are_under_way_and_none_goes_before_a_step_is_done(cluster_of):
    cluster = cluster_of(2)
    watched = Watched(cluster, "worker-0")
    cluster.generate(PROMPT, 30)
    engine = cluster.engines["worker-0"]
    for _ in range(200):
        engine.turn()
    assert len(watched.copies) <= 2
    cluster.run()
    assert len(watched.copies) == len(store_of(cluster, "worker-0"))


def test_without_copies_nothing_is_handed_over_and_answers_are_kept_at_their_end(cluster_of):
    cluster = cluster_of(2, kv_copies=0)
    watched = Watched(cluster, "worker-0")
    number = cluster.generate(PROMPT, 100)
    run_until(cluster, number, 90)
    assert len(store_of(cluster, "worker-0")) == len(PROMPT) // BLOCK_TOKENS
    cluster.run()
    assert watched.copies == []


def test_copies_go_with_what_the_directory_gives_up(cluster_of):
    cluster = cluster_of(2, prefix_capacity=6)
    for start in range(5):
        cluster.generate([start + 5, *PROMPT], 5)
        cluster.run()
    for worker in cluster.names:
        assert copies_at(cluster, worker).keys() == dict(store_of(cluster, worker).known).keys()
        assert len(store_of(cluster, worker)) == 6


def test_copies_stay_within_their_memory(cluster_of):
    roomy = cluster_of(3)
    roomy.generate(PROMPT, 5)
    roomy.run()
    block_bytes = store_of(roomy, "worker-0").bytes_of(block_keys(PROMPT, "")[:1])
    # A third of it is the middle one's own, two thirds for copies: three blocks of each of its neighbours.
    cluster = cluster_of(3, memory=9 * block_bytes)
    for start in range(4):
        cluster.generate([start + 5, *PROMPT], 5)
        cluster.run()
    store = store_of(cluster, "worker-1")
    assert store.num_bytes <= 9 * block_bytes
    assert sum(map(len, copies_at(cluster, "worker-1").values())) == 6


def test_what_is_too_large_to_go_between_two_steps_stays(cluster_of, monkeypatch):
    monkeypatch.setattr(copying, "LARGEST_PART_BYTES", 100)
    cluster = cluster_of(2)
    cluster.generate(PROMPT, 5)
    cluster.run()
    assert len(store_of(cluster, "worker-0")) > 0
    assert copies_at(cluster, "worker-1") == {}


def test_link_that_is_lost_while_copies_are_under_way_costs_no_answer(cluster_of, models):
    cluster = cluster_of(2)
    watched = Watched(cluster, "worker-0")
    number = cluster.generate(PROMPT, 60)
    while not watched.copies:
        cluster.turn()
    cluster.network.reset("worker-0", "worker-1")
    cluster.run()
    assert ("worker-0", "worker-1") in cluster.lost_links
    cluster.replan()
    emitted = cluster.tokens[number]
    again = cluster.generate(PROMPT + emitted, 60 - len(emitted))
    cluster.run()
    assert emitted + cluster.tokens[again] == alone(models["llama"], PROMPT, 60)
    assert copies_at(cluster, "worker-1").keys() == dict(store_of(cluster, "worker-0").known).keys()


def opening(tokens):
    return OpenSequence(
        sequence=900, route=BOTH, cached=True, sampling=Sampling(), seed=0, history=(), max_length=len(tokens) + 9
    )


BOTH, KEY = Route(("worker-0", "worker-1")), bytes(16)


def copy(part, *, route=BOTH, worker="worker-0", layers=(0, 3)):
    return CopyPrefix(route=route, worker=worker, layers=LayerRange(*layers), part=part, is_earlier=False)


PART = ["list", 64, ["list"], ["list"]]
UNFIT = {
    "of a route that is not loaded": (copy(PART, route=Route(("worker-0", "worker-7"))), (KEY,)),
    "of nobody": (copy(PART, worker="worker-7"), (KEY,)),
    "of its own": (copy(PART, worker="worker-1"), (KEY,)),
    "of layers that there are not": (copy(PART, layers=(0, 700)), (KEY,)),
    "of layers the wrong way round": (copy(PART, layers=(3, 0)), (KEY,)),
    "without a key": (copy(PART), ()),
    "with half a key": (copy(PART), (KEY[:-1],)),
    "with two keys": (copy(PART), (KEY + KEY,)),
    "of no part": (copy(None), (KEY,)),
    "of no cache": (copy(["list", 64, ["list", 0], ["list", ["list", "eval", None]]]), (KEY,)),
    "of arrays that are not there": (
        copy(["list", 64, ["list", 0], ["list", ["list", "ArraysCache", ["list", ["array", "float32", [4]]]]]]),
        (KEY,),
    ),
    "of more arrays than it names": (copy(PART), (KEY, b"more")),
}


@pytest.mark.parametrize("what", UNFIT)
def test_copy_that_does_not_fit_is_dropped_alone(cluster_of, models, what):
    cluster = cluster_of(2)
    number = cluster.generate(PROMPT, 12)
    run_until(cluster, number, 3)
    before = copies_at(cluster, "worker-1").keys()
    cluster.post("worker-1", *UNFIT[what])
    cluster.post("worker-0", CopyArrived(route=Route(("worker-7",))))
    cluster.run()
    assert cluster.tokens[number] == alone(models["llama"], PROMPT, 12)
    assert KEY not in copies_at(cluster, "worker-1")
    assert before <= copies_at(cluster, "worker-1").keys()
    assert cluster.failures == {}
    cluster.assert_nothing_is_left()


def test_copy_of_a_wrong_cache_costs_time_after_a_loss_and_no_answer(cluster_of, models):
    cluster = cluster_of(2)
    watched = Watched(cluster, "worker-0")
    number = cluster.generate(PROMPT, 12)
    cluster.run()
    (message, (_, *arrays)), key = watched.copies[0], block_keys(PROMPT, "")[1]
    short = ["list", 128, message.part[2], ["list", *[["list", "ArraysCache", ["tuple", ["list"], None, None]]] * 3]]
    cluster.post("worker-1", msgspec.structs.replace(message, part=short), (key,))
    cluster.run()
    lose(cluster, 0, [(0, 6)])
    again = cluster.generate(PROMPT, 12)
    cluster.run()
    assert arrays
    assert cluster.tokens[again] == cluster.tokens[number] == alone(models["llama"], PROMPT, 12)
