"""Messages that do not fit what a worker knows: each is its own failure, and whoever else is served goes on."""

import logging
import math

import numpy as np
import pytest

from protocol.codec import Envelope
from protocol.messages import (
    CloseSequence,
    DropPrefix,
    Generate,
    KeepPrefix,
    KnownPrefix,
    LoadFailed,
    OpenSequence,
    Row,
    Sampled,
    Step,
    StepFailed,
)
from protocol.values import Route, Sampling
from tests.support.in_process_cluster import MODEL, InProcessCluster, alone
from tests.support.load_stages import load_stage
from workers.zoo import make_tiny_model

PROMPT = list(range(20, 60))
NUM_TOKENS = 8
BOTH = Route(("worker-0", "worker-1"))
FIRST = Route(("worker-0",))
ELSEWHERE = Route(("worker-0", "worker-7"))
NOBODY = Route(())
KEY = bytes(16)
ROWS = (Row(900, 0, num_sampled=1),)
OPEN = (Row(1, 0, num_sampled=1),)  # a sequence that runs on both
FILLED, UNDERFILLED = ((Row(1, 0, num_sampled=0, padding=count),) for count in (1, -1))
BEYOND = 100_000
GREEDY = Sampling()


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    return make_tiny_model("llama", tmp_path_factory.mktemp("models") / "llama")


@pytest.fixture
def cluster(model, tmp_path, caplog):
    caplog.set_level(logging.CRITICAL)
    return InProcessCluster(model, num_stages=2, cache_dir=tmp_path, chunk_tokens=16)


def ids(*numbers):
    return np.array(numbers, np.int32).tobytes()


def generate(route=BOTH, sequence=900, max_tokens=3, sampling=GREEDY, **fields):
    return Generate(
        sequence=sequence,
        route=route,
        cached=True,
        max_tokens=max_tokens,
        end_tokens=(),
        sampling=sampling,
        seed=0,
        **fields,
    )


def opening(route, **changes):
    given = {"sequence": 900, "cached": True, "sampling": Sampling(), "seed": 0, "history": (), "max_length": 9}
    return OpenSequence(route=route, **given | changes)


def step(route, *, number=900, rows=ROWS, num_tokens=1, cached=True, slot=0, payload=None):
    return Step(number=number, route=route, slot=slot, cached=cached, rows=rows, num_tokens=num_tokens, payload=payload)


def keep(route, *spans):
    return KeepPrefix(sequence=1, route=route, spans=spans)


UNFIT_REQUESTS = {
    "without a prompt": (generate(), ()),
    "with half an id": (generate(), (ids(5, 6)[:-1],)),
    "with an empty prompt": (generate(), (b"",)),
    "for a route that is not loaded": (generate(ELSEWHERE), (ids(5, 6),)),
    "for a route that begins elsewhere": (generate(Route(("worker-1", "worker-0"))), (ids(5, 6),)),
    "for no route": (generate(NOBODY), (ids(5, 6),)),
    "with an id beyond the vocabulary": (generate(), (ids(5, BEYOND),)),
    "with a negative id": (generate(), (ids(-1, 5),)),
    "for no tokens": (generate(max_tokens=0), (ids(5, 6),)),
    "for more tokens than numbers": (generate(max_tokens=1 << 40), (ids(5, 6),)),
    "that prefers an id beyond the vocabulary": (generate(sampling=Sampling(logit_bias={BEYOND: 1.0})), (ids(5, 6),)),
    "that prefers a negative id": (generate(sampling=Sampling(logit_bias={-7: 1.0})), (ids(5, 6),)),
    "with a temperature that is no number": (generate(sampling=Sampling(temperature=math.nan)), (ids(5, 6),)),
    "with more of the likeliest ids than can be told": (generate(sampling=Sampling(logprobs=21)), (ids(5, 6),)),
    "with fewer of them than none": (generate(sampling=Sampling(logprobs=-1)), (ids(5, 6),)),
    "that others read and of whose prompt is told": (generate(FIRST, read_by=BOTH, scores_prompt=True), (ids(5, 6),)),
    "with an endless penalty": (generate(sampling=Sampling(repetition_penalty=math.inf)), (ids(5, 6),)),
}

UNFIT_MESSAGES = {
    "sampled on an unknown route": (Sampled(number=1, route=ELSEWHERE, tokens=((1,),)), ()),
    "sampled for an unknown number": (Sampled(number=900, route=BOTH, tokens=((1,),)), ()),
    "failure on an unknown route": (StepFailed(number=1, route=ELSEWHERE, message="?"), ()),
    "failure of an unknown number": (StepFailed(number=900, route=BOTH, message="?"), ()),
    "keep on an unknown route": (keep(ELSEWHERE, (0, 16)), (KEY,)),
    "keep of an unknown sequence": (KeepPrefix(sequence=900, route=BOTH, spans=((0, 16),)), (KEY,)),
    "keep of more spans than keys": (keep(BOTH, (0, 16), (16, 32)), (KEY,)),
    "keep of more keys than spans": (keep(BOTH, (0, 16)), (KEY + KEY,)),
    "keep without keys": (keep(BOTH, (0, 16)), ()),
    "keep of an odd key": (keep(BOTH, (0, 16)), (KEY[:-1],)),
    "opening on an unknown route": (opening(ELSEWHERE), (b"",)),
    "opening with an unknown prefix": (opening(FIRST), (KEY,)),
    "closing on an unknown route": (CloseSequence(sequence=1, route=ELSEWHERE), (b"",)),
    "closing of an unknown sequence": (CloseSequence(sequence=900, route=BOTH), (b"",)),
    "dropping on an unknown route": (DropPrefix(route=ELSEWHERE), (KEY,)),
    "dropping on no route": (DropPrefix(route=NOBODY), (KEY,)),
    "dropping an odd key": (DropPrefix(route=BOTH), (KEY[:-1],)),
    "known prefixes of an unknown route": (KnownPrefix(route=ELSEWHERE, capacity=4, snapshots=False), (KEY, ids(64))),
    "known prefixes without lengths": (KnownPrefix(route=BOTH, capacity=4, snapshots=False), (KEY,)),
    "known prefixes without buffers": (KnownPrefix(route=BOTH, capacity=4, snapshots=False), ()),
    "known prefixes of odd numbers": (KnownPrefix(route=BOTH, capacity=4, snapshots=False), (KEY, ids(64, 128))),
    "step on an unknown route": (step(ELSEWHERE), (ids(5),)),
    "step on a route of strangers": (step(Route(("worker-8", "worker-9"))), (ids(5),)),
    "step on no route": (step(NOBODY), (ids(5),)),
    "step of an unknown sequence": (step(BOTH), (ids(5),)),
    "step without rows": (step(BOTH, rows=()), (b"",)),
    "step without buffers": (step(BOTH), ()),
    "step of other numbers of ids": (step(BOTH, num_tokens=7), (ids(5),)),
    "step of no tokens": (step(BOTH, num_tokens=0), (b"",)),
    "step of a negative number of tokens": (step(BOTH, num_tokens=-1), (ids(5),)),
    "step with an id beyond the vocabulary": (step(BOTH, rows=OPEN), (ids(BEYOND),)),
    "step with a negative id": (step(BOTH, rows=OPEN), (ids(-1),)),
    "step of more rows than a batch has": (step(BOTH, rows=ROWS * 200), (ids(*[5] * 200),)),
    "step that names a sequence twice": (step(BOTH, rows=OPEN * 2), (ids(5, 6),)),
    "step of rows without a slot": (step(BOTH, rows=ROWS + OPEN, slot=None), (ids(5, 6),)),
    "step that samples from prompts that are read together": (
        step(BOTH, rows=(Row(1, 0, num_sampled=0), Row(2, 0, num_sampled=1)), slot=None),
        (ids(5, 6),),
    ),
    "step that is filled up with all of it": (step(BOTH, rows=FILLED, slot=None), (ids(5),)),
    "step that is filled up with less than nothing": (step(BOTH, rows=UNDERFILLED, slot=None), (ids(5),)),
    "step that is filled up in a slot": (step(BOTH, rows=FILLED, num_tokens=2), (ids(5, 6),)),
    "step without caches in a slot": (step(BOTH, cached=False), (ids(5),)),
    "step without caches of a sequence with one": (step(BOTH, rows=OPEN, cached=False, slot=None), (ids(5),)),
    "step from elsewhere in a sequence": (step(BOTH, rows=(Row(1, 7, num_sampled=1),)), (ids(5),)),
    "step before the first token": (step(BOTH, rows=(Row(900, -1, num_sampled=1),)), (ids(5),)),
    "step beyond any sequence": (step(BOTH, rows=(Row(900, 1 << 60, num_sampled=1),)), (ids(5),)),
    "step with hidden states of a strange structure": (
        step(BOTH, rows=OPEN, payload=["array", "float32", [1]]),
        (ids(5),),
    ),
    "sampled beyond the vocabulary": (Sampled(number=1, route=BOTH, tokens=((BEYOND,),)), ()),
    "sampled before the vocabulary": (Sampled(number=1, route=BOTH, tokens=((-1,),)), ()),
    "opening with a history beyond the vocabulary": (opening(BOTH, history=(5, BEYOND)), (b"",)),
    "opening that prefers an id beyond the vocabulary": (
        opening(BOTH, sampling=Sampling(logit_bias={BEYOND: 1.0})),
        (b"",),
    ),
    "opening of no length": (opening(BOTH, max_length=0), (b"",)),
    "opening beyond any length": (opening(BOTH, max_length=1 << 62), (b"",)),
    "keep of no tokens": (keep(BOTH, (16, 16)), (KEY,)),
    "keep of a negative span": (keep(BOTH, (-16, 16)), (KEY,)),
    "keep beyond what is computed": (keep(BOTH, (0, 1 << 20)), (KEY,)),
    "keep of nothing": (keep(BOTH), (b"",)),
    "known prefixes of no length": (KnownPrefix(route=BOTH, capacity=4, snapshots=False), (KEY, ids(0))),
    "known prefixes in a negative room": (KnownPrefix(route=BOTH, capacity=-4, snapshots=False), (KEY, ids(64))),
}
# Each of so many tests sends its share of them to one cluster.
MESSAGES_AT_ONCE = 6


def running(cluster):
    """A request on each route in the midst of its answer."""
    numbers = [
        cluster.generate(PROMPT, NUM_TOKENS, strategy=name) for name in ("distributed-cached", "single-device-cached")
    ]
    while not all(len(cluster.tokens[number]) >= 3 for number in numbers):
        cluster.turn()
    return numbers


def assert_served_as_ever(cluster, model, numbers):
    cluster.run()
    later = cluster.generate(PROMPT, NUM_TOKENS)
    cluster.run()
    for number in [*numbers, later]:
        assert cluster.tokens[number] == alone(model, PROMPT, NUM_TOKENS)
    cluster.assert_nothing_is_left()


@pytest.mark.parametrize("what", UNFIT_REQUESTS)
def test_request_that_does_not_fit_fails_alone_in_a_sentence(cluster, model, what):
    numbers = running(cluster)
    cluster.post("worker-0", *UNFIT_REQUESTS[what])
    assert_served_as_ever(cluster, model, numbers)
    assert set(cluster.failures) == {900}
    assert cluster.failures[900].startswith("worker-0: ")
    assert "\n" not in cluster.failures[900]


def test_second_request_under_a_number_in_use_leaves_the_first_alone(cluster, model):
    numbers = running(cluster)
    cluster.post("worker-0", generate(sequence=numbers[0]), (ids(5, 6),))
    cluster.run()
    assert numbers[0] in cluster.failures
    cluster.failures.clear()
    assert_served_as_ever(cluster, model, numbers)


@pytest.mark.parametrize("worker", ["worker-0", "worker-1"])
@pytest.mark.parametrize("first", range(MESSAGES_AT_ONCE))
def test_message_that_does_not_fit_is_dropped_alone(cluster, model, first, worker):
    """Several of them, at one moment in the midst of the same two answers."""
    numbers = running(cluster)
    for what in list(UNFIT_MESSAGES)[first::MESSAGES_AT_ONCE]:
        cluster.post(worker, *UNFIT_MESSAGES[what])
    assert_served_as_ever(cluster, model, numbers)
    assert cluster.failures == {}


@pytest.mark.parametrize("tokens", [(), ((1,), (2,), (3,)), ((),), ((1, 2),)])
def test_step_that_comes_back_with_other_numbers_of_ids_fails_its_rows(cluster, model, tokens):
    numbers = running(cluster)
    head = next(head for head in cluster.engines["worker-0"]._heads if not head.route.is_single)
    while not head.num_in_flight:
        cluster.turn()
    number = next(iter(head._steps))
    cluster.post("worker-0", Sampled(number=number, route=BOTH, tokens=tokens))
    cluster.run()
    assert set(cluster.failures) == {numbers[0]}
    assert_served_as_ever(cluster, model, numbers[1:])


def test_plan_without_this_worker_fails_to_load(cluster):
    plan = load_stage(MODEL, cluster.coordinator)
    cluster.engines["worker-0"].post(Envelope(2, plan))
    cluster.run()
    (failed,) = cluster.reports_of(LoadFailed)
    assert failed.message == "worker-0 could not use the model: a plan without worker-0"
